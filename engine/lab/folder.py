"""The folder of a lab: what was asked, how arms were sized, which runs belong to it, and the report.

    labs/demo-lora-baseline-3f9a01cc/
      lab.toml        as it was read        record.json   sizes of the arms, machine, when; written once
      runs.jsonl      arm, seed and run id, appended before a run starts
      random/         models of arms that start at random
      report.json, report.html, report.md

Owns these names, reading and writing them, and the lock. Must not know what a run does. Runs lie with all others in
`runs/`; labs with equal arms and budget share a folder, so that starting one again goes on with it.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.jobs import layout, lock
from engine.jobs.spec_toml import spec_hash, with_absolute_paths
from engine.lab.lab_file import Lab
from engine.lab.sizing import Sizes
from engine.paths import data_home, ensure_writable, runs_dir

LAB = "lab.toml"
RECORD = "record.json"
RUNS = "runs.jsonl"
RANDOM = "random"
LOG = "helper.log"
REPORT, REPORT_PAGE, REPORT_TEXT = "report.json", "report.html", "report.md"
_LOCK = "lab.lock"


class RunEntry(msgspec.Struct, frozen=True):
    """One line of `runs.jsonl`."""

    arm: str
    seed: int
    run_id: str
    t: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided when the lab began; a lab that goes on keeps to it."""

    created: float
    machine: str
    program_version: str
    sizes: Sizes
    v: int = 1


@dataclass(frozen=True, slots=True)
class LabFolder:
    """A lab's place."""

    path: Path

    def record(self) -> Record | None:
        """None before the lab began. Raises EngineError `lab.damaged`."""
        path = self.path / RECORD
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise EngineError("lab.damaged", f"{path} cannot be read.", cause=str(error)) from error

    def begin(self, lab: Lab, record: Record) -> None:
        """Write `lab.toml` and the record."""
        layout.write_atomic(self.path / LAB, lab.text.encode())
        layout.write_atomic(self.path / RECORD, msgspec.json.format(msgspec.json.encode(record)) + b"\n")

    def runs(self) -> dict[tuple[str, int], Path]:
        """The newest run directory of every arm and seed that still exists, in the order they were begun."""
        found: dict[tuple[str, int], Path] = {}
        try:
            lines = (self.path / RUNS).read_bytes().splitlines()
        except FileNotFoundError:
            return found
        for line in lines:
            try:
                entry = msgspec.json.decode(line, type=RunEntry)
            except msgspec.MsgspecError:
                continue  # the last line of a lab that was killed in the middle of it
            run_dir = runs_dir() / entry.run_id
            if (run_dir / layout.SPEC).is_file():
                found.pop((entry.arm, entry.seed), None)
                found[(entry.arm, entry.seed)] = run_dir
        return found

    def note_run(self, arm: str, seed: int, run_dir: Path) -> None:
        """Append a run, durably, so that a kill after it loses nothing."""
        line = msgspec.json.encode(RunEntry(arm, seed, run_dir.name, round(time.time(), 3))) + b"\n"
        with (self.path / RUNS).open("ab") as file:
            if file.tell() and (self.path / RUNS).read_bytes()[-1:] != b"\n":
                file.write(b"\n")
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def random_model(self, arm: str, seed: int) -> Path:
        """Where the random model of an arm lies."""
        slug = re.sub(r"[^a-z0-9]+", "-", arm.lower()).strip("-")
        mark = hashlib.sha256(arm.encode()).hexdigest()[:4]
        return self.path / RANDOM / f"{slug}-{mark}-{seed}"

    @property
    def is_held(self) -> bool:
        """Whether a process works on it now."""
        return lock.is_locked(self.path / _LOCK)

    @contextmanager
    def held(self) -> Iterator[None]:
        """One process at a time works on a lab. Raises EngineError `lab.live`."""
        handle = lock.take(self.path / _LOCK, lock.PATIENCE_SECONDS)
        if handle is None:
            raise EngineError(
                "lab.live",
                f"Lab {self.path.name} is being worked on already.",
                next_step="Wait for it, or stop the other process with Ctrl+C.",
            )
        try:
            yield
        finally:
            os.close(handle)


def labs_dir() -> Path:
    """One folder per lab."""
    return data_home() / "labs"


def folder_of(lab: Lab) -> LabFolder:
    """The folder of this very lab, not made yet: named by what its runs depend on. Words, goals and more seeds do not
    lead to another one."""
    digest = hashlib.sha256(msgspec.json.encode((lab.file.budget, lab.file.points), order="sorted"))
    for arm in lab.arms:
        digest.update(f"{arm.name}\0{arm.start.value}\0{arm.initialisation}\0".encode())
        digest.update(spec_hash(with_absolute_paths(arm.spec, lab.base.absolute())).encode())
    return LabFolder(labs_dir() / f"{lab.file.name}-{digest.hexdigest()[:8]}")


def make(folder: LabFolder) -> LabFolder:
    """Create it. Raises EngineError `home.unwritable`."""
    ensure_writable(folder.path)
    return folder
