"""Reading data files: which format a file has, and its records one by one with their place in the file.

Owns detection and the five readers. Must not know what a record means. A record that cannot be read becomes a Problem
with its line; a file of which an unknown part cannot be read is refused, since its loss could not be counted.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from engine.data.rows import DropReason, FileFormat, Problem
from engine.errors import EngineError

_EXTENSIONS = {
    ".jsonl": FileFormat.JSONL,
    ".ndjson": FileFormat.JSONL,
    ".json": FileFormat.JSON,
    ".csv": FileFormat.CSV,
    ".tsv": FileFormat.CSV,
    ".parquet": FileFormat.PARQUET,
    ".pq": FileFormat.PARQUET,
    ".txt": FileFormat.TEXT,
    ".md": FileFormat.TEXT,
}
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_KNOWN_COLUMNS = frozenset(("messages", "conversations", "instruction", "prompt", "question", "text", "input"))
_DELIMITERS = ",;\t|"
_HEAD_BYTES = 1 << 16
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Record:
    line: int
    """Line where the record begins, or its row number: see `FileFormat.located_by`."""
    value: object


def require_file(path: Path) -> None:
    """Raises EngineError unless `path` is a readable file with something in it."""
    if path.is_dir():
        raise EngineError("data.is_folder", f"{path} is a folder, not a data file.", next_step="Name the file in it.")
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except FileNotFoundError as error:
        raise EngineError("data.not_found", f"There is no file {path}.", next_step="Check the path.") from error
    except (OSError, ValueError) as error:
        raise EngineError("data.unreadable", f"Cannot read {path}.", cause=str(error)) from error
    if not first:
        raise EngineError("data.empty", f"{path} is empty.", next_step="Choose a file that has rows.")


def file_digest(path: Path) -> str:
    """SHA-256 of the file's bytes in hexadecimal."""
    found = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def detect_format(path: Path) -> FileFormat:
    """The format by content first, by extension where content leaves it open. Raises EngineError for binary files."""
    require_file(path)
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"PAR1"):
        return FileFormat.PARQUET
    by_name = _EXTENSIONS.get(path.suffix.lower())
    _refuse_binary(path, head, by_name)
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        raise EngineError("data.empty", f"{path} holds only blank lines.", next_step="Choose a file that has rows.")
    if by_name in (FileFormat.CSV, FileFormat.TEXT):
        return by_name
    first, _, rest = text.partition(b"\n")
    one_line = not rest.strip()
    if text.startswith(b"["):
        is_array = by_name is not FileFormat.JSONL or one_line or not _is_json(first)
        return FileFormat.JSON if is_array else FileFormat.JSONL
    if text.startswith(b"{") and by_name is FileFormat.JSON:
        return FileFormat.JSON if one_line or not _is_json(first) else FileFormat.JSONL
    if text.startswith(b"{") or by_name is not None:
        return FileFormat.JSONL
    header = first.decode("utf-8", "replace").rstrip("\r")
    known, columns = max(_columns(header, delimiter) for delimiter in _DELIMITERS)
    return FileFormat.CSV if known and columns > 1 else FileFormat.TEXT


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_binary(path: Path, head: bytes, by_name: FileFormat | None) -> None:
    if by_name is FileFormat.PARQUET:
        raise EngineError("data.broken_parquet", f"{path} is not a Parquet file.", cause="It does not begin with PAR1.")
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise EngineError("data.binary", f"{path} is a {name} file.", next_step="Unpack it and name the data file.")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise EngineError("data.utf16", f"{path} is UTF-16 text.", next_step="Save it as UTF-8.")
    if b"\0" in head:
        raise EngineError(
            "data.binary",
            f"{path} is not text.",
            cause="It contains zero bytes.",
            next_step="Give a .jsonl, .json, .csv, .parquet or .txt file.",
        )


def read_records(path: Path, form: FileFormat) -> Iterator[Record | Problem]:
    """The records of the file in order, with a Problem in the place of each that cannot be read."""
    readers = {
        FileFormat.JSONL: _read_jsonl,
        FileFormat.JSON: _read_json,
        FileFormat.CSV: _read_csv,
        FileFormat.PARQUET: _read_parquet,
        FileFormat.TEXT: _read_text,
    }
    try:
        yield from readers[form](path)
    except OSError as error:
        raise EngineError("data.unreadable", f"Cannot read {path}.", cause=str(error)) from error


