"""Starts measurements, each in a process of its own, and keeps to a time limit.

Owns processes and the clock. Must not know what is compared with what. Processes import libraries side by side and take
turns at the card, so that each has it to itself while it is measured and timed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.rehearsal.orders import Measurement, Order

ROOT = Path(__file__).resolve().parents[2]
SHORTEST_SECONDS = 20.0
"""Less than this is not enough to measure anything."""


class Clock:
    """Seconds left of a limit."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Never below zero."""
        return max(self._end - time.monotonic(), 0.0)

    def but(self, reserve: float) -> Clock:
        """A clock that stops `reserve` seconds earlier."""
        return Clock(self.left - reserve)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A measurement, or the sentence that says why there is none."""

    measured: Measurement | None
    problem: str = ""


def run(order: Order, clock: Clock) -> Outcome:
    """Carry out one order in a process; stopped when the clock runs out."""
    if clock.left < SHORTEST_SECONDS:
        return Outcome(None, "skipped: the time limit was reached before it began")
    command = [sys.executable, "-m", "engine.rehearsal.measure"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(msgspec.json.encode(order), timeout=clock.left)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Outcome(None, "stopped: the time limit was reached while it ran")
    return read_answer(out, err, process.returncode)


def read_answer(out: bytes, err: bytes, code: int) -> Outcome:
    """What a process wrote."""
    try:
        answer: Any = msgspec.json.decode(out)
    except msgspec.DecodeError:
        last = (err.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        return Outcome(None, f"ended with code {code}: {last[:300]}")
    if "error" in answer:
        return Outcome(None, f"{answer['error'].get('what', '')} {answer['error'].get('cause', '')}".strip()[:400])
    return Outcome(msgspec.convert(answer, Measurement))
