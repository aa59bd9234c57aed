"""The race's log: the lines it prints, kept in a file, so that what was measured is not measured again.

Owns the file. Must not know how anything is measured. The first line names what is measured and how; a log of another
race is refused, never overwritten. A line that was cut short is dropped.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.jobs.race_lines import Line, RaceRow, RaceStarted, decode_line, encode_line

_TOLD_BY = 16
"""Bytes that every race's log begins with."""


class RaceLog:
    """Rows by method; without a path only in memory."""

    def __init__(self, path: Path | None, started: RaceStarted) -> None:
        """Raises EngineError `race.log` for another race's file, one that another process writes to, or one that
        cannot be written."""
        self.rows: dict[str, RaceRow] = {}
        self._handle: int | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            cause = error.strerror or str(error)
            raise _refused(f"{path} cannot be opened as a race's log.", cause, "Make it writable") from error
        try:
            self._open(path, handle, started)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle

    def _open(self, path: Path, handle: int, started: RaceStarted) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the file is closed, also by a kill
        except OSError as error:
            raise _refused(f"Another race is writing to {path}.", str(error), "Wait for it") from error
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        lines = [decode_line(line) for line in whole.splitlines()]
        first = lines[0] if lines else None
        if (lines and not isinstance(first, RaceStarted)) or not encode_line(started).startswith(text[:_TOLD_BY]):
            raise _refused(f"{path} is not a race's log.", "It begins with something else.", "Leave it as it is")
        if isinstance(first, RaceStarted) and _measured(first) != _measured(started):
            raise _refused(
                f"{path} belongs to another race.", "Model, text, lengths or seed are different.", f"Remove {path}"
            )
        for line in lines:
            if isinstance(line, RaceRow):
                self.rows[line.method] = line
        os.ftruncate(handle, len(whole))
        os.lseek(handle, 0, os.SEEK_END)
        if not lines:
            _write(handle, started)

    def add(self, line: Line) -> None:
        """A line; on the disk when this returns. A row replaces the method's row before it."""
        if isinstance(line, RaceRow):
            self.rows[line.method] = line
        if self._handle is not None:
            _write(self._handle, line)

    def close(self) -> None:
        """Let go of the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _measured(started: RaceStarted) -> RaceStarted:
    return msgspec.structs.replace(started, contenders=(), rule="", model="")


def _write(handle: int, line: Line) -> None:
    rest = encode_line(line)
    while rest:
        rest = rest[os.write(handle, rest) :]
    os.fsync(handle)


def _refused(what: str, cause: str, otherwise: str) -> EngineError:
    return EngineError("race.log", what, cause=cause, next_step=f"{otherwise}, or name another file with --log.")
