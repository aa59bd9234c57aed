"""Data sets on the hub as documents, through the `datasets` library in streaming mode.

Owns opening one, its identity and reading on from a row. Must not know tokens. "hub:owner/name" is a data set on the
hub, "hub:/a/folder" a local folder read by the same library. No remote code is run: the library has no such thing any
more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine.corpus.documents import Document, Found, Limits
from engine.corpus.faults import Fault, FaultKind
from engine.corpus.reading import blank, is_encodable
from engine.corpus.shards import Cursor
from engine.errors import EngineError
from engine.jobs.spec_stream import HUB, SourceSection


class HubText:
    """A data set on the hub; nothing is asked of the network before it is read."""

    def __init__(self, source: SourceSection) -> None:
        self._source = source
        self._name = source.path.removeprefix(HUB)

    def identity(self) -> str:
        """What stands for the data set's present state: of the hub the commit, of local files names, sizes and times.

        Raises EngineError `corpus.hub`.
        """
        with _library() as datasets:
            builder = self._asked(lambda: datasets.load_dataset_builder(self._name, self._source.config or None))
        return str(builder.hash)

    def read(self, limits: Limits, begin: Cursor) -> Found:
        """Documents behind `begin`. Raises EngineError `corpus.hub` where the data set cannot be reached or read on."""
        with _library() as datasets:
            rows = self._asked(
                lambda: datasets.load_dataset(
                    self._name, self._source.config or None, split=self._source.split, streaming=True
                )
            )
            field = self._source.field
            columns = rows.column_names
            if columns is not None:
                if field not in columns:
                    yield Fault(
                        kind=FaultKind.NO_COLUMN, file=self._source.path, detail=f"has {', '.join(columns[:8])}"
                    )
                    return
                rows = rows.select_columns([field])
            stream = iter(rows.skip(begin.row) if begin.row else rows)
            number = begin.row
            while (row := self._asked(lambda: next(stream, None))) is not None:
                number += 1
                yield self._document(row, number, limits)

    def _document(self, row: dict[str, Any], number: int, limits: Limits) -> Document | Fault:
        path, field = self._source.path, self._source.field
        text = row.get(field)
        if field not in row:
            return Fault(kind=FaultKind.NO_FIELD, file=path, row=number, detail=f"no '{field}'")
        if not isinstance(text, str):
            return Fault(kind=FaultKind.NOT_TEXT, file=path, row=number, detail=f"'{field}' is {type(text).__name__}")
        if len(text) > limits.longest_bytes:
            return Fault(kind=FaultKind.TOO_LONG, file=path, row=number, detail=f"{len(text):,} characters")
        if not is_encodable(text):
            return Fault(kind=FaultKind.BAD_UTF8, file=path, row=number, detail="half of a surrogate pair")
        if not text or text.isspace():
            return blank(path, row=number)
        return Document(text, 0, number, Cursor(row=number))

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """What the library answers; it raises whatever its readers and the network raise."""
        try:
            return ask()
        except EngineError:
            raise
        except Exception as error:
            cause = error.__cause__ or error
            raise EngineError(
                "corpus.hub",
                f"The data set {self._source.path} of source '{self._source.name}' cannot be read.",
                cause=f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}",
                next_step="Check its name, config and split and the network, then start again: what was read is kept.",
            ) from error


@contextmanager
def _library() -> Iterator[Any]:
    """`datasets`, imported without torch where torch is not loaded, and with its progress bars off."""
    before = os.environ.get("USE_TORCH")
    if "datasets" not in sys.modules and "torch" not in sys.modules:
        os.environ["USE_TORCH"] = "0"
    try:
        import datasets
    finally:
        if before is None:
            os.environ.pop("USE_TORCH", None)
        else:
            os.environ["USE_TORCH"] = before
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield datasets
    finally:
        if shown:
            datasets.enable_progress_bars()
