"""Signs of life of the processes of a run on several cards: one small file each, replaced once a second.

Owns the files `ranks/0000.json`, and the judgement who is lost or hung. Must not know torch, nor start or end anything
(`engine.jobs.crew`). A process that is stopped or swapped out writes no signs at all; one that waits for ever in the
middle of a step still does, so a sign also says what its process is doing and how often that has changed. Silence is
measured by what the reader has seen of its own clock: those of other machines are never compared, and what it slept
itself does not count.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from engine.jobs.liveness import START_TOLERANCE_SECONDS, host_name, process_start

FOLDER = "ranks"
POLL_SECONDS = 1.0
PATIENCE_FACTOR = 10.0
"""So many times longer may a process be silent that reads or writes files: it may hold the interpreter meanwhile."""
SLOW_FACTOR = 4.0
"""A step's part may take so many times the longest one so far before its process counts as hung."""
PHASE_FACTOR = 120.0
"""So many times longer may the first step stand still, and whatever is no step: nobody knows how long a benchmark or a
save may take, but they say how far they are."""
START_SECONDS = 300.0
"""At least so long a process may take until its first sign: launchers wait for each other before they start any."""
LOOK_SECONDS = 5.0
"""A look counts for no more: what is longer is time that the reader itself was stopped."""
WORKING, LEFT, FAILED = "working", "left", "failed"
PEER, MEMORY, ERROR, AGAIN = "peer", "memory", "error", "again"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a process gave up, in words."""

    kind: str = ERROR
    """PEER: another process was gone; MEMORY ran out in a step, whose micro-batches can be computed in smaller pieces;
    AGAIN: the run is to go on from its last checkpoint in another way, which the journal says; ERROR: what would happen
    again."""
    what: str
    cause: str = ""
    next_step: str = ""


class Sign(msgspec.Struct, frozen=True, kw_only=True):
    """One process as it is now."""

    rank: int
    world: int
    pid: int
    process_start: float
    host: str
    beat: int = 0
    """Rises with every sign."""
    moves: int = 0
    """Rises whenever `doing` changes."""
    doing: str = ""
    step: int = 0
    """Of the job; under way, or the last one."""
    part: int = 0
    """Rises with `moves` and begins anew with every step, so that it can be compared between processes."""
    waits: bool = False
    """For the first process, which works alone."""
    in_step: bool = False
    """Computing a step, not waiting for another process to do something that may take long."""
    slow: bool = False
    """Doing what may keep its signs back: importing, reading or writing large files."""
    pieces: int = 1
    """In which micro-batches are computed (memory)."""
    state: str = WORKING
    failure: Failure | None = None
    failed_at: float = 0.0
    v: int = 1

    @property
    def who(self) -> str:
        """ "rank 1 (pid 4711 on host)"."""
        return f"rank {self.rank} (pid {self.pid} on {self.host})"

    @property
    def is_here(self) -> bool:
        """Whether the process id can be looked up on this machine."""
        return self.host == host_name()


def sign_path(run_dir: Path, rank: int) -> Path:
    """`ranks/0001.json`."""
    return run_dir / FOLDER / f"{rank:04}.json"


def write_sign(run_dir: Path, sign: Sign) -> None:
    """Whole or not at all; not flushed to the disk, since it is worth nothing after a power cut."""
    path = sign_path(run_dir, sign.rank)
    staging = path.with_suffix(f".{sign.pid}")
    staging.write_bytes(msgspec.json.encode(sign))
    staging.replace(path)


def read_sign(run_dir: Path, rank: int) -> Sign | None:
    """None where there is none."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(sign_path(run_dir, rank).read_bytes(), type=Sign)
    return None


def read_signs(run_dir: Path, world: int) -> tuple[Sign, ...]:
    """Those there are."""
    return tuple(sign for rank in range(world) if (sign := read_sign(run_dir, rank)) is not None)


def clear_signs(run_dir: Path) -> None:
    """Before the processes of an attempt start."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    for path in folder.glob("[0-9]*.json"):
        path.unlink(missing_ok=True)


# ── judgement ─────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that ends this attempt."""

    kind: str
    """ "process lost", "process hung", "out of memory", "again" where the journal has it already, or "failed": what
    would happen again."""
    ranks: tuple[int, ...]
    step: int
    what: str
    failure: Failure | None = None
    pieces: int = 1
    """Of the process that ran out of memory."""


@dataclass(slots=True)
class _Watched:
    """What is known of one process. Mutable: every look adds to it."""

    sign: Sign
    beat_seen: float
    move_seen: float
    longest_seconds: float = 0.0
    """Of the parts of steps so far."""
    moves_in_steps: int = 0


