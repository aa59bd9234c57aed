"""A spec as a job for rented machines: what is uploaded, what is run there, what is kept when a machine goes.

Owns what both tools' job files have in common, and writing them. Must not know either tool's format
(`jobfile_sky`, `jobfile_dstack`). Nothing is overwritten unless asked.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.jobs.spec import JobSpec
from engine.jobs.spec_paths import Named, NamedKind, map_files
from engine.jobs.spec_stream import HUB
from engine.jobs.spec_toml import dump_spec, spec_hash, with_absolute_paths
from engine.remote.inputs import Placed, placed
from engine.remote.rent import Rent
from engine.remote.wheel import Wheel, installed_versions, pack
from engine.units import format_hours

SPEC = "spec.toml"
CONSTRAINTS = "constraints.txt"
INPUTS = "inputs"
BUCKETS = {"s3": "S3", "gs": "GCS", "r2": "R2"}
"""Schemes of bucket addresses."""
RESTARTS = 3
"""After errors of the job itself; a machine that is taken away does not count."""

_BUCKET = re.compile(r"^(s3|gs|r2)://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(?:/([A-Za-z0-9._/=+-]*))?")


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where a run is kept."""

    scheme: str
    name: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Terms:
    """How the job is to be run."""

    name: str = ""
    bucket: Bucket | None = None
    volume: str = ""
    spot: bool = True
    budget_usd: float = 0.0
    hours: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """All that a job file is made of."""

    name: str
    model: str
    """As the user's spec names it."""
    spec: JobSpec
    """With file names relative to its folder there."""
    inputs: tuple[Placed, ...]
    """Each goes into a folder of its own number, from 1 on."""
    uses_hub: bool
    """Whether a model or text comes from the Hub, which may want a token."""
    wheel: Wheel
    rent: Rent
    terms: Terms
    key: str
    """Digits of the spec's hash."""

    @property
    def requirement(self) -> str:
        """What is installed there: the wheel, with what the spec needs beside."""
        return self.wheel.name + ("[benchmarks]" if self.spec.evaluation.tasks else "")


def make_job(spec: JobSpec, *, base: Path, rent: Rent, terms: Terms) -> Job:
    """File names in `spec` are relative to `base`. Raises EngineError `export.nodes`, `remote.input`."""
    if spec.distributed.nodes > 1:
        raise EngineError(
            "export.nodes",
            f"The spec wants {spec.distributed.nodes} machines; a job file is for one.",
            cause="Machines of one run share its folder, and rented ones have none in common.",
            next_step="Use the cards of one machine: distributed.nodes = 1, distributed.processes = 8.",
        )
    model, spec = spec.model.source, with_absolute_paths(spec, base.absolute())
    inputs: list[Placed] = []

    def moved(named: Named) -> str:
        if named.kind in (NamedKind.OUTPUT, NamedKind.CACHE):
            return ""
        found = placed(named)
        if found is None:
            return named.value
        inputs.append(found)
        return f"./{INPUTS}/{len(inputs)}" + (f"/{found.tail}" if found.tail else "")

    spec = _limited(map_files(spec, moved), rent, terms)
    key = spec_hash(spec)[:12]
    name = _slug(terms.name or spec.name or f"scaler-{key[:8]}")
    hub = _is_hub_id(spec.model.source) or any(source.path.startswith(HUB) for source in spec.sources)
    return Job(name, model, spec, tuple(inputs), hub, pack(), rent, terms, key)


def _is_hub_id(model: str) -> bool:
    return "/" in model and not model.startswith(("./", "/"))


def _limited(spec: JobSpec, rent: Rent, terms: Terms) -> JobSpec:
    """With a price, so that the run itself counts what it costs, over all machines, and stops in time."""
    cost = msgspec.structs.replace(
        spec.cost,
        usd_per_hour=spec.cost.usd_per_hour or rent.usd_per_hour,
        budget_usd=terms.budget_usd or spec.cost.budget_usd,
    )
    stop = msgspec.structs.replace(spec.stop, hours=terms.hours or spec.stop.hours)
    return msgspec.structs.replace(spec, cost=cost, stop=stop)


def parse_bucket(text: str) -> Bucket | None:
    """ "s3://name/prefix"; None for "". Raises EngineError `export.bucket`."""
    if not text:
        return None
    match = _BUCKET.fullmatch(text)
    if match is None or ".." in (match.group(3) or "").split("/"):
        raise EngineError(
            "export.bucket",
            f"'{text}' is no bucket.",
            next_step="Write s3://name, gs://name or r2://name, and a prefix of letters, digits, and . _ - = + /.",
        )
    return Bucket(match.group(1), match.group(2), (match.group(3) or "").strip("/"))


