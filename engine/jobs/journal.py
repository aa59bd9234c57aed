"""Journals: append events as JSON lines, and follow them while somebody else appends.

Owns the line format, torn lines and the merge of the worker's and the runner's file. Must not know what events mean.
Every line goes out in one write() on an O_APPEND file, so a kill can tear at most the last line; the next writer
starts on a fresh line and the reader counts the torn one as damaged.
"""

from __future__ import annotations

import contextlib
import os
import threading
import typing
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from engine.jobs.events import AnyEvent
from engine.jobs.layout import DISK_FULL_ERRNOS, JOURNAL, RUNNER_JOURNAL, disk_full, read_tail

CHUNK_BYTES = 256 * 1024

_DECODER: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_KINDS: dict[str, type[msgspec.Struct]] = {kind.__struct_config__.tag: kind for kind in typing.get_args(AnyEvent)}


class JournalWriter:
    """Appends events to one file; one writer process per file. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()
        self._handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._handle).st_size
        self._torn = size > 0 and os.pread(self._handle, 1, size - 1) != b"\n"

    def write(self, event: AnyEvent, *, sync: bool = False) -> None:
        """Append one line; with `sync` it is on the disk when this returns. Raises EngineError `disk.full`."""
        line = self._encoder.encode(event) + b"\n"
        with self._lock:
            try:
                self._write_line(line)
                if sync:
                    os.fsync(self._handle)
            except OSError as error:
                self._torn = True
                if error.errno in DISK_FULL_ERRNOS:
                    raise disk_full(self.path.parent, error.strerror or str(error)) from error
                raise

    def _write_line(self, line: bytes) -> None:
        if self._torn:
            line = b"\n" + line
        written = os.write(self._handle, line)
        self._torn = written < len(line)
        while written < len(line):
            written += os.write(self._handle, line[written:])
        self._torn = False

    def close(self) -> None:
        """Further writes raise OSError."""
        os.close(self._handle)

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def restore_nan(tree: Any, kind: Any) -> Any:
    """JSON has no NaN, so writers leave null: put NaN back wherever the type `kind` wants a plain float."""
    if tree is None:
        return float("nan") if kind is float else None
    if isinstance(tree, list):
        items = typing.get_args(kind)
        return [restore_nan(item, items[0]) for item in tree] if items else tree
    if isinstance(tree, dict) and typing.get_args(kind):  # a part that may be missing
        kind = next(
            (one for one in typing.get_args(kind) if isinstance(one, type) and issubclass(one, msgspec.Struct)), kind
        )
    if isinstance(tree, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return {name: restore_nan(value, hints.get(name)) for name, value in tree.items()}
    return tree


class _Damaged(Exception):
    """A line that is no event of ours, though it should be."""


def _decode_line(line: bytes) -> AnyEvent | None:
    """One event; None for a kind this version does not know. Raises _Damaged."""
    try:
        return _DECODER.decode(line)
    except msgspec.MsgspecError:
        pass
    try:
        tree = msgspec.json.decode(line)
        if isinstance(tree, dict) and isinstance(tree.get("kind"), str):
            kind = _KINDS.get(tree["kind"])
            return None if kind is None else typing.cast(AnyEvent, msgspec.convert(restore_nan(tree, kind), kind))
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _Damaged from error
    raise _Damaged


class _FileTail:
    """One journal file: where we are in it, and what could not be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.resets = 0
        self.damaged = 0
        self.unknown = 0
        self._inode = 0

    def read(self) -> Iterator[list[AnyEvent]]:
        """Batches of events of all complete lines since the last call; a partial last line is left for later."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            self._notice_rewrite(file.fileno())
            wanted = CHUNK_BYTES
            while True:
                chunk = os.pread(file.fileno(), wanted, self.offset)
                end = chunk.rfind(b"\n") + 1
                if end == 0:
                    if len(chunk) < wanted:
                        return
                    wanted *= 2  # a line longer than the chunk
                    continue
                events = self._decode(chunk[:end])
                self.offset += end
                wanted = CHUNK_BYTES
                yield events

    def _notice_rewrite(self, handle: int) -> None:
        """A file that shrank, was replaced, or no longer has a line end where we stopped is read from its start."""
        status = os.fstat(handle)
        replaced = self._inode not in (0, status.st_ino)
        rewritten = self.offset > 0 and os.pread(handle, 1, self.offset - 1) != b"\n"
        self._inode = status.st_ino
        if replaced or rewritten or status.st_size < self.offset:
            self.offset = 0
            self.resets += 1

    def _decode(self, lines: bytes) -> list[AnyEvent]:
        with contextlib.suppress(msgspec.MsgspecError, ValueError):
            return _DECODER.decode_lines(lines)
        events: list[AnyEvent] = []
        for line in lines.split(b"\n"):
            if not line.strip():
                continue
            try:
                event = _decode_line(line)
            except _Damaged:
                self.damaged += 1
                continue
            if event is None:
                self.unknown += 1
            else:
                events.append(event)
        return events


class JournalTail:
    """Follows both journals of a run and merges them by time, keeping the order inside each file."""

    def __init__(self, run_dir: Path) -> None:
        self._worker = _FileTail(run_dir / JOURNAL)
        self._runner = _FileTail(run_dir / RUNNER_JOURNAL)

    @property
    def damaged_lines(self) -> int:
        """Complete lines that could not be read."""
        return self._worker.damaged + self._runner.damaged

    @property
    def unknown_lines(self) -> int:
        """Events of kinds this version does not know; newer versions write them."""
        return self._worker.unknown + self._runner.unknown

    @property
    def resets(self) -> int:
        """How often a file was rewritten under us and read again; when it grows, fold from scratch."""
        return self._worker.resets + self._runner.resets

    @property
    def offsets(self) -> tuple[int, int]:
        """Bytes consumed of the worker's and of the runner's journal."""
        return self._worker.offset, self._runner.offset

    def has_news(self) -> bool:
        """Two stat calls: did a file change its length since it was read?"""
        return any(_size(tail.path) != tail.offset for tail in (self._worker, self._runner))

    def stream(self) -> Iterator[AnyEvent]:
        """New events one by one; memory stays at one chunk however long the journal is."""
        # The runner's file first: whatever the worker wrote before it exited is then certainly there as well.
        runner = list(chain.from_iterable(self._runner.read()))
        return chain.from_iterable(merge(self._worker.read(), runner))

    def read_new(self) -> list[AnyEvent]:
        """All new events as a list."""
        return list(self.stream())


def merge(worker: Iterable[list[AnyEvent]], runner: list[AnyEvent]) -> Iterator[list[AnyEvent]]:
    """Both files' events by time, in batches; the order inside each file is kept even when a clock was set back."""
    next_runner = 0
    clock = float("-inf")
    for batch in worker:
        newest = max((event.t for event in batch), default=clock)
        if next_runner == len(runner) or runner[next_runner].t > newest:
            clock = max(clock, newest)
            yield batch
            continue
        merged: list[AnyEvent] = []
        for event in batch:
            clock = max(clock, event.t)
            while next_runner < len(runner) and runner[next_runner].t <= clock:
                merged.append(runner[next_runner])
                next_runner += 1
            merged.append(event)
        yield merged
    yield runner[next_runner:]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_head_events(path: Path, *, max_bytes: int | None = None) -> list[AnyEvent]:
    """Events of the complete lines within the first `max_bytes`, or of the whole file."""
    try:
        with path.open("rb") as file:
            head = file.read(-1 if max_bytes is None else max_bytes)
    except OSError:
        return []
    return _FileTail(path)._decode(head[: head.rfind(b"\n") + 1])


def read_tail_events(path: Path, *, max_bytes: int, after: int = 0) -> list[AnyEvent]:
    """Events of the complete lines within the last `max_bytes`, none from before offset `after`."""
    tail = read_tail(path, max_bytes=max_bytes + 1, after=max(after - 1, 0))
    if _size(path) > max_bytes + 1 or after > 0:
        tail = tail[tail.find(b"\n") + 1 :] if b"\n" in tail else b""
    return _FileTail(path)._decode(tail[: tail.rfind(b"\n") + 1])