def _lines(path: Path) -> Iterator[tuple[int, str | Problem]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(_BOM)
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                yield (
                    number,
                    Problem(DropReason.BAD_UTF8, number, f"byte {error.start + 1} of the line: {error.reason}"),
                )


def _read_jsonl(path: Path) -> Iterator[Record | Problem]:
    for number, line in _lines(path):
        if isinstance(line, Problem):
            yield line
        elif line.strip():
            try:
                yield Record(number, json.loads(line))
            except RecursionError:
                yield Problem(DropReason.BAD_JSON, number, "nested too deeply")
            except ValueError as error:
                yield Problem(DropReason.BAD_JSON, number, _json_cause(error))


def _json_cause(error: ValueError) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _read_json(path: Path) -> Iterator[Record | Problem]:
    """An array of rows, or an object that holds exactly one (`{"data": [...]}`), or one row."""
    try:
        text = path.read_bytes().removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise EngineError(
            "data.bad_utf8", f"{path} is not UTF-8 text (byte {error.start + 1}).", next_step="Save it as UTF-8."
        ) from error
    if not text.lstrip().startswith("["):
        yield from _from_object(path, text)
        return
    decoder = json.JSONDecoder()
    position = text.index("[") + 1
    row = 0
    while not text.startswith("]", begin := _skip(text, position)):
        value, position = _decode_at(path, decoder, text, begin)
        row += 1
        yield Record(row, value)
        position = _skip(text, position)
        if text.startswith(",", position):
            position += 1
        elif not text.startswith("]", position):
            raise _broken_json(path, text, position, "Expecting ',' between rows or ']' after the last")
    if text[begin + 1 :].strip():
        raise _broken_json(path, text, begin + 1, "There is text after the closing ']'")


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _decode_at(path: Path, decoder: json.JSONDecoder, text: str, begin: int) -> tuple[object, int]:
    try:
        return decoder.raw_decode(text, begin)
    except RecursionError:
        raise _broken_json(path, text, begin, "Nested too deeply") from None
    except ValueError as error:
        at = error.pos if isinstance(error, json.JSONDecodeError) else begin
        raise _broken_json(path, text, at, _json_cause(error)) from error


def _broken_json(path: Path, text: str, position: int, cause: str) -> EngineError:
    line = 1 + text.count("\n", 0, position)
    return EngineError(
        "data.broken_json",
        f"{path} is not valid JSON: line {line}.",
        cause=f"{cause}. The rows after it cannot be told apart, so none is used.",
        next_step="Repair that line, or save one JSON object per line (.jsonl), where a broken row costs only itself.",
    )


def _from_object(path: Path, text: str) -> Iterator[Record | Problem]:
    begin = _skip(text, 0)
    value, end = _decode_at(path, json.JSONDecoder(), text, begin)
    if text[end:].strip():
        raise _broken_json(path, text, end, "There is text after the first object")
    rows = [v for v in value.values() if isinstance(v, list)] if isinstance(value, dict) else []
    inner = rows[0] if len(rows) == 1 and isinstance(value, dict) and not _KNOWN_COLUMNS & value.keys() else None
    if inner is None:
        yield Record(1, value)
        return
    for number, item in enumerate(inner, start=1):
        yield Record(number, item)


def _read_csv(path: Path) -> Iterator[Record | Problem]:
    csv.field_size_limit(1 << 30)
    with path.open("rb") as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        delimiter = _delimiter(file.readline())
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] = []
        row = 0
        while True:
            began = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise EngineError(
                    "data.broken_csv",
                    f"{path} is broken at row {row + 1 if header else 0} (line {began}).",
                    cause=f"{error}. Where the next row begins cannot be told.",
                    next_step='Close the quote; a quote inside a quoted field is written twice: "".',
                ) from error
            if not header:
                header = fields
                continue
            if fields:
                row += 1
                yield _csv_row(row, began, header, fields)


def _csv_row(row: int, line: int, header: list[str], fields: list[str]) -> Record | Problem:
    if len(fields) != len(header):
        detail = f"{len(fields)} fields where the header has {len(header)} (line {line})"
        return Problem(DropReason.BAD_CSV, row, detail)
    if any("\udc80" <= character <= "\udcff" for field in fields for character in field if character > "\ud7ff"):
        return Problem(DropReason.BAD_UTF8, row, f"line {line}")
    return Record(row, dict(zip(header, fields, strict=True)))


def _delimiter(header: str) -> str:
    """The separator that makes known column names out of the header, else the one that makes most columns."""
    return max(_DELIMITERS, key=lambda delimiter: _columns(header, delimiter))


def _columns(header: str, delimiter: str) -> tuple[int, int]:
    """How many known columns the header has with this separator, and how many in all."""
    try:
        names = next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error:
        return 0, 0
    return len({name.strip().strip("\ufeff").lower() for name in names} & _KNOWN_COLUMNS), len(names)


def _read_parquet(path: Path) -> Iterator[Record | Problem]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise EngineError(
            "data.no_pyarrow",
            f"Reading {path} needs pyarrow, which is not installed.",
            cause=str(error),
            next_step="Install pyarrow, or save the data as .jsonl.",
        ) from error
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    row += 1
                    yield Record(row, value)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise EngineError(
            "data.broken_parquet",
            f"{path} cannot be read as Parquet" + (f" after row {row}." if row else "."),
            cause=str(error).split("\n")[0],
            next_step="Write the file again.",
        ) from error


def _read_text(path: Path) -> Iterator[Record | Problem]:
    """Paragraphs: runs of lines between blank lines, each one text row."""
    paragraph: list[str] = []
    began = 1
    for number, line in _lines(path):
        if isinstance(line, Problem):
            yield line
            continue
        if line.strip():
            if not paragraph:
                began = number
            paragraph.append(line)
        elif paragraph:
            yield Record(began, {"text": "".join(paragraph).rstrip("\r\n")})
            paragraph = []
    if paragraph:
        yield Record(began, {"text": "".join(paragraph).rstrip("\r\n")})
