"""Parquet files as documents: one column, batch by batch.

Owns the reader and its faults. Must not know tokens. Batches are as small as the average value asks for, so that memory
stays at about [stream] longest_document_mb; a single value beyond it among short ones is held once and then refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.corpus.documents import Document, Found, Limits
from engine.corpus.faults import Fault, FaultKind
from engine.corpus.shards import Cursor

_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20


def read_parquet(path: str, number: int, field: str, limits: Limits, begin: Cursor) -> Found:
    """The rows behind `begin`, in order. Raises OSError where the file cannot be opened."""
    import pyarrow
    from pyarrow import parquet

    row = begin.row
    try:
        with parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            if field not in file.schema_arrow.names:
                columns = ", ".join(file.schema_arrow.names[:8])
                lost = file.metadata.num_rows
                yield Fault(kind=FaultKind.NO_COLUMN, file=path, detail=f"has {columns}", documents=lost)
                return
            if not _holds_text(file.schema_arrow.field(field).type):
                detail = f"'{field}' is {file.schema_arrow.field(field).type}"
                yield Fault(kind=FaultKind.NOT_TEXT, file=path, detail=detail, documents=file.metadata.num_rows)
                return
            if not file.metadata.num_rows:
                yield Fault(kind=FaultKind.EMPTY_FILE, file=path, documents=0)
            for found in _rows(file, path, field, limits, begin.row):
                if isinstance(found, Fault):
                    row = found.row + max(found.documents, 1) - 1
                    yield found
                    continue
                row, text = found
                yield Document(text, number, row, Cursor(file=number, row=row))
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        detail = str(error).split("\n")[0][:200]
        yield Fault(kind=FaultKind.BROKEN_FILE, file=path, row=row + 1, detail=detail)


def _holds_text(kind: Any) -> bool:
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    return bool(
        types.is_string(inner)
        or types.is_large_string(inner)
        or types.is_string_view(inner)
        or types.is_binary(inner)
        or types.is_large_binary(inner)
    )


def _rows(file: Any, path: str, field: str, limits: Limits, skip: int) -> Iterator[tuple[int, str] | Fault]:
    """(row from 1, its text) of every row behind the first `skip`."""
    before = 0
    column = file.schema_arrow.names.index(field) if _is_flat(file) else None
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if before + rows > skip:
            average = 1
            if column is not None:
                size = file.metadata.row_group(group).column(column).total_uncompressed_size
                average = max(size // max(rows, 1), 1)
            if average > limits.longest_bytes:
                detail = f"about {average:,} bytes each"
                yield Fault(kind=FaultKind.TOO_LONG, file=path, row=before + 1, detail=detail, documents=rows)
            else:
                batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // average))
                yield from _group(file, group, field, path, limits, (before, skip, batch_rows))
        before += rows


def _is_flat(file: Any) -> bool:
    """Whether the stored columns are those of the schema, one for one."""
    return bool(file.metadata.num_columns == len(file.schema_arrow.names))


def _group(
    file: Any, group: int, field: str, path: str, limits: Limits, place: tuple[int, int, int]
) -> Iterator[tuple[int, str] | Fault]:
    row, skip, batch_rows = place
    for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group], columns=[field]):
        if row + batch.num_rows <= skip:
            row += batch.num_rows
            continue
        for value in _values(batch.column(0)):
            row += 1
            if row > skip:
                yield _judged(value, row, path, field, limits)


def _judged(value: Any, row: int, path: str, field: str, limits: Limits) -> tuple[int, str] | Fault:
    if value is None:
        return Fault(kind=FaultKind.NOT_TEXT, file=path, row=row, detail=f"'{field}' is null")
    if len(value) > limits.longest_bytes:
        return Fault(kind=FaultKind.TOO_LONG, file=path, row=row, detail=f"{len(value):,} bytes")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        return Fault(kind=FaultKind.BAD_UTF8, file=path, row=row, detail=f"byte {error.start + 1}: {error.reason}")
    if not text or text.isspace():
        return Fault(kind=FaultKind.BLANK, file=path, row=row, documents=0)
    return row, text


def _values(column: Any) -> list[bytes | None]:
    """The column's values as bytes, so that one bad value does not cost the batch."""
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not types.is_large_binary(column.type) and not types.is_binary(column.type):
        column = column.cast(pyarrow.large_binary())
    return list(column.to_pylist())
