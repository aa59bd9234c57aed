"""What may end a training because something was lost, looked at together, and the newest checkpoint that lost nothing.

Owns `good/` in the run directory: that checkpoint's weights under a name of their own, so that pruning does not take
them. Must not know what is measured: short text is `short_gate`'s, suites and benchmarks are
`engine.evaluation.retention`'s.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from engine.evaluation.model import LoadedModel
from engine.evaluation.retention import Watch
from engine.jobs import layout

GOOD = "good"
_KEPT = "good.json"
_NOT_KEPT = ("optimizer.pt", "scheduler.pt", "rng_state", "manifest.json", "trainer_state.json")
"""Beginnings of names: what only a training that goes on would need."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One look."""

    passed: bool
    """Whether a checkpoint of this step may be gone back to."""
    closes: bool
    """Whether training is to stop."""
    words: str = ""


class Limit(Protocol):
    """One thing that must not be lost."""

    @property
    def guards(self) -> bool:
        """Whether it can end a training; else looking only measures."""
        ...

    def look(self, step: int, *, last: bool) -> Verdict | None:
        """Measure and judge; None where this step is not looked at."""
        ...

    def kept(self, step: int) -> None:
        """The checkpoint of `step` is now the one that would be gone back to."""
        ...


class _Good(msgspec.Struct, frozen=True, kw_only=True):
    """`good/good.json`."""

    step: int
    stage: int


class Limits:
    """Of one stage of one attempt."""

    def __init__(self, run_dir: Path, limits: Sequence[Limit], stage: int = 0) -> None:
        self.folder = run_dir / GOOD
        self._limits = tuple(limits)
        self._stage = stage

    def look(self, step: int, *, last: bool) -> Verdict | None:
        """All limits in one verdict; None where none of them was looked at. Passed is only what all of them saw."""
        found = [(limit.guards, limit.look(step, last=last)) for limit in self._limits]
        guarding = [verdict for guards, verdict in found if guards]
        seen = [verdict for verdict in guarding if verdict is not None]
        if not seen:
            return None
        closes = any(verdict.closes for verdict in seen)
        passed = not closes and len(seen) == len(guarding) and all(verdict.passed for verdict in seen)
        words = [verdict.words for verdict in seen if verdict.words]
        return Verdict(passed, closes, " ".join([*words, self._what_follows()] if closes else words))

    def _what_follows(self) -> str:
        good = self.good_step
        if not good:
            return "No checkpoint of this training kept every limit."
        return f"The result is that of step {good}, the last checkpoint that kept every limit."

    def keep(self, checkpoint: Path, step: int) -> None:
        """The weights in `checkpoint`, which has passed, are what a closed training ends with."""
        staging = self.folder.with_name(f".{GOOD}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for file in sorted(checkpoint.iterdir()):
            if file.is_file() and not file.name.startswith(_NOT_KEPT):
                _link(file, staging / file.name)
        layout.write_atomic(staging / _KEPT, msgspec.json.encode(_Good(step=step, stage=self._stage)))
        shutil.rmtree(self.folder, ignore_errors=True)
        staging.rename(self.folder)
        for limit in self._limits:
            limit.kept(step)

    @property
    def good_step(self) -> int:
        """Step of the newest checkpoint of this stage that kept every limit; 0 for none."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            good = msgspec.json.decode((self.folder / _KEPT).read_bytes(), type=_Good)
            return good.step if good.stage == self._stage else 0
        return 0


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


@dataclass(frozen=True, slots=True)
class WatchLimit:
    """[[retention]] limits with action "stop"; where there are none it only has things measured."""

    watch: Watch
    model: LoadedModel

    @property
    def guards(self) -> bool:
        return self.watch.may_stop

    def look(self, step: int, *, last: bool) -> Verdict | None:
        """Suites and benchmarks, where they are due."""
        found = self.watch.look(self.model, step, last=last)
        if not found.looked:
            return None
        return Verdict(found.passed, found.closes, found.words if not found.passed else "")

    def kept(self, step: int) -> None:
        """Nothing to note."""
