"""What is known of a shard's documents beside their tokens: which are contaminated, and their MinHash signatures.

Owns those files: made while text is at hand, else from the tokens, kept beside the shard and checked when read. Must
not know sources.

    shard-00000.marks-KEY   one byte per document: shares a run with the evaluation of that key
    shard-00000.near        signatures, 128 x uint16 per document
Each begins with the SHA-256 of the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.corpus.contamination import EvaluationRuns
from engine.corpus.duplicates import MINIMA, signatures
from engine.corpus.shards import Shard, shard_path
from engine.corpus.tokenizer import TextTokenizer
from engine.jobs.layout import write_atomic

_DECODED_TOKENS = 1 << 20
_DIGEST_BYTES = 32
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a job needs to know of documents."""

    runs: EvaluationRuns | None
    near: bool

    def of(self, texts: Sequence[str]) -> Known:
        """From the texts themselves."""
        return Known(
            self.runs.found_in(texts) if self.runs is not None else np.zeros(len(texts), np.bool_),
            signatures(texts) if self.near else np.empty((len(texts), 0), np.uint16),
        )


@dataclass(frozen=True, slots=True)
class Known:
    """Of a row of documents."""

    contaminated: NDArray[np.bool_]
    """(n,)"""
    signatures: NDArray[np.uint16]
    """(n, MINIMA), or (n, 0) where they were not wanted."""

    @classmethod
    def nothing(cls, count: int) -> Known:
        """Of so many documents of which nothing was asked."""
        return cls(np.zeros(count, np.bool_), np.empty((count, 0), np.uint16))

    def __getitem__(self, rows: slice) -> Known:
        return Known(self.contaminated[rows], self.signatures[rows])


def write_known(folder: Path, number: int, wanted: Wanted, parts: Sequence[Known]) -> None:
    """Keep what was found while shard `number` was made."""
    if wanted.runs is not None:
        marks = np.concatenate([np.zeros(0, np.bool_), *(part.contaminated for part in parts)])
        _write(_marks_path(folder, number, wanted.runs), marks.astype(np.uint8))
    if wanted.near:
        empty = np.empty((0, MINIMA), np.uint16)
        _write(shard_path(folder, number, "near"), np.concatenate([empty, *(part.signatures for part in parts)]))


def known_of(folder: Path, number: int, shard: Shard, wanted: Wanted, tokenizer: TextTokenizer) -> Known:
    """What is known of a shard's documents; what is not there yet is made from its tokens."""
    count = len(shard.documents)
    marks = near = None
    if wanted.runs is not None:
        marks = _read(_marks_path(folder, number, wanted.runs), (count,), np.dtype(np.uint8))
    if wanted.near:
        near = _read(shard_path(folder, number, "near"), (count, MINIMA), np.dtype("<u2"))
    missing = Wanted(wanted.runs if marks is None else None, wanted.near and near is None)
    if missing.runs is not None or missing.near:
        parts = [missing.of(texts) for texts in _texts(shard, tokenizer)]
        write_known(folder, number, missing, parts)
        if missing.runs is not None:
            marks = np.concatenate([np.zeros(0, np.bool_), *(part.contaminated for part in parts)])
        if missing.near:
            near = np.concatenate([np.empty((0, MINIMA), np.uint16), *(part.signatures for part in parts)])
    return Known(
        np.zeros(count, np.bool_) if marks is None else marks.astype(np.bool_),
        np.empty((count, 0), np.uint16) if near is None else near,
    )


def forget(folder: Path, number: int) -> None:
    """Remove what was kept of a shard."""
    for path in folder.glob(f"{shard_path(folder, number, 'marks-').name}*"):
        path.unlink(missing_ok=True)
    shard_path(folder, number, "near").unlink(missing_ok=True)


def _texts(shard: Shard, tokenizer: TextTokenizer) -> Iterator[list[str]]:
    ends = shard.documents["end"].astype(np.int64)
    first = 0
    while first < len(ends):
        begin = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, begin + _DECODED_TOKENS, side="right")))
        begins = np.concatenate(([begin], ends[first : last - 1]))
        yield tokenizer.texts([shard.tokens[one:other] for one, other in zip(begins, ends[first:last], strict=True)])
        first = last


def _marks_path(folder: Path, number: int, runs: EvaluationRuns) -> Path:
    return shard_path(folder, number, f"marks-{runs.key}")


def _write(path: Path, values: NDArray[Any]) -> None:
    content = values.tobytes()
    write_atomic(path, hashlib.sha256(content).digest() + content)


def _read(path: Path, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any] | None:
    """Mapped; None where the file is missing or not what was written."""
    size_bytes = int(np.prod(shape)) * kind.itemsize
    try:
        with path.open("rb") as file:
            wanted = file.read(_DIGEST_BYTES)
            found = hashlib.sha256()
            while block := file.read(_READ_BYTES):
                found.update(block)
        if path.stat().st_size != _DIGEST_BYTES + size_bytes or found.digest() != wanted:
            return None
        return (
            np.memmap(path, kind, mode="r", offset=_DIGEST_BYTES, shape=shape) if size_bytes else np.empty(shape, kind)
        )
    except OSError:
        return None
