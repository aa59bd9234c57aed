"""Lines of a process passed on in batches, so that a screen hears of them only so often.

Owns the queue between the thread that reads and the one that posts. Must not know what the lines mean.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

L = TypeVar("L")


class Batches(Generic[L]):
    """`read` and `pass_on` run in a thread each."""

    def __init__(self, seconds: float) -> None:
        """At most one batch in so many seconds."""
        self._seconds = seconds
        self._lines: queue.Queue[L | None] = queue.Queue()

    def read(self, lines: Iterable[L]) -> None:
        """All of them, to the end."""
        try:
            for line in lines:
                self._lines.put(line)
        finally:
            self._lines.put(None)

    def pass_on(self, post: Callable[[tuple[L, ...], bool], None]) -> None:
        """`post(lines, running)` until one call says that nothing runs any more; that one may have no lines."""
        posted, running = 0.0, True
        while running:
            batch = self._wait_for_some(posted + self._seconds)
            running = None not in batch
            post(tuple(line for line in batch if line is not None), running)
            posted = time.monotonic()

    def _wait_for_some(self, due: float) -> list[L | None]:
        """At least one line, and all that come before `due`; None among them ends it."""
        batch = [self._lines.get()]
        while batch[-1] is not None:
            left = due - time.monotonic()
            try:
                batch.append(self._lines.get(timeout=left) if left > 0 else self._lines.get_nowait())
            except queue.Empty:
                break
        return batch