def write_job(text: str, job: Job, out: Path, *, force: bool) -> Path:
    """The job file and, beside it, the folder it uploads; returns that folder. Raises EngineError `file.exists`,
    `file.unwritable`."""
    folder = files_folder(out)
    if not force and (taken := next((path for path in (out, folder) if path.exists()), None)):
        raise EngineError(
            "file.exists",
            f"{taken} exists already and is left as it is.",
            next_step="Choose another name with --out, or replace it with --force.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _stage(job.inputs, folder / INPUTS)
        for old in folder.glob("*.whl"):
            old.unlink()
        (folder / SPEC).write_text(dump_spec(job.spec), encoding="utf-8")
        (folder / job.wheel.name).write_bytes(job.wheel.content)
        constraints = installed_versions(job.wheel.requirements)
        (folder / CONSTRAINTS).write_text("".join(f"{line}\n" for line in constraints), encoding="utf-8")
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EngineError(
            "file.unwritable",
            f"Cannot write {error.filename or out}.",
            cause=error.strerror or str(error),
            next_step="Choose a folder you can write to.",
        ) from error
    return folder


def _stage(inputs: tuple[Placed, ...], folder: Path) -> None:
    """Exactly the files that were found, whatever else their folders hold by the time of the upload. Links where the
    disk is the same, so that models take no room. Raises OSError."""
    if folder.is_dir():
        shutil.rmtree(folder)
    for number, found in enumerate(inputs, 1):
        for path, name in found.files:
            place = folder / str(number) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path.resolve(), place)
            except OSError:  # another disk, or one without links
                shutil.copyfile(path, place)


def files_folder(out: Path) -> Path:
    """`job.sky.yaml` uploads `job.sky.files`."""
    return out.with_suffix(".files")


def local_path(path: Path, out: Path) -> str:
    """As the job file names what lies here: relative where it lies below, else absolute."""
    path, base = path.absolute(), out.parent.absolute()
    return f"./{path.relative_to(base)}" if path.is_relative_to(base) else os.fspath(path)


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def run_script(job: Job, *, root: str, python: str, kept: str) -> str:
    """The same command every time: it begins the run, or goes on with what was kept of it. `root`, `python` and `kept`
    are words of the shell, quoted where they have to be."""
    return f"""\
set -eu
export SCALER_WIZARD_HOME={root}/home
mkdir -p {kept}
{python} -m scaler_tui run {root}/job/{SPEC} --keep {kept} &
job=$!
trap 'kill -TERM "$job"' TERM INT  # a machine that is taken away: save first
code=0
wait "$job" || code=$?
while kill -0 "$job" 2> /dev/null; do code=0; wait "$job" || code=$?; done
# 1: stopped on purpose, by the budget, a rule of the spec or a person. That is an end, not an error.
if [ "$code" -eq 1 ]; then exit 0; fi
exit "$code"
"""


def install_script(job: Job, *, root: str) -> str:
    """Into the environment below `root`, a word of the shell."""
    requirement = shlex.quote(job.requirement)
    return f"uv pip install --python {root}/env/bin/python -c {root}/job/{CONSTRAINTS} {root}/job/{requirement}\n"


def header(job: Job, tool: str, commands: Mapping[str, str], remarks: tuple[str, ...]) -> str:
    """The comment at the top: what it is and how it is used."""
    limit = job.spec.cost.budget_usd
    lines = [f"{tool} job: {job.spec.task.value} of {job.model}, written by scaler-wizard export."]
    width = max(len(command) for command in commands)
    lines += [f"  {command:<{width}}  {meaning}" for command, meaning in commands.items()]
    lines += [f"Machine: {job.rent.words}; {_hours_words(job)}."]
    lines += [f"It checkpoints and stops at ${limit:.2f}." if limit else "No budget: --budget USD sets one."]
    return "".join(f"# {line}".rstrip() + "\n" for line in (*lines, *remarks))


def _hours_words(job: Job) -> str:
    hours = job.rent.hours
    return f"about {format_hours(hours.likely)} ({format_hours(hours.low)} to {format_hours(hours.high)})"


def quoted(text: str) -> str:
    """A YAML string; JSON's are a subset."""
    return json.dumps(text, ensure_ascii=False)


def block(text: str, indent: int) -> str:
    """A literal block scalar's lines."""
    return "".join(f"{' ' * indent}{line}".rstrip() + "\n" for line in text.splitlines())


def _slug(text: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:36].strip("-")
    return slug if slug[:1].isalpha() and len(slug) > 1 else f"job-{slug}".strip("-")
