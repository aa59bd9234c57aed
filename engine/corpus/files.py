"""The files of a source: which there are, in which order, what form each has, and how to tell that one has changed.

Owns folders, patterns and detection. Must not know documents. Content decides before names do.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import msgspec

from engine.corpus.faults import Fault, FaultKind
from engine.corpus.unpacking import Damaged, Packing, packing_of, read_some, unpacked
from engine.errors import EngineError

_NAMES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
_TEXT_NAMES = (".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".tsv")
_PACKED_NAMES = (".gz", ".zst", ".xz", ".bz2")
_BESIDE_DATA = ("readme", "license", "licence", "dataset_info")
_HEAD_BYTES = 1 << 16
BOM = b"\xef\xbb\xbf"


class Form(StrEnum):
    TEXT = "text"
    JSONL = "jsonl"
    PARQUET = "parquet"


class SourceFile(msgspec.Struct, frozen=True):
    """A file and what tells that it is still the one that was read."""

    path: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A file whose form is known."""

    form: Form
    packing: Packing


def source_files(name: str, path: str) -> tuple[SourceFile, ...]:
    """The files of a path, folder or pattern in the order of their names; hidden ones are left out, and so are READMEs
    beside data files. Raises EngineError `corpus.not_found`."""
    paths = _paths(Path(path).expanduser())
    if not paths:
        raise EngineError(
            "corpus.not_found",
            f"Source '{name}' has no file: there is nothing at {path}.",
            next_step='Give a file, a folder with files in it, a pattern such as "text/*.jsonl.gz", or hub:owner/name.',
        )
    found = []
    for one in paths:
        state = one.stat()
        found.append(SourceFile(str(one), state.st_size, state.st_mtime_ns))
    return tuple(found)


def _paths(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return _without_notes(_inside(path))
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    found: list[Path] = []
    for match in matches:
        found += _without_notes(_inside(match)) if match.is_dir() else [match] if match.is_file() else []
    return list(dict.fromkeys(found))


def _inside(folder: Path) -> list[Path]:
    found: list[Path] = []
    for inner, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(inner, name) for name in sorted(names) if not name.startswith(".")]
    return [path for path in found if path.is_file()]


def _unreadable(error: OSError) -> None:
    raise EngineError(
        "corpus.unreadable_folder",
        f"The folder {error.filename} cannot be read.",
        cause=error.strerror or str(error),
        next_step="Make it readable, or name the files to read by a pattern that leaves it out.",
    )


def _without_notes(paths: list[Path]) -> list[Path]:
    has_data = any(_by_name(path.name) in ("jsonl", "parquet") for path in paths)
    return [path for path in paths if not (has_data and path.name.lower().startswith(_BESIDE_DATA))]


def _by_name(name: str) -> str:
    """ "jsonl", "parquet", "text" or "" by the name's last ending before that of its compression."""
    stem = name.lower()
    for ending in _PACKED_NAMES:
        stem = stem.removesuffix(ending)
    ending = os.path.splitext(stem)[1]
    return _NAMES.get(ending, "text" if ending in _TEXT_NAMES else "")


def detect(file: SourceFile) -> Opened | Fault:
    """The file's form, or why it has none that can be read. Raises OSError."""
    if not file.size_bytes:
        return Fault(kind=FaultKind.EMPTY_FILE, file=file.path, documents=0)
    with open(file.path, "rb") as raw:
        start = raw.read(8)
        raw.seek(0)
        if start.startswith(b"PAR1"):
            return Opened(Form.PARQUET, Packing.NONE)
        packing = packing_of(start)
        head = _head(raw, packing)
    by_name = _by_name(os.path.basename(file.path))
    if by_name == "parquet" or head.startswith(b"PAR1"):
        return _unknown(file, "it does not begin as Parquet does" if packing is Packing.NONE else "unpack it first")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _unknown(file, "UTF-16; save it as UTF-8")
    text = head.removeprefix(BOM).lstrip()
    if by_name == "jsonl" and text.startswith(b"[") and not text.partition(b"\n")[0].rstrip().endswith(b"]"):
        return _unknown(file, "a JSON array; write one object per line")
    if b"\0" in head and by_name != "jsonl":
        return _unknown(file, "it has zero bytes")
    if by_name:
        return Opened(Form(by_name), packing)
    return Opened(Form.JSONL if text.startswith(b"{") else Form.TEXT, packing)


def _head(raw: BinaryIO, packing: Packing) -> bytes:
    """The first bytes, unpacked as far as they can be: what is damaged behind them is found while reading."""
    stream, head = unpacked(raw, packing), b""
    try:
        while len(head) < _HEAD_BYTES and (more := read_some(stream, _HEAD_BYTES - len(head))):
            head += more
    except Damaged:
        pass
    return head


def _unknown(file: SourceFile, detail: str) -> Fault:
    return Fault(kind=FaultKind.UNKNOWN_FORMAT, file=file.path, detail=detail)
