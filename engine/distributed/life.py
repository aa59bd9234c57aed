"""This rank's signs of life: a thread that writes one a second, and what it says of the work.

Owns the thread. Must not know torch, nor judge anybody (`engine.jobs.ranks`). A follower leaves when the leader has
left in good order, wherever it waits: there is no word that could reach it in the middle of a collective.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import msgspec

from engine.distributed.place import Place
from engine.jobs import ranks
from engine.jobs.ranks import Failure


class Life:
    """One per process. Mutable; the main thread says what it does, the other writes."""

    def __init__(self, run_dir: Path, place: Place, pieces: int = 1) -> None:
        self._run_dir = run_dir
        self.place = place
        self._lock = threading.Lock()
        self._sign = msgspec.structs.replace(
            ranks.own_sign(place.rank, place.world), pieces=pieces, doing="starting", slow=True
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signs", daemon=True)

    def start(self) -> None:
        """The first sign is there when this returns."""
        self._write()
        self._thread.start()

    def doing(
        self, words: str, *, step: int = -1, in_step: bool = False, slow: bool = False, waits: bool = False
    ) -> None:
        """What comes next. Costs nothing: it is written with the next sign."""
        with self._lock:
            sign = self._sign
            step = sign.step if step < 0 else step
            self._sign = msgspec.structs.replace(
                sign,
                doing=words,
                moves=sign.moves + 1,
                in_step=in_step,
                slow=slow,
                step=step,
                part=sign.part + 1 if step == sign.step else 1,
                waits=waits,
            )

    def computes_in(self, pieces: int) -> None:
        """Into how many pieces micro-batches are split."""
        with self._lock:
            self._sign = msgspec.structs.replace(self._sign, pieces=pieces)

    def leave(self) -> None:
        """The last sign: all is done."""
        self._end(ranks.LEFT)

    def fail(self, failure: Failure) -> None:
        """The last sign: this rank gives up."""
        self._end(ranks.FAILED, failure)

    def leader_has_left(self) -> bool:
        """Whether rank 0 has ended in good order."""
        sign = ranks.read_sign(self._run_dir, 0)
        return sign is not None and sign.state == ranks.LEFT

    def leaves_with_leader(self) -> bool:
        """On a follower whose work was cut off: was it because all is done? Leaves the process then."""
        if not self.place.leads and self.leader_has_left():
            self.leave()
            os._exit(0)
        return False

    def _end(self, state: str, failure: Failure | None = None) -> None:
        self._over.set()
        with self._lock:
            at = time.time() if failure is not None else 0.0
            self._sign = msgspec.structs.replace(self._sign, state=state, failure=failure, failed_at=at)
        self._write()

    def _write(self) -> None:
        with self._lock:
            self._sign = msgspec.structs.replace(self._sign, beat=self._sign.beat + 1)
            with contextlib.suppress(OSError):  # a full disk is met and reported by the main thread
                ranks.write_sign(self._run_dir, self._sign)

    def _run(self) -> None:
        while not self._over.wait(ranks.POLL_SECONDS):
            self._write()
            self.leaves_with_leader()
