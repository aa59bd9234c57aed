"""What a teacher scored on held-out rows, kept beside its cached logits: who finds those need not load it.

Owns `scores.json` of a folder of logits. Must not know how logits or scores are made.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from engine.data.rows import EncodedRow
from engine.errors import EngineError
from engine.jobs import layout
from engine.jobs.spec import EvaluationSection

SCORES = "scores.json"


class TeacherScores(msgspec.Struct, frozen=True):
    """On some held-out rows."""

    task_loss: float | None = None
    exact_match: float | None = None


def scores_key(rows: Iterable[EncodedRow], section: EvaluationSection) -> str:
    """Of the rows and of how many of them are answered at which length."""
    digest = hashlib.sha256(f"{section.exact_match_rows}|{section.max_new_tokens}".encode())
    for row in rows:
        digest.update(repr((row.input_ids, row.trained)).encode())
    return digest.hexdigest()[:32]


def kept_scores(folder: Path, key: str) -> TeacherScores:
    """Empty where nobody measured the teacher on those rows."""
    return _read(folder).get(key, TeacherScores())


def keep_scores(folder: Path, key: str, scores: TeacherScores) -> None:
    """A folder that cannot be written to keeps none."""
    if scores.task_loss is None or kept_scores(folder, key) == scores:
        return
    known = {**_read(folder), key: scores}
    with contextlib.suppress(EngineError, OSError):
        layout.write_atomic(folder / SCORES, msgspec.json.format(msgspec.json.encode(known)) + b"\n")


def _read(folder: Path) -> dict[str, TeacherScores]:
    try:
        return msgspec.json.decode((folder / SCORES).read_bytes(), type=dict[str, TeacherScores])
    except (OSError, msgspec.MsgspecError):
        return {}