@dataclass(slots=True)
class Watch:
    """Looks at the signs of one attempt, about once a second."""

    run_dir: Path
    world: int
    hang_seconds: float
    _known: dict[int, _Watched] = field(default_factory=dict)
    _looked: float | None = None
    _seconds: float = 0.0
    """Watched so far."""
    _left: float | None = None
    """When the first process had left."""

    def look(self, now: float) -> Trouble | None:
        """`now`: of a clock that only rises, in seconds. None while all is well, or nothing can be said."""
        self._seconds += min(now - self._looked, LOOK_SECONDS) if self._looked is not None else 0.0
        self._looked, now = now, self._seconds
        for sign in read_signs(self.run_dir, self.world):
            self._take(sign, now)
        watched = list(self._known.values())
        signs = [one.sign for one in watched]
        if any(sign.rank == 0 and sign.state == LEFT for sign in signs):
            self._left = now if self._left is None else self._left
            return None  # the first process says when all is done
        return (
            failed(signs)
            or self._lost(watched, now)
            or self._silent(watched, now)
            or self._stuck(watched, now)
            or self._unseen(now)
        )

    @property
    def step(self) -> int:
        """The furthest that any has come to."""
        return max((one.sign.step for one in self._known.values()), default=0)

    @property
    def is_over(self) -> bool:
        """Whether the first process has left in good order."""
        return self._left is not None

    @property
    def is_overdue(self) -> bool:
        """Whether all was done long ago: whoever has not left since then never will."""
        return self._left is not None and self._seconds - self._left >= self.hang_seconds

    def _take(self, sign: Sign, now: float) -> None:
        known = self._known.get(sign.rank)
        if known is None or known.sign.pid != sign.pid:
            self._known[sign.rank] = _Watched(sign, now, now)
            return
        if sign.beat != known.sign.beat:
            known.beat_seen = now
        if sign.moves != known.sign.moves:
            if known.sign.in_step and sign.in_step:
                known.longest_seconds = max(known.longest_seconds, now - known.move_seen)
                known.moves_in_steps += 1
            known.move_seen = now
        known.sign = sign

    def _lost(self, watched: Sequence[_Watched], now: float) -> Trouble | None:
        gone = [one for one in watched if one.sign.state == WORKING and is_gone(one.sign)]
        if not gone:
            return None
        words = [f"{one.sign.who} is gone without a word" for one in gone]
        return _trouble("process lost", gone, now, words)

    def _silent(self, watched: Sequence[_Watched], now: float) -> Trouble | None:
        """No sign at all: the whole process is stopped, or its machine is out of reach."""
        silent = [
            one
            for one in watched
            if one.sign.state == WORKING
            and now - one.beat_seen >= self.hang_seconds * (PATIENCE_FACTOR if one.sign.slow else 1.0) - POLL_SECONDS
        ]
        if not silent:
            return None
        words = [f"{one.sign.who} gives no sign of life" for one in silent]
        return _trouble("process hung", silent, now, words)

    def _stuck(self, watched: Sequence[_Watched], now: float) -> Trouble | None:
        """All give signs, and nothing moves: those that have come least far hold the others up."""
        if not watched:
            return None
        longest = max(one.longest_seconds for one in watched)
        if all(one.sign.in_step and one.moves_in_steps for one in watched):
            limit = max(self.hang_seconds - POLL_SECONDS, SLOW_FACTOR * longest)
        else:
            limit = max(self.hang_seconds * PHASE_FACTOR, SLOW_FACTOR * longest)
        if any(now - one.move_seen < limit for one in watched):
            return None
        busy = [one for one in watched if not one.sign.waits] or watched
        least = min((one.sign.step, one.sign.part) for one in busy)
        behind = [one for one in busy if (one.sign.step, one.sign.part) == least]
        words = [f"{one.sign.who} does not get on" for one in behind]
        return _trouble("process hung", behind, now, words)

    def _unseen(self, now: float) -> Trouble | None:
        """Never began: its machine is out of reach, or the launchers have not found each other."""
        missing = tuple(rank for rank in range(self.world) if rank not in self._known)
        if not missing or now < max(START_SECONDS, self.hang_seconds * PATIENCE_FACTOR):
            return None
        named = ", ".join(str(rank) for rank in missing)
        several = len(missing) > 1
        what = f"Rank{'s' if several else ''} {named} of {self.world} {'have' if several else 'has'} not begun "
        return Trouble("process hung", missing, self.step, f"{what}after {now:.0f} s.")


def is_gone(sign: Sign) -> bool:
    """Whether its process has ended; False for processes of other machines."""
    if not sign.is_here:
        return False
    started = process_start(sign.pid)
    return started is None or abs(started - sign.process_start) > START_TOLERANCE_SECONDS


def _doing(sign: Sign) -> str:
    """What it said it was doing, and in which step where that does not say it."""
    words = sign.doing or "starting"
    return words if "step" in words or not sign.step else f"{words}, step {sign.step}"


def _trouble(kind: str, who: Sequence[_Watched], now: float, words: Iterable[str]) -> Trouble:
    told = "; ".join(
        f"{text} (last sign {now - one.beat_seen:.0f} s ago: {_doing(one.sign)})"
        for one, text in zip(who, words, strict=True)
    )
    ranks = tuple(one.sign.rank for one in who)
    return Trouble(kind, ranks, max(one.sign.step for one in who), f"{told[0].upper()}{told[1:]}.")


def failed(signs: Sequence[Sign]) -> Trouble | None:
    """The process that gave up for a reason of its own; None when none did, or all only because others were gone."""
    own = [sign for sign in signs if sign.failure is not None and sign.failure.kind != PEER]
    if not own:
        return None
    first = min(own, key=lambda sign: sign.failed_at)
    assert first.failure is not None
    kind = {MEMORY: "out of memory", AGAIN: "again"}.get(first.failure.kind, "failed")
    what = f"{first.who[0].upper()}{first.who[1:]}: {first.failure.what}"
    return Trouble(kind, (first.rank,), first.step, what, first.failure, first.pieces)


def cut_off(signs: Sequence[Sign]) -> Trouble | None:
    """Processes that lost the others, where none of them says why."""
    torn = [sign for sign in signs if sign.failure is not None and sign.failure.kind == PEER]
    if not torn or any(sign.rank == 0 and sign.state == LEFT for sign in signs):
        return None
    first = min(torn, key=lambda sign: sign.failed_at)
    what = f"{first.who[0].upper()}{first.who[1:]} lost the connection to the others ({first.doing})."
    return Trouble("process lost", (first.rank,), first.step, what, first.failure)


def own_sign(rank: int, world: int) -> Sign:
    """Of this process, before it does anything."""
    pid = os.getpid()
    return Sign(rank=rank, world=world, pid=pid, process_start=process_start(pid) or 0.0, host=host_name())
