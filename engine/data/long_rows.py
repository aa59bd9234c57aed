"""Documents as rows of a training file, and that file, which appears whole or not at all.

Owns the rows' form, what becomes of documents longer than the target, and the writing. Must not know budgets.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from engine.data.long_catalogue import DropCounter
from engine.data.long_documents import Document, Lost
from engine.data.long_pieces import TokenCounter
from engine.data.long_report import Cut
from engine.errors import EngineError
from engine.jobs import layout

LEAST_REMAINDER_TOKENS = 64
"""A shorter rest of a cut document teaches nothing at length."""
COUNTING_SLACK = 8
"""Tokens by which counting in segments may be off for a text of several."""
TOO_LONG_TURNS = "turns longer than the target, which cannot be cut"


@dataclass(frozen=True, slots=True)
class Row:
    line: bytes
    tokens: int
    """As training sees it."""


class RowMaker:
    """Documents to rows, with a count of what was cut and what was left out."""

    def __init__(self, counter: TokenCounter, context: int) -> None:
        self.cut = Cut()
        self.drops = DropCounter()
        """Documents that were chosen and cannot be written."""
        self._counter = counter
        self._context = context

    def rows(self, document: Document, counted: int, domain: str) -> Iterator[Row]:
        """One row, or one for every piece of a document longer than the target. Turns stay the rows they were."""
        meta: dict[str, object] = {"domain": domain, "file": document.file.name, "line": document.line}
        if document.row is not None:
            yield from self._turns(document, counted, meta)
        elif counted <= self._context - COUNTING_SLACK:
            yield _row({"text": "".join(document.segments)}, meta, counted)
        else:
            yield from self._pieces(document, meta)

    def _turns(self, document: Document, counted: int, meta: dict[str, object]) -> Iterator[Row]:
        if counted > self._context:
            self.drops.add(Lost(document.file, document.line, TOO_LONG_TURNS, f"{counted:,} tokens"), counted)
        elif isinstance(document.value, dict):
            yield _row(document.value, meta, counted)

    def _pieces(self, document: Document, meta: dict[str, object]) -> Iterator[Row]:
        number = 0
        for number, piece in enumerate(
            self._counter.pieces(document.segments, self._context - self._counter.around), start=1
        ):
            if number > 1 and piece.tokens < LEAST_REMAINDER_TOKENS:
                self.cut = _plus(self.cut, dropped_pieces=1, dropped_tokens=piece.tokens)
                continue
            self.cut = _plus(self.cut, pieces=1)
            yield _row({"text": piece.text}, {**meta, "piece": number}, piece.tokens + self._counter.around)
        if number > 1:
            self.cut = _plus(self.cut, documents=1)
        else:
            self.cut = _plus(self.cut, pieces=-number)


def _plus(cut: Cut, **more: int) -> Cut:
    return msgspec.structs.replace(cut, **{name: getattr(cut, name) + count for name, count in more.items()})


def _row(fields: dict[str, object], meta: dict[str, object], tokens: int) -> Row:
    return Row(msgspec.json.encode({**fields, "meta": meta}, enc_hook=str) + b"\n", tokens)


def _name(hidden: Path, path: Path) -> None:
    """A link, unlike a rename, never lands on something; where a file system has none, look first."""
    try:
        os.link(hidden, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError(path) from None
        hidden.rename(path)


def require_writable(path: Path) -> None:
    """Try it before hours of counting. Raises EngineError `file.unwritable`."""
    hidden = _hidden(path)
    try:
        hidden.touch(exist_ok=False)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink()


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _unwritable(path: Path, error: OSError) -> EngineError:
    return EngineError(
        "file.unwritable",
        f"Cannot write {path}.",
        cause=error.strerror or str(error),
        next_step="Choose a folder you can write to.",
    )


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when everything in it is on disk, and only if nothing has that name by then.

    Raises EngineError `file.exists`, `file.unwritable`, `disk.full`; whatever is raised inside leaves nothing behind.
    """
    hidden = _hidden(path)
    try:
        with hidden.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _name(hidden, path)
    except FileExistsError as error:
        raise EngineError(
            "file.exists",
            f"{path} exists already and is left as it is.",
            next_step="Choose another name, or remove that file first.",
        ) from error
    except OSError as error:
        if error.errno in layout.DISK_FULL_ERRNOS:
            raise layout.disk_full(path.parent, error.strerror or str(error)) from error
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink()
