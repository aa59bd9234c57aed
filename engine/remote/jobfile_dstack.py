"""A job as a dstack task: resubmitted by dstack when its machine is taken away or it fails.

Owns dstack's format (the JSON schema of its configurations, 0.22; dstack.ai/docs/reference/dstack.yml/task). A bucket
is mounted by rclone, which needs FUSE and therefore a privileged container; without a bucket a network volume is used.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from engine.errors import EngineError
from engine.remote.jobfile import (
    Bucket,
    Job,
    block,
    files_folder,
    header,
    install_script,
    local_path,
    quoted,
    run_script,
)
from engine.remote.rent import CORES_PER_CARD, dstack_name
from engine.units import GIB, MIB, format_bytes

UPLOAD_LIMIT_BYTES = 2 * MIB
"""Of a dstack server that was not told otherwise (DSTACK_SERVER_CODE_UPLOAD_LIMIT)."""
RETRY_DURATION = "2d"

_ROOT = "/scaler"
_KEPT = f"{_ROOT}/kept"
_ENVIRONMENT = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"),
    "r2": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "R2_ENDPOINT"),
    "gs": ("RCLONE_GCS_SERVICE_ACCOUNT_CREDENTIALS",),
}
_BACKENDS = {
    "s3": ":s3,provider=AWS,env_auth=true",
    "r2": ":s3,provider=Cloudflare,env_auth=true,endpoint='$R2_ENDPOINT'",
    "gs": ":gcs,env_auth=true",
}


def dstack_text(job: Job, out: Path) -> str:
    """The whole job file. Raises EngineError `export.nothing_kept`, `export.card`."""
    bucket, volume = job.terms.bucket, job.terms.volume
    if (bucket is None) == (not volume):
        raise EngineError(
            "export.nothing_kept" if not volume else "usage",
            "Say where the run is kept when its machine goes."
            if not volume
            else "--bucket and --volume are both given.",
            cause="dstack makes no buckets itself." if not volume else "A run is kept in one place.",
            next_step="Add --bucket s3://name (mounted by rclone), or --volume NAME (a network volume, in one region).",
        )
    commands = {
        f"dstack apply -f {shlex.quote(out.name)}": "start it; a machine that goes is replaced",
        f"dstack logs {job.name}": "follow it",
        f"dstack stop {job.name}": "save and end it",
    }
    remarks = (
        *(
            (
                "HF_TOKEN is taken from your environment, for gated models and sets. Where none is needed:",
                f"HF_TOKEN= dstack apply -f {shlex.quote(out.name)}",
            )
            if job.uses_hub
            else ()
        ),
        f"What is uploaded exceeds {format_bytes(UPLOAD_LIMIT_BYTES)}, a dstack server's limit; start it with",
        "DSTACK_SERVER_CODE_UPLOAD_LIMIT=0 in its environment.",
    )
    return "\n".join(
        [
            header(job, "dstack", commands, remarks),
            f'type: task\nname: {quoted(job.name)}\npython: "3.12"\n',
            _files(out),
            _environment(job, bucket),
            *(["privileged: true  # rclone mounts the bucket\n"] if bucket else []),
            *([f"volumes:\n  - name: {quoted(volume)}\n    path: {_KEPT}\n"] if volume else []),
            "commands:\n  - |\n" + block(_commands(job, bucket), 4),
            _resources(job),
            _policies(job),
        ]
    )


def _files(out: Path) -> str:
    return f"files:\n  - local_path: {quoted(local_path(files_folder(out), out))}\n    path: {_ROOT}/job\n"


def _environment(job: Job, bucket: Bucket | None) -> str:
    names = [*(_ENVIRONMENT[bucket.scheme] if bucket else ()), *(["HF_TOKEN"] if job.uses_hub else [])]
    lines = ["HF_HUB_DISABLE_TELEMETRY=1", *names]
    comment = "  # names without a value are taken from your own environment" if names else ""
    return f"env:{comment}\n" + "".join(f"  - {name}\n" for name in lines)


def _commands(job: Job, bucket: Bucket | None) -> str:
    mount = ""
    if bucket is not None:
        place = shlex.quote(f"{bucket.name}/{bucket.prefix}".rstrip("/"))
        mount = f"""\
apt-get update -q && apt-get install -y -q rclone fuse3
mkdir -p {_KEPT}
rclone mount "{_BACKENDS[bucket.scheme]}:"{place} {_KEPT} --daemon
"""
    return f"""\
set -eu
{mount}uv venv --python 3.12 {_ROOT}/env
{install_script(job, root=_ROOT)}{run_script(job, root=_ROOT, python=f"{_ROOT}/env/bin/python", kept=_KEPT)}"""


def _resources(job: Job) -> str:
    rent = job.rent
    return (
        "resources:\n"
        f"  cpu: {CORES_PER_CARD * rent.count}..\n"
        f"  memory: {rent.ram_gib}GB..\n"
        f"  disk: {rent.disk_gib}GB..\n"
        "  gpu:\n"
        f"    name: {dstack_name(rent.card)}\n"
        f"    memory: {round(rent.card.vram_bytes / GIB)}GB\n"
        f"    count: {rent.count}\n"
    )


def _policies(job: Job) -> str:
    lines = [f"spot_policy: {'spot' if job.terms.spot else 'on-demand'}"]
    lines += ["retry:", "  on_events: [no-capacity, interruption, error]", f"  duration: {RETRY_DURATION}"]
    if job.rent.most_usd_per_hour:
        lines += [f"max_price: {job.rent.most_usd_per_hour}  # dollars an hour; dearer machines are not taken"]
    if job.terms.hours:
        lines += [
            f"max_duration: {math.ceil(job.terms.hours) + 2}h  # the run itself stops after {job.terms.hours:g} h"
        ]
    lines += ["stop_duration: 10m  # to save", "idle_duration: 5m"]
    return "\n".join(lines) + "\n"
