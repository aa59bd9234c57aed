"""Which piece of a plan every step trains on, and at which share of the rate, after the loss has leapt.

Owns that rule and `setbacks.json`, which every attempt reads: killed anywhere, a run goes the way it had gone. Must not
know data, optimizers or the loop. A plan has windows, one per step; step n takes window n until there is a setback:

    step      1  2  3  4* | 3  4  5  ...        4* leapt; the last checkpoint was that of step 2
    window    0  1  2  3  | 4  5  6  ...        the windows since then, the leap's among them, are not trained again
    rate      1  1  1  1  | .5 .5 .5 ...

The leap of a step may come from its own data or from an update shortly before it; which, the loss does not say. So all
data since the checkpoint is passed over (as PaLM's training did, arXiv 2204.02311, section 5.1) and the rate is halved.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import msgspec

from engine.jobs import layout

SETBACKS = "setbacks.json"
RATE_FACTOR = 0.5
"""Of every setback."""


class GoBack(Exception):
    """The attempt is to begin again from its newest checkpoint; what was decided is in `setbacks.json`."""


class Setback(msgspec.Struct, frozen=True, kw_only=True):
    """One leap of the loss. Steps and windows count within the stage, from 0."""

    stage: int
    step: int
    """The step that leapt."""
    back_to: int
    """The first step that is done again."""
    last_window: int
    """Of those that are passed over: what the leaping step was trained on."""
    first_window: int
    what: str


def read_setbacks(run_dir: Path) -> tuple[Setback, ...]:
    """In the order they happened."""
    path = run_dir / SETBACKS
    return msgspec.json.decode(path.read_bytes(), type=tuple[Setback, ...]) if path.is_file() else ()


def keep_setbacks(run_dir: Path, setbacks: Sequence[Setback]) -> None:
    """Whole or not at all; before anything else follows from them."""
    layout.write_atomic(run_dir / SETBACKS, msgspec.json.format(msgspec.json.encode(tuple(setbacks))))


class Course:
    """The way through one stage's plan. Threads may share it: a step is read ahead while another one is computed."""

    def __init__(self, setbacks: Sequence[Setback] = (), windows: int = 0) -> None:
        """`setbacks` of this stage; `windows` of a plan that ends, 0 for one that never does. After its end a plan
        begins anew, without what was passed over."""
        self.setbacks = tuple(setbacks)
        self._windows = windows
        self._found = array("q")
        """Window of step n; grows as far as it was asked for."""
        self._growing = Lock()

    def window_of(self, step: int) -> int:
        """Never falls from step to step. Of a plan that ends it counts on: the plan's own number is the remainder."""
        if not self.setbacks and not self._windows:
            return step
        with self._growing:
            while len(self._found) <= step:
                self._found.append(self._next(len(self._found)))
            return self._found[step]

    def windows_before(self, step: int) -> int:
        """Windows behind the run when `step` steps are done, those that were passed over on the way included."""
        return self.window_of(step - 1) + 1 if step else 0

    def rate_factor(self, step: int) -> float:
        """Share of the planned rate."""
        return float(RATE_FACTOR ** sum(setback.back_to <= step for setback in self.setbacks))

    def _next(self, step: int) -> int:
        window = self._found[-1] + 1 if step else 0
        window = max(window, *(one.last_window + 1 for one in self.setbacks if one.back_to == step), 0)
        for _ in range(self._windows):
            if not any(self._passed_over(one, window) for one in self.setbacks):
                break
            window += 1
        return window

    def _passed_over(self, setback: Setback, window: int) -> bool:
        """In a later round through a plan that ends."""
        length = setback.last_window - setback.first_window
        return window > setback.last_window and (window - setback.first_window) % self._windows <= length
