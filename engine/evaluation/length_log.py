"""What has been measured so far, so that a measurement that was killed goes on where it was.

Owns one append-only file of JSON lines. Must not know what is measured. Each line is written in one call and carries
the key of its request, so that several requests can share a file; a torn last line is passed over, and the next one
begins afresh.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

Found = TypeVar("Found")


class _Line(msgspec.Struct, frozen=True):
    request: str
    cell: str
    value: msgspec.Raw
    seconds: float = 0.0


class CellLog:
    """Finished cells of one request; without a path only in memory."""

    def __init__(self, path: Path | None, request: str) -> None:
        self._request = request
        self._values: dict[str, bytes] = {}
        self._handle: int | None = None
        self.seconds = 0.0
        """Of the cells that were there already."""
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        text = path.read_bytes()
        for raw in text.splitlines():
            try:
                line = msgspec.json.decode(raw, type=_Line)
            except msgspec.DecodeError:
                continue
            if line.request == request:
                self._values[line.cell] = bytes(line.value)
                self.seconds += line.seconds
        if text and not text.endswith(b"\n"):
            os.write(self._handle, b"\n")

    def find(self, cell: str, kind: type[Found]) -> Found | None:
        """The value of a finished cell; None where it is not finished."""
        raw = self._values.get(cell)
        if raw is None:
            return None
        try:
            return msgspec.json.decode(raw, type=kind)
        except msgspec.ValidationError:
            return None

    def add(self, cell: str, value: Any, seconds: float) -> None:
        """A finished cell; on the disk when this returns."""
        raw = msgspec.json.encode(value)
        self._values[cell] = raw
        if self._handle is not None:
            os.write(self._handle, msgspec.json.encode(_Line(self._request, cell, msgspec.Raw(raw), seconds)) + b"\n")
            os.fsync(self._handle)

    def forget(self, condition: Callable[[str], bool]) -> None:
        """Cells that hold no longer, by name. The file keeps them until others are added in their place."""
        self._values = {cell: value for cell, value in self._values.items() if not condition(cell)}

    def close(self) -> None:
        """Let go of the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
