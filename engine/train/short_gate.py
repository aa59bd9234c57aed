"""The limit of a job with `context.max_short_loss`: short text must not get worse by more than was allowed.

Owns the figures and the verdict in words. Must not know the loop, nor what is kept of a step that passed
(`engine.train.limits`).
Short text is `data.base_text` in pieces of at most the original window; "before" is the model as it was, with its
original positions, "now" the extended one as it would be served. Changes are of perplexity, so +0.05 is 5 % worse.

A fresh extension may be above the bound before any step and heal within a few: then the gate waits while it gets better
and closes when it gets worse than at the start, or above the bound after it had been below.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from engine.data.rows import EncodedRow
from engine.evaluation.model import LoadedModel
from engine.evaluation.rows import score_rows
from engine.jobs import layout
from engine.train.cutting import cut_rows
from engine.train.limits import Verdict

KEPT = "short.json"


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """`context/short.json`."""

    before: float
    """Loss of the model as it was, nats per token."""
    start: float
    """Of the extended one before the first step."""
    tokens: int
    good_step: int = 0
    """The newest evaluation that passed and whose adapter is kept; 0 for none."""
    good_change: float = 0.0


class ShortGate:
    """One per attempt."""

    guards = True

    def __init__(self, folder: Path, figures: Figures, bound: float, now: Callable[[], float], every: int) -> None:
        """`every` so many steps it is looked at, and after the last one."""
        self.folder, self.figures, self.bound, self.every = folder, figures, bound, every
        self._now = now
        self._change = 0.0

    def look(self, step: int, *, last: bool = False) -> Verdict | None:
        """Measure now and judge; None where this step is not looked at."""
        if not last and (not self.every or step % self.every):
            return None
        figures = self.figures
        change = self._change = _change(figures.before, self._now())
        passed = change <= self.bound
        words = f"Short text is {_percent(change)} against the model before (bound {_percent(self.bound)})"
        if passed:
            return Verdict(True, False, f"{words}.")
        start = _change(figures.before, figures.start)
        if figures.good_step:
            was = f"At step {figures.good_step} it was {_percent(figures.good_change)}."
            return Verdict(False, True, f"{words} at step {step}: training stops. {was}")
        if change >= start:
            way = "Use a gentler method, a smaller learning rate or more short text."
            return Verdict(False, True, f"{words}, no better than before the first step: it stops. {way}")
        return Verdict(False, False, f"{words}; it began at {_percent(start)} and is getting better.")

    def kept(self, step: int) -> None:
        """The step that was looked at passed, and its checkpoint is kept."""
        self.figures = msgspec.structs.replace(self.figures, good_step=step, good_change=self._change)
        write_figures(self.folder, self.figures)


def open_gate(
    folder: Path,
    loaded: LoadedModel,
    base_text: Sequence[EncodedRow],
    length: int,
    bound: float,
    before: Callable[[], contextlib.AbstractContextManager[object]],
    every: int,
) -> ShortGate:
    """The gate, its two figures of the start measured once per run. `before` opens the model as it was; `length` is the
    original window; `every` so many steps it is looked at."""
    rows = cut_rows(base_text, length).rows

    def now() -> float:
        return score_rows(loaded, rows).loss

    with contextlib.suppress(OSError, msgspec.MsgspecError):
        kept = msgspec.json.decode((folder / KEPT).read_bytes(), type=Figures)
        return ShortGate(folder, kept, bound, now, every)
    with before():
        untouched = score_rows(loaded, rows)
    with loaded.base_only():
        start = now()
    figures = Figures(before=untouched.loss, start=start, tokens=untouched.tokens)
    folder.mkdir(exist_ok=True)
    write_figures(folder, figures)
    return ShortGate(folder, figures, bound, now, every)


def write_figures(folder: Path, figures: Figures) -> None:
    """`short.json`, replaced as a whole."""
    layout.write_atomic(folder / KEPT, msgspec.json.format(msgspec.json.encode(figures)))


def _change(before: float, after: float) -> float:
    return math.exp(min(after - before, 50.0)) - 1


def _percent(change: float) -> str:
    return f"{change:+.1%}"
