"""The runs a host has, and mirrors of those that were started there by hand or from another machine.

Owns finding a program on the host that can list them. Must not start anything there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import EngineError
from engine.jobs.elsewhere import RemoteRecord
from engine.paths import runs_dir
from engine.remote.begin import Place, Program, Wish, call, look, mirrored
from engine.remote.farside import order
from engine.remote.ssh import Host


class RunThere(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the host, as its own `runs --json` tells it."""

    id: str
    directory: str
    state: str
    task: str = ""
    name: str = ""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    created: float = 0.0
    started: float | None = None

    @property
    def mirrored(self) -> bool:
        """Whether it can be watched from here already."""
        return (runs_dir() / self.id / "remote.json").is_file()


@dataclass(frozen=True, slots=True)
class Listed:
    """What a host has."""

    place: Place
    program: Program | None
    runs: tuple[RunThere, ...]


def runs_there(host: Host, wish: Wish) -> Listed:
    """Newest first; nothing where the program was never put. Raises EngineError."""
    place = look(host, wish)
    program = _program(place, wish)
    if program is None:
        return Listed(place, None, ())
    found: Any = call(place.far, [*program.words, "runs", "--json"], program.environment)
    return Listed(place, program, tuple(msgspec.convert(run, RunThere) for run in found))


def attach(host: Host, wanted: str, wish: Wish) -> Path:
    """A mirror of a run there, by the beginning or ending of its id or "latest". Raises EngineError `remote.no_run`."""
    listed = runs_there(host, wish)
    fits = [run for run in listed.runs if run.id.startswith(wanted) or run.id.endswith(wanted)]
    if wanted == "latest":
        fits = list(listed.runs[:1])
    if len(fits) != 1 or listed.program is None:
        known = ", ".join(run.id for run in listed.runs[:8])
        raise EngineError(
            "remote.no_run",
            f"'{wanted}' fits {len(fits)} runs on {host.name}."
            if fits
            else f"There is no run '{wanted}' on {host.name}.",
            cause=f"Its runs: {known}." if known else "It has none.",
            next_step=f"See them: scaler-wizard remote {host.name} --list",
        )
    record = RemoteRecord(
        host=host.name,
        directory=fits[0].directory,
        ssh=host.program,
        python=listed.place.far.python,
        program=listed.program.words,
        environment=listed.program.environment,
    )
    return mirrored(listed.place.far, record)


def _program(place: Place, wish: Wish) -> Program | None:
    """The newest program there, in the newest environment made for it or on the python that was named."""
    home = ("SCALER_WIZARD_HOME", place.home)
    found = order(place.far, "programs", root=place.root)
    python = (wish.python and place.far.python) or found["environment"]
    if not (python and found["unpacked"]):
        return None
    return Program((python, "-P", "-m", "scaler_tui"), (home, ("PYTHONPATH", found["unpacked"])))
