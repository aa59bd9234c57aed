"""Tokenised text on disk: its files, how one is written whole or not at all, and how damage is noticed.

Owns the format. Must not know sources, tokenizers or mixes. A shard is three files:

    shard-00000.tokens      ids of all documents one behind the other, uint16 or uint32, little endian
    shard-00000.documents   one record per document: where it ends, its digest, where it came from, bytes of its text
    shard-00000.json        counts, SHA-256 of the two, where reading began and ended; written last, it vouches for them
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.corpus.faults import FaultCounts
from engine.jobs.layout import DISK_FULL_ERRNOS, disk_full, write_atomic

DOCUMENT = np.dtype(
    [
        ("end", "<u8"),
        ("digest_high", "<u8"),
        ("digest_low", "<u8"),
        ("place", "<u8"),
        ("text_bytes", "<u8"),
        ("file", "<u4"),
    ]
)
"""`end` counts tokens of the shard, `place` lines or rows of the file from 1, `file` the source's files from 0."""
SMALL_VOCABULARY = 1 << 16
_READ_BYTES = 1 << 20

Tokens = NDArray[Any]
"""(n,) uint16 or uint32."""
Documents = NDArray[np.void]
"""(n,) of DOCUMENT."""


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """A place in a source, between two documents."""

    file: int = 0
    """Of the source's files, from 0."""
    byte: int = 0
    """Read of that file, unpacked."""
    line: int = 0
    """Lines before."""
    row: int = 0
    """Rows before."""


class ShardRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`shard-00000.json`."""

    tokens: int
    documents: int
    text_bytes: int
    token_bytes: int
    """2 or 4."""
    tokens_sha256: str
    documents_sha256: str
    begin: Cursor
    end: Cursor
    last: bool
    """The source had no more when this was written."""
    faults: FaultCounts
    tokenizer_sha256: str
    tokenizers_version: str


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard's files, memory-mapped."""

    tokens: Tokens
    documents: Documents


def shard_path(folder: Path, number: int, kind: str) -> Path:
    """`kind` is "tokens", "documents", "json" or what else is kept beside them."""
    return folder / f"shard-{number:05}.{kind}"


def token_type(vocabulary: int) -> np.dtype[Any]:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if vocabulary <= SMALL_VOCABULARY else "<u4")


def read_record(folder: Path, number: int) -> ShardRecord | None:
    """The shard's record; None where there is none that can be read."""
    try:
        return msgspec.json.decode(shard_path(folder, number, "json").read_bytes(), type=ShardRecord)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def is_sound(folder: Path, number: int, record: ShardRecord) -> bool:
    """Whether both files are what was written: sizes first, then SHA-256."""
    wanted = (
        ("tokens", record.tokens * record.token_bytes, record.tokens_sha256),
        ("documents", record.documents * DOCUMENT.itemsize, record.documents_sha256),
    )
    try:
        for kind, size_bytes, _ in wanted:
            if shard_path(folder, number, kind).stat().st_size != size_bytes:
                return False
        return all(_sha256(shard_path(folder, number, kind)) == sha256 for kind, _, sha256 in wanted)
    except OSError:
        return False


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            found.update(block)
    return found.hexdigest()


def open_shard(folder: Path, number: int, record: ShardRecord) -> Shard:
    """Map the shard's files; nothing is read yet."""
    kind = np.dtype(f"<u{record.token_bytes}")
    return Shard(
        _mapped(shard_path(folder, number, "tokens"), kind), _mapped(shard_path(folder, number, "documents"), DOCUMENT)
    )


def _mapped(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, kind)
    return np.memmap(path, kind, mode="r").view(np.ndarray)  # a plain view: memmap's own slices cost microseconds


class ShardWriter:
    """A shard while it grows, under a hidden name."""

    def __init__(self, folder: Path, number: int, kind: np.dtype[Any]) -> None:
        self.tokens = 0
        self.documents = 0
        self.text_bytes = 0
        self._folder = folder
        self._number = number
        self._kind = kind
        self._files = {name: _Staged(self._staged(name)) for name in ("tokens", "documents")}

    def add(self, ids: Tokens, documents: Documents) -> None:
        """Documents' ids one behind the other, and their records with `end` counted from the first of these ids."""
        placed = documents.copy()
        placed["end"] += np.uint64(self.tokens)
        with self._room():
            self._files["tokens"].write(np.ascontiguousarray(ids, self._kind).data)
            self._files["documents"].write(placed.tobytes())
        self.tokens += len(ids)
        self.documents += len(documents)
        self.text_bytes += int(documents["text_bytes"].sum())

    def finish(
        self, begin: Cursor, end: Cursor, *, last: bool, faults: FaultCounts, tokenizer: tuple[str, str]
    ) -> ShardRecord:
        """Flush, rename, and write the record last. `tokenizer` is its SHA-256 and the library's version."""
        with self._room():
            sums = {name: file.close() for name, file in self._files.items()}
        record = ShardRecord(
            tokens=self.tokens,
            documents=self.documents,
            text_bytes=self.text_bytes,
            token_bytes=self._kind.itemsize,
            tokens_sha256=sums["tokens"],
            documents_sha256=sums["documents"],
            begin=begin,
            end=end,
            last=last,
            faults=faults,
            tokenizer_sha256=tokenizer[0],
            tokenizers_version=tokenizer[1],
        )
        for name in self._files:
            self._staged(name).replace(shard_path(self._folder, self._number, name))
        content = msgspec.json.format(msgspec.json.encode(record), indent=1)
        write_atomic(shard_path(self._folder, self._number, "json"), content + b"\n")
        return record

    @contextmanager
    def _room(self) -> Iterator[None]:
        """A full disk is the user's to know; what was written of the shard goes. Raises EngineError `disk.full`."""
        try:
            yield
        except OSError as error:
            self.discard()
            if error.errno in DISK_FULL_ERRNOS:
                raise disk_full(self._folder, error.strerror or str(error)) from error
            raise

    def discard(self) -> None:
        """Remove what was written."""
        for name, file in self._files.items():
            file.abandon()
            self._staged(name).unlink(missing_ok=True)

    def _staged(self, name: str) -> Path:
        return self._folder / f".shard-{self._number:05}.{name}.part"


class _Staged:
    """A file that is hashed as it is written."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._sha256 = hashlib.sha256()

    def write(self, content: Any) -> None:
        self._file.write(content)
        self._sha256.update(content)

    def close(self) -> str:
        """Make it durable; returns the SHA-256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._sha256.hexdigest()

    def abandon(self) -> None:
        """Give up; what cannot be flushed to a full disk any more is no loss."""
        with suppress(OSError):
            self._file.close()
