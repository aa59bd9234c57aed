"""`merge.json`: what a merged model was made of, beside its weights.

Owns the shape of the file and reading it. Must not know how tensors are merged.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

RECORD = "merge.json"


class MergedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter that went in."""

    path: str
    kind: str
    """ "lora", "dora", ..."""
    weight: float
    sha256: str
    """Of its weight file."""


class MergedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the result."""

    name: str
    size_bytes: int
    sha256: str = ""
    """Of weight files."""


class MergeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One merge, finished."""

    v: int = 1
    program: str
    created: float
    base: str
    adapters: tuple[MergedAdapter, ...]
    dtype: str
    """As asked for: "" where every tensor kept its type."""
    tensors: int
    changed: int
    """Of these, those that are not the base's."""
    untied: bool = False
    """Embedding and output head were one matrix in the base and are two here."""
    vocabulary: int = 0
    """Tokens, where there are not as many as in the base; else 0."""
    files: tuple[MergedFile, ...]
    order_sha256: str
    """Of everything that decides what the files hold."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    """Of the attempt that finished."""
    kept_bytes: int = 0
    """Of weight files that an earlier attempt had finished."""
    peak_rss_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)


def read_record(folder: Path) -> MergeRecord | None:
    """What is recorded there; None where there is nothing, or nothing that can be read."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=MergeRecord)
    except (OSError, msgspec.MsgspecError):
        return None
