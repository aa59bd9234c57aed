"""How far growing is: a line that is drawn over on a terminal, plain lines elsewhere, nothing with `--json`.

Owns those lines on stderr. Must not know what is grown: phases, bytes done and in all are given.
"""

from __future__ import annotations

import os
import shutil
import sys
import time

from engine.units import format_bytes, format_duration
from scaler_tui import output
from scaler_tui.terminal import draws_in_place

FOLLOWED = "SCALER_WIZARD_FOLLOWED"
"""In the environment of a command whose notes the wizard shows."""
REDRAW_SECONDS = 0.1
SHORTEST_BAR = 8
LONGEST_BAR = 30
SETTLING_SECONDS = 1.0
"""Before this much of a phase there is no telling how long the rest takes."""


def remaining_seconds(done: int, total: int, seconds: float) -> float | None:
    """How long the rest takes at the speed so far; None while nobody can tell."""
    if not 0 < done < total or seconds < SETTLING_SECONDS:
        return None
    return seconds * (total - done) / done


def progress_words(phase: str, done: int, total: int, seconds: float, *, counts_bytes: bool = True) -> str:
    """ "writing  3.10 of 13.2 GiB  23 %  41 s left"."""
    if not total:
        return phase
    done_text, total_text = (format_bytes(done), format_bytes(total)) if counts_bytes else (f"{done:,}", f"{total:,}")
    number, _, unit = done_text.partition(" ")
    if unit and unit == total_text.partition(" ")[2]:
        done_text = number
    words = f"{phase}  {done_text} of {total_text}  {done * 100 // total} %"
    left = remaining_seconds(done, total, seconds)
    return words if left is None else f"{words}  {format_duration(left)} left"


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, phase: str, done: int = 0, total: int = 0, *, counts_bytes: bool = True) -> None:
        """What is done, and how much of it; 0 of 0 where it cannot be counted."""

    def close(self) -> None:
        """End the line."""


class Lines(Silent):
    """A line per phase and per tenth of it: for logs, pipes and screen readers."""

    def __init__(self) -> None:
        self._phase = ""
        self._tenth = 0
        self._began = 0.0

    def show(self, phase: str, done: int = 0, total: int = 0, *, counts_bytes: bool = True) -> None:
        """Print what is new."""
        if phase != self._phase:
            self._phase, self._tenth, self._began = phase, 0, time.monotonic()
            output.note(f"[{phase}]")
        tenth = done * 10 // total if total else 0
        if tenth > self._tenth:
            self._tenth = tenth
            seconds = time.monotonic() - self._began
            output.note("  " + progress_words(phase, done, total, seconds, counts_bytes=counts_bytes))


class InPlace(Silent):
    """One line that is drawn over."""

    def __init__(self) -> None:
        self._phase = ""
        self._began = 0.0
        self._drawn = 0.0
        self._cells = 0

    def show(self, phase: str, done: int = 0, total: int = 0, *, counts_bytes: bool = True) -> None:
        """Draw, at most ten times a second and always when a phase begins or ends."""
        now = time.monotonic()
        news = phase != self._phase
        if news:
            self._phase, self._began = phase, now
        if not news and done < total and now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        words = progress_words(phase, done, total, now - self._began, counts_bytes=counts_bytes)
        self._draw(words, done / total if total else None)

    def _draw(self, words: str, share: float | None) -> None:
        width = shutil.get_terminal_size().columns - 1
        cells = min(width - len(words) - 2, LONGEST_BAR)
        line = words[:width]
        if share is not None and cells >= SHORTEST_BAR:
            full, empty = ("━", "─") if output.stderr_is_utf8() else ("#", "-")
            filled = int(share * cells)
            line = f"{words}  {full * filled}{empty * (cells - filled)}"
        output.draw(f"\r{line}{' ' * (self._cells - len(line))}")
        self._cells = len(line)

    def close(self) -> None:
        """Leave the terminal as if the line had never been there."""
        if self._cells:
            output.draw(f"\r{' ' * self._cells}\r")
            self._cells = 0


def growth_view(*, quiet: bool) -> Silent:
    """The view for this stderr. With `--json` nothing is shown, unless whoever started this reads it (FOLLOWED)."""
    if quiet and os.environ.get(FOLLOWED):
        return Lines()
    return Silent() if quiet else InPlace() if draws_in_place(sys.stderr) else Lines()
