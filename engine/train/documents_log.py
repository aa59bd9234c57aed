"""`documents.jsonl`: which documents every step was made of, for who wants to know what a model has seen.

Owns the file: a line per step, appended; what was written after the checkpoint that a run goes on from is cut off, so
that the file tells of the run as it is. Must not know text. A line is a step and its documents, each with its source,
its number there, the epoch, and the tokens of it that were trained on:

    {"step": 12, "documents": [["web", 4711, 0, 0, 512], ...]}
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

NAME = "documents.jsonl"


class DocumentRecord(NamedTuple):
    """Part of a document, or all of it."""

    source: str
    document: int
    """Its number in the source, in the order it was read."""
    epoch: int
    from_token: int
    to_token: int
    """Exclusive; the end token counts as the document's last."""


class Line(msgspec.Struct, frozen=True):
    """One step."""

    step: int
    documents: tuple[DocumentRecord, ...]


class DocumentsLog:
    """Appends."""

    def __init__(self, run_dir: Path, done_steps: int) -> None:
        """`done_steps`: of the checkpoint that the attempt begins with; later lines are cut off."""
        path = run_dir / NAME
        rewind(path, done_steps)
        self._file = path.open("ab")

    def add(self, step: int, documents: Iterable[DocumentRecord]) -> None:
        """A step is done."""
        self._file.write(msgspec.json.encode(Line(step, tuple(documents))) + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """On the disk before a checkpoint is, which must not know more steps than this file."""
        os.fsync(self._file.fileno())


def rewind(path: Path, done_steps: int) -> None:
    """Cut off what comes after step `done_steps`, and a last line that was not written to its end."""
    if not path.is_file():
        return
    kept = 0
    with path.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n") or msgspec.json.decode(line, type=Line).step > done_steps:
                break
            kept += len(line)
        file.truncate(kept)


def read_documents(run_dir: Path) -> Iterator[Line]:
    """All steps, in order."""
    with (run_dir / NAME).open("rb") as file:
        for line in file:
            yield msgspec.json.decode(line, type=Line)
