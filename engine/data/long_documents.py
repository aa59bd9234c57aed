"""Local text as whole documents: which files a source has, and the documents in them one by one.

Owns what a document is: a text file as a whole, a row of a data file. Text comes in segments, so that no document has
to fit into memory at once. Must not know tokens, budgets or reports.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.data.files import Record, detect_format, read_records, require_file
from engine.data.formats import understand
from engine.data.rows import REASON_TEXT, DropReason, FileFormat, Problem, RowKind, SourceRow
from engine.errors import EngineError

SEGMENT_CHARACTERS = 1 << 16
"""What is held and tokenised at a time."""
WEIGHT_MARK = ":"
UNREADABLE = "a file that is neither text nor rows"


@dataclass(frozen=True, slots=True)
class MixSource:
    """A file, or a folder with everything readable in it: one domain of the mix."""

    path: Path
    weight: float = 1.0
    """Multiplies the domain's natural share of the tokens."""

    @property
    def name(self) -> str:
        return self.path.name or str(self.path)


@dataclass(frozen=True, slots=True)
class Lost:
    """A document that cannot be used, and where it is."""

    file: Path
    line: int
    """Line or row as the file's format counts; 0 for a whole file."""
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `segments` may be read once."""

    file: Path
    line: int
    segments: Iterator[str]
    """Of plain text; empty for rows of turns."""
    row: SourceRow | None = None
    value: object = None
    """The record as it stood, for rows of turns."""


class UnreadableText(Exception):
    """Raised while segments are read: the rest of the file is not UTF-8 text."""


def parse_source(text: str) -> MixSource:
    """ "books/" or "books/:2" -> a source. Raises EngineError `mix.weight`, `data.not_found`."""
    name, mark, number = text.rpartition(WEIGHT_MARK)
    weight, path = 1.0, Path(text).expanduser()
    if mark and not path.exists():
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not 0 < weight < 1e6:
            raise EngineError(
                "mix.weight",
                f"'{number}' in '{text}' is no weight.",
                next_step="Write SOURCE:WEIGHT with a number above 0, for example books/:2.",
            )
        path = Path(name).expanduser()
    if not path.is_dir():
        require_file(path)
    return MixSource(path, weight)


def files_of(source: MixSource) -> tuple[Path, ...]:
    """The source's files in the order of their names; hidden ones and linked folders are left out."""
    if not source.path.is_dir():
        return (source.path,)
    found: list[Path] = []
    for folder, folders, names in os.walk(source.path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
    return tuple(path for path in found if path.is_file())


def documents(source: MixSource) -> Iterator[Document | Lost]:
    """Every document of the source, always in the same order; a Lost in the place of each that cannot be used.

    A file that cannot be read at all is Lost where it lies in a folder; where it was named itself, EngineError.
    """
    in_folder = source.path.is_dir()
    for path in files_of(source):
        try:
            form = detect_format(path)
        except EngineError as error:
            if not in_folder:
                raise
            yield _unreadable(path, error)
            continue
        if form is FileFormat.TEXT:
            yield Document(path, 1, _file_segments(path))
            continue
        try:
            yield from _rows(path, form)
        except EngineError as error:
            if not in_folder:
                raise
            yield _unreadable(path, error)


def _rows(path: Path, form: FileFormat) -> Iterator[Document | Lost]:
    for record in read_records(path, form):
        understood = record if isinstance(record, Problem) else next(iter(understand((record,))))
        if isinstance(understood, Problem):
            yield lost(path, understood)
            continue
        assert isinstance(record, Record)
        if understood.kind is RowKind.TEXT:
            yield Document(path, record.line, iter(segments_of(understood.text)))
        else:
            yield Document(path, record.line, iter(()), understood, record.value)


def _unreadable(path: Path, error: EngineError) -> Lost:
    why = error.what.replace(f"{path} ", "").rstrip(".")
    return Lost(path, 0, UNREADABLE, f"{why}: {error.cause}" if error.cause else why)


def lost(path: Path, problem: Problem) -> Lost:
    """A reader's problem with its file."""
    return Lost(path, problem.line, REASON_TEXT[problem.reason], problem.detail)


def not_text(path: Path, error: UnreadableText) -> Lost:
    """A text file that turned out not to be one."""
    return Lost(path, 0, REASON_TEXT[DropReason.BAD_UTF8], str(error))


def _file_segments(path: Path) -> Iterator[str]:
    """A text file from its start, in segments that end where lines do. Raises UnreadableText."""
    held = ""
    try:
        with path.open(encoding="utf-8-sig") as file:
            while block := file.read(SEGMENT_CHARACTERS):
                *ready, held = segments_of(held + block)
                yield from ready
    except UnicodeDecodeError as error:
        raise UnreadableText(f"byte {error.start + 1} of a block: {error.reason}") from error
    except OSError as error:
        raise EngineError("data.unreadable", f"Cannot read {path}.", cause=str(error)) from error
    if held:
        yield held


def segments_of(text: str) -> list[str]:
    """`text` in pieces of at most SEGMENT_CHARACTERS: they end behind a line, else behind a word, else anywhere."""
    pieces: list[str] = []
    start = 0
    while len(text) - start > SEGMENT_CHARACTERS:
        limit = start + SEGMENT_CHARACTERS
        end = text.rfind("\n", start + 1, limit) + 1 or text.rfind(" ", start + 1, limit) or limit
        end = limit if end <= start else end
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces
