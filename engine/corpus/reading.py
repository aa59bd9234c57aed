"""Local files as documents: lines of JSON, pieces of text, and what becomes of a file that cannot be read.

Owns the order of files and the two line-based readers; `engine.corpus.parquet` and `engine.corpus.hub` are the others.
Must not know tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from engine.corpus.documents import Document, Found, Limits
from engine.corpus.faults import Fault, FaultKind
from engine.corpus.files import BOM, Form, Opened, SourceFile, detect
from engine.corpus.lines import Line, lines, pass_over
from engine.corpus.parquet import read_parquet
from engine.corpus.shards import Cursor
from engine.corpus.unpacking import Damaged, Packing, unpacked

_LONG_PIECE = 4
"""A piece of text without a blank line ends at a line when it is so many times as long as it should be."""


def read_files(files: Sequence[SourceFile], field: str, limits: Limits, begin: Cursor) -> Found:
    """Documents of all files in order, from `begin` on; a Fault in the place of what cannot be read."""
    for number in range(begin.file, len(files)):
        cursor = begin if number == begin.file else Cursor(file=number)
        try:
            yield from _read_file(_File(files[number], number, field, limits), cursor)
        except OSError as error:
            detail = error.strerror or str(error)
            yield Fault(kind=FaultKind.UNREADABLE, file=files[number].path, detail=detail)


@dataclass(frozen=True, slots=True)
class _File:
    file: SourceFile
    number: int
    field: str
    limits: Limits

    def fault(self, kind: FaultKind, line: Line, detail: str = "", *, byte: int = 0) -> Fault:
        """`byte` counts from 0 in the unpacked file."""
        place = (byte or line.first_byte) + 1
        return Fault(kind=kind, file=self.file.path, line=line.number, byte=place, detail=detail)


def _read_file(file: _File, cursor: Cursor) -> Found:
    opened = detect(file.file)
    if isinstance(opened, Fault):
        yield opened
    elif opened.form is Form.PARQUET:
        yield from read_parquet(file.file.path, file.number, file.field, file.limits, cursor)
    else:
        yield from _read_lines(file, opened, cursor)


def _read_lines(file: _File, opened: Opened, cursor: Cursor) -> Found:
    last = Line(b"", cursor.line, cursor.byte, 0)

    def watched() -> Iterator[Line]:
        nonlocal last
        for line in lines(stream, file.limits.longest_bytes, number=cursor.line, first_byte=cursor.byte):
            last = line  # names the place when the file turns out to be damaged
            yield line

    with open(file.file.path, "rb") as raw:
        stream = unpacked(raw, opened.packing)
        try:
            if opened.packing is Packing.NONE:
                raw.seek(cursor.byte)
            else:
                pass_over(stream, cursor.byte)
            yield from (_jsonl if opened.form is Form.JSONL else _text)(file, watched())
        except Damaged as error:
            kind = FaultKind.TRUNCATED if error.truncated else FaultKind.BROKEN_FILE
            behind = Line(None, last.number + 1, last.first_byte + last.size_bytes, 0)
            yield file.fault(kind, behind, str(error))


def _after(file: _File, line: Line) -> Cursor:
    return Cursor(file=file.number, byte=line.first_byte + line.size_bytes, line=line.number)


# ── lines of JSON ─────────────────────────────────────────────────────────────────────────────────────────────────
def _jsonl(file: _File, found: Iterator[Line]) -> Found:
    row = msgspec.defstruct(
        "Row", [("text", str | msgspec.UnsetType, msgspec.UNSET)], rename={"text": file.field}, gc=False
    )
    decoder = msgspec.json.Decoder(row)
    for line in found:
        if line.content is None:
            yield file.fault(FaultKind.TOO_LONG, line, f"{line.size_bytes:,} bytes")
            continue
        content = line.content.removeprefix(BOM) if line.number == 1 else line.content
        if not content.strip():
            continue
        try:
            text = decoder.decode(content).text  # type: ignore[attr-defined]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            slow = _slowly(file, line, content)
            if isinstance(slow, Fault):
                yield slow
                continue
            text = slow
        if text is msgspec.UNSET:
            yield file.fault(FaultKind.NO_FIELD, line, f"no '{file.field}'")
        elif not text or text.isspace():
            yield blank(file.file.path, line=line.number)
        else:
            yield Document(text, file.number, line.number, _after(file, line))


def _slowly(file: _File, line: Line, content: bytes) -> str | Fault:
    """The text of a row that the fast decoder refuses (NaN, half a surrogate pair), or what is wrong with it."""
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return file.fault(FaultKind.BAD_UTF8, line, error.reason, byte=line.first_byte + error.start)
    except RecursionError:
        return file.fault(FaultKind.BAD_JSON, line, "nested too deeply")
    except ValueError as error:
        detail = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        return file.fault(FaultKind.BAD_JSON, line, detail)
    if not isinstance(value, dict):
        return file.fault(FaultKind.BAD_JSON, line, "not an object")
    if file.field not in value:
        return file.fault(FaultKind.NO_FIELD, line, f"no '{file.field}'")
    text = value[file.field]
    if not isinstance(text, str):
        return file.fault(FaultKind.NOT_TEXT, line, f"'{file.field}' is {type(text).__name__}")
    if not is_encodable(text):
        return file.fault(FaultKind.BAD_UTF8, line, "half of a surrogate pair")
    return text


def is_encodable(text: str) -> bool:
    """Whether the text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def blank(path: str, *, line: int = 0, row: int = 0) -> Fault:
    """A document without any text; nothing is lost with it."""
    return Fault(kind=FaultKind.BLANK, file=path, line=line, row=row, documents=0)


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def _text(file: _File, found: Iterator[Line]) -> Found:
    """Pieces that end at a blank line, or at any line where there is none for long."""
    wanted = file.limits.text_bytes or file.limits.longest_bytes
    whole = not file.limits.text_bytes
    piece: list[Line] = []
    size = 0
    for line in found:
        if line.content is None or size + line.size_bytes > file.limits.longest_bytes:
            if piece and not whole:
                yield _piece(file, piece)
            if line.content is None or whole:
                yield file.fault(FaultKind.TOO_LONG, line, f"{size + line.size_bytes:,} bytes and more")
            piece, size = [], 0
            if whole:
                return
            if line.content is None:
                continue
        piece.append(line)
        size += line.size_bytes
        ends = not (line.content or b"").strip()
        if not whole and ((size >= wanted and ends) or size >= wanted * _LONG_PIECE):
            yield _piece(file, piece)
            piece, size = [], 0
    if piece:
        yield _piece(file, piece)


def _piece(file: _File, piece: Sequence[Line]) -> Document | Fault:
    content = b"\n".join(line.content or b"" for line in piece)
    first = piece[0]
    if first.number == 1:
        content = content.removeprefix(BOM)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        number = first.number + content.count(b"\n", 0, error.start)
        line = piece[number - first.number]
        skipped = len(BOM) if first.number == 1 and (piece[0].content or b"").startswith(BOM) else 0
        return file.fault(FaultKind.BAD_UTF8, line, error.reason, byte=first.first_byte + skipped + error.start)
    if not text or text.isspace():
        return blank(file.file.path, line=first.number)
    return Document(text, file.number, first.number, _after(file, piece[-1]))
