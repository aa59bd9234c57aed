"""A job as a SkyPilot task: managed, so that SkyPilot starts it again elsewhere when a spot machine is taken away.

Owns SkyPilot's format (sky/utils/schemas.py of 0.14; docs.skypilot.co, "SkyPilot YAML" and "Managed Jobs"). A bucket is
mounted with MOUNT: each file of it is written once, from beginning to end. Local paths are absolute: SkyPilot takes
relative ones from wherever it is called.
"""

from __future__ import annotations

import secrets
import shlex
from pathlib import Path

from engine.remote.jobfile import (
    BUCKETS,
    RESTARTS,
    Job,
    block,
    files_folder,
    header,
    install_script,
    quoted,
    run_script,
)
from engine.remote.rent import CORES_PER_CARD, sky_names

_ROOT = '"$HOME"/scaler'


def sky_text(job: Job, out: Path) -> str:
    """The whole job file. Raises EngineError `export.card`."""
    commands = {
        f"sky jobs launch {shlex.quote(out.name)}": "start it, managed; spot machines that go are replaced",
        f"sky jobs logs -n {job.name}": "follow it",
        "sky jobs cancel ID": "end it; what is kept in the bucket stays",
    }
    remarks = ("Gated models and sets: add --secret HF_TOKEN to the launch.",) if job.uses_hub else ()
    parts = [
        header(job, "SkyPilot", commands, remarks),
        f"name: {quoted(job.name)}\n",
        _resources(job),
        _mounts(job, out),
        'envs:\n  HF_HUB_DISABLE_TELEMETRY: "1"\n',
        "setup: |\n" + block(_setup(job), 2),
        "run: |\n" + block(_run(job), 2),
    ]
    return "\n".join(parts)


def _resources(job: Job) -> str:
    rent = job.rent
    names = [quoted(f"{name}:{rent.count}") for name in sky_names(rent.card)]
    lines = [
        "resources:",
        f"  accelerators: {names[0] if len(names) == 1 else '[' + ', '.join(names) + ']'}",
        f"  cpus: {quoted(f'{CORES_PER_CARD * rent.count}+')}",
        f"  memory: {quoted(f'{rent.ram_gib}+')}  # GiB",
        f"  disk_size: {rent.disk_gib}  # GiB",
        f"  use_spot: {'true' if job.terms.spot else 'false'}",
    ]
    if rent.most_usd_per_hour:
        lines += [f"  max_hourly_cost: {rent.most_usd_per_hour}  # dollars; dearer machines are not taken"]
    lines += ["  job_recovery:", f"    max_restarts_on_errors: {RESTARTS}"]
    return "\n".join(lines) + "\n"


def _mounts(job: Job, out: Path) -> str:
    lines = ["file_mounts:", f"  ~/scaler/job: {quoted(str(files_folder(out).absolute()))}"]
    lines += ["  ~/scaler/kept:  # what it takes to go on; outlives the machines"]
    bucket = job.terms.bucket
    if bucket is None:
        lines += [f"    name: {quoted(f'scaler-kept-{job.key}-{secrets.token_hex(3)}')}", "    persistent: true"]
    else:
        lines += [f"    source: {quoted(f'{bucket.scheme}://{bucket.name}')}", f"    store: {BUCKETS[bucket.scheme]}"]
    lines += ["    mode: MOUNT"]
    return "\n".join(lines) + "\n"


def _setup(job: Job) -> str:
    return f"""\
set -eu
export PATH="$HOME/.local/bin:$PATH"
command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
test -x {_ROOT}/env/bin/python || uv venv --python 3.12 {_ROOT}/env
{install_script(job, root=_ROOT)}"""


def _run(job: Job) -> str:
    prefix = job.terms.bucket.prefix if job.terms.bucket else ""
    kept = f"{_ROOT}/kept" + (f"/{shlex.quote(prefix)}" if prefix else "")
    return run_script(job, root=_ROOT, python=f"{_ROOT}/env/bin/python", kept=kept)
