"""`export sky|dstack`: a job file.

Owns the text and JSON. Must not know the formats (`engine.remote.jobfile_sky`, `engine.remote.jobfile_dstack`).
"""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from scaler_tui import output

if TYPE_CHECKING:
    from engine.remote.jobfile import Terms

_TOOLS = {"sky": "SkyPilot", "dstack": "dstack"}


def export_job(arguments: argparse.Namespace) -> int:
    """Write the job file and the folder it uploads. Raises EngineError."""
    from engine.advise.overrides import Settings
    from engine.jobs.spec_toml import load_spec
    from engine.remote.jobfile import make_job, write_job
    from engine.remote.jobfile_dstack import dstack_text
    from engine.remote.jobfile_sky import sky_text
    from engine.remote.rent import rent_for
    from scaler_tui.commands.estimate import job_of_spec

    path = _spec_path(arguments.spec)
    terms = _terms(arguments, path)
    spec = load_spec(path)
    found = job_of_spec(path, arguments.gpu, Settings()).found
    rent = rent_for(
        found, spec.distributed.processes, named=bool(arguments.gpu), force=arguments.force, known=arguments.tool
    )
    job = make_job(spec, base=path.parent, rent=rent, terms=terms)
    out = arguments.out or Path(f"{job.name}.{arguments.tool}.yaml")
    text = (sky_text if arguments.tool == "sky" else dstack_text)(job, out)
    folder = write_job(text, job, out, force=arguments.force)
    if arguments.json:
        output.emit_json(
            {
                "file": str(out),
                "folder": str(folder),
                "tool": arguments.tool,
                "card": rent.card.name,
                "count": rent.count,
                "usd_per_hour": rent.usd_per_hour,
                "uploads": [put.value for put in job.inputs],
                "uploaded_files": [str(path) for put in job.inputs for path, _ in put.files],
            }
        )
        return int(ExitCode.DONE)
    output.say(f"Wrote {out} and {folder}, which it uploads: the spec, this program and the files the spec names.")
    output.say(f"Machine: {rent.words}{', spot' if terms.spot else ''}.")
    for put in job.inputs:
        count = len(put.files)
        output.say(f"Uploads: {put.value}" + (f" ({count} files)" if count > 1 else ""))
    if not job.spec.cost.budget_usd:
        output.note("No budget is set, so nothing stops it but its end; --budget USD sets one.")
    launch = "sky jobs launch" if arguments.tool == "sky" else "dstack apply -f"
    output.note(f"Start it with {_TOOLS[arguments.tool]}: {launch} {shlex.quote(str(out))}")
    return int(ExitCode.DONE)


def _spec_path(named: Path) -> Path:
    """The spec itself, or that of a run: its id, its folder or "latest". Raises EngineError `run.*`."""
    from engine.jobs import elsewhere, layout
    from engine.jobs.store import find_run

    if named.is_file() or named.suffix == ".toml":
        return named
    run_dir = find_run(str(named))
    if elsewhere.is_elsewhere(run_dir):
        raise EngineError(
            "run.elsewhere",
            f"The spec of run {run_dir.name} names files of another machine.",
            next_step="Give the spec.toml that it was started with.",
        )
    return run_dir / layout.SPEC


def _terms(arguments: argparse.Namespace, spec: Path) -> Terms:
    from engine.remote.jobfile import Terms, parse_bucket

    if arguments.volume and arguments.tool != "dstack":
        raise EngineError(
            "usage", "--volume is dstack's.", next_step="SkyPilot keeps runs in a bucket: --bucket s3://name"
        )
    if not all(math.isfinite(value) and value >= 0 for value in (arguments.budget, arguments.hours)):
        raise EngineError("usage", "A budget and hours are above zero.", next_step="Leave them out for no limit.")
    if arguments.out is not None and arguments.out.resolve() == spec.resolve():
        raise EngineError("usage", "--out names the spec itself.", next_step="Give the job file a name of its own.")
    return Terms(
        name=arguments.name,
        bucket=parse_bucket(arguments.bucket),
        volume=arguments.volume,
        spot=not arguments.on_demand,
        budget_usd=arguments.budget,
        hours=arguments.hours,
    )
