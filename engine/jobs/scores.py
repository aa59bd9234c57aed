"""What was predicted and what came: one line per ended run in `scores.jsonl`.

Owns the line's fields and the file. Must not know who predicts, nor what is concluded. Lines are appended whole by one
write; a line that cannot be read is passed over and counted, the others stand.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from engine.hardware.identity import Identity
from engine.jobs import layout
from engine.paths import data_home, ensure_writable

FILE = "scores.jsonl"
READ_BYTES = 4 << 20
"""The newest lines, some thousands; older ones are no longer looked at."""


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction and what was measured; 0 where nothing was."""

    low: float = 0.0
    likely: float = 0.0
    high: float = 0.0
    measured: float = 0.0

    @property
    def complete(self) -> bool:
        """Both sides are there."""
        return self.likely > 0 and self.measured > 0

    @property
    def error(self) -> float:
        """Predicted over measured, less 1: above 0 when too much was predicted."""
        return self.likely / self.measured - 1 if self.complete else 0.0

    @property
    def inside(self) -> bool:
        """The measured figure lies in the predicted range."""
        return self.low <= self.measured <= self.high


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Bytes, seconds, tokens per second."""

    run_id: str
    t: float
    machine: Identity
    outcome: str
    """ "finished", "stopped", or "out of memory"."""
    model: str
    workload: str
    """ "qlora, 4 x 256 tokens, rank 16"."""
    origin: str
    """Of the prediction the run was started with."""
    on_cpu: bool
    allocated: Promise = Promise()
    """By torch; not measured on a CPU."""
    reserved: Promise = Promise()
    process: Promise = Promise()
    """What the device must have: reserved and context, or resident memory on a CPU."""
    tokens_per_second: Promise = Promise()
    seconds: Promise = Promise()
    context_bytes: float = 0.0
    """Measured; 0 when it could not be."""
    formula_allocated_bytes: float = 0.0
    """By the formula without any correction: what a correction is learnt from."""
    formula_tokens_per_second: float = 0.0
    steps: int = 0
    v: int = 1


class ScoreBook(msgspec.Struct, frozen=True, kw_only=True):
    """The file as read, oldest first."""

    scores: tuple[Score, ...]
    notes: tuple[str, ...] = ()


def scores_path() -> Path:
    """Where the lines are."""
    return data_home() / FILE


def append_score(score: Score) -> Path:
    """Add a line; a run that is resumed and ends again adds another. Raises EngineError `home.unwritable`, OSError."""
    path = ensure_writable(data_home()) / FILE
    line = msgspec.json.encode(score) + b"\n"
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, (b"\n" if torn else b"") + line)
    finally:
        os.close(handle)
    return path


def read_scores() -> ScoreBook:
    """Every readable line; of a run that ended more than once the last."""
    path = scores_path()
    content = layout.read_tail(path, max_bytes=READ_BYTES)
    lines = content.split(b"\n")
    if len(content) == READ_BYTES:
        del lines[0]  # cut
    found: dict[str, Score] = {}
    damaged = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            score = msgspec.json.decode(line, type=Score)
        except msgspec.MsgspecError:
            damaged += 1
            continue
        found.pop(score.run_id, None)
        found[score.run_id] = score
    word = "line" if damaged == 1 else "lines"
    notes = (f"{damaged} {word} of {path} cannot be read and {'is' if damaged == 1 else 'are'} not used.",)
    return ScoreBook(scores=tuple(found.values()), notes=notes if damaged else ())


def scores_stamp() -> tuple[int, int]:
    """Changes with every line."""
    try:
        found = scores_path().stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)
