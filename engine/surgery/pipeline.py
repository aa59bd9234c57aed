"""Bytes on their way to disk: written, hashed and made durable in threads, while the next ones are made.

Owns the threads, the buffers they share and the output files. Must not know tensors. Every queue is bounded by the
number of buffers, so memory does not depend on how far the disk is behind.

    producer ─► write ─► hash ─► back to the producer
                  └──► sync (every 128 MB, and when a file ends)
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

BUFFER_BYTES = 2 << 20
BUFFERS = 16
_FLUSH_BYTES = 128 << 20
"""Written but not yet on disk: small, so that the last wait is short."""
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.ETXTBSY, errno.EPERM}
"""Between file systems, or where the kernel or a sandbox has no such call."""


@dataclass(slots=True)
class OutFile:
    """A file being written."""

    path: Path
    handle: int
    hasher: Any = field(default_factory=hashlib.sha256)
    written_bytes: int = 0
    """Without holes."""
    unflushed_bytes: int = 0
    on_sealed: Callable[[OutFile], None] | None = None

    @property
    def sha256(self) -> str:
        """Of everything put so far."""
        return str(self.hasher.hexdigest())


@dataclass(frozen=True, slots=True)
class _Piece:
    file: OutFile
    offset: int
    data: memoryview
    hole: bool = False
    origin: tuple[int, int] | None = None
    """(open file, offset) that holds the same bytes."""
    owner: Bytes | None = None
    last: bool = False


class Pipeline:
    """A context: leaving it waits until everything put is durable, and raises what went wrong on the way."""

    def __init__(self, buffer_bytes: int = BUFFER_BYTES, buffers: int = BUFFERS) -> None:
        self._zeros: Bytes = np.zeros(buffer_bytes, dtype=np.uint8)
        self._free: queue.SimpleQueue[Bytes] = queue.SimpleQueue()
        for _ in range(buffers):
            self._free.put(np.empty(buffer_bytes, dtype=np.uint8))
        self._write: queue.Queue[_Piece | None] = queue.Queue(buffers)
        self._hash: queue.Queue[_Piece | None] = queue.Queue(buffers)
        self._sync: queue.SimpleQueue[tuple[OutFile, bool] | None] = queue.SimpleQueue()
        self._can_copy = hasattr(os, "copy_file_range")
        self._failure: BaseException | None = None
        self._open: list[OutFile] = []
        loops = (self._write_loop, self._hash_loop, self._sync_loop)
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in loops]

    def __enter__(self) -> Pipeline:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and self._failure is None:
            self._failure = error
        self._write.put(None)
        for thread in self._threads:
            thread.join()
        for file in self._open:
            os.close(file.handle)
        self._open.clear()
        if error is None:
            self.check()

    # ── for the producer ──────────────────────────────────────────────────────────────────────────────────────────
    def open(self, path: Path, size_bytes: int) -> OutFile:
        """A new file of `size_bytes`, all hole."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        file = OutFile(path, handle)
        self._open.append(file)
        os.ftruncate(handle, size_bytes)
        return file

    def buffer(self, count: int) -> Bytes:
        """A free buffer of `count` bytes; waits for one. Raises what went wrong in a thread."""
        taken = self._free.get()
        self.check()
        if taken.size < count:
            taken = np.empty(count, dtype=np.uint8)
        return taken

    def put(self, file: OutFile, offset: int, buffer: Bytes, count: int, origin: tuple[int, int] | None = None) -> None:
        """The first `count` bytes of a buffer; the buffer is given away. With an `origin` (open file, offset) that
        holds the same bytes the kernel copies them, or shares them where the file system can."""
        self._write.put(_Piece(file, offset, buffer.data[:count], origin=origin, owner=buffer))

    def put_bytes(self, file: OutFile, offset: int, content: bytes) -> None:
        """A few bytes."""
        self._write.put(_Piece(file, offset, memoryview(content)))

    def put_zeros(self, file: OutFile, offset: int, count: int) -> None:
        """Zeros, left as a hole."""
        while count:
            self.check()
            step = min(count, self._zeros.size)
            self._write.put(_Piece(file, offset, self._zeros.data[:step], hole=True))
            offset += step
            count -= step

    def seal(self, file: OutFile, on_sealed: Callable[[OutFile], None]) -> None:
        """Nothing more comes: flush the file, close it, and call `on_sealed` (in a thread)."""
        file.on_sealed = on_sealed
        self._write.put(_Piece(file, 0, memoryview(b""), last=True))

    def check(self) -> None:
        """Raises what went wrong in a thread."""
        if self._failure is not None:
            raise self._failure

    # ── threads ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _write_loop(self) -> None:
        while (piece := self._write.get()) is not None:
            self._attempt(self._write_piece, piece)
            self._hash.put(piece)
        self._hash.put(None)

    def _hash_loop(self) -> None:
        while (piece := self._hash.get()) is not None:
            self._attempt(self._hash_piece, piece)
            if piece.owner is not None:
                self._free.put(piece.owner)
        self._sync.put(None)

    def _sync_loop(self) -> None:
        while (task := self._sync.get()) is not None:
            self._attempt(self._flush, *task)

    def _attempt(self, step: Callable[..., None], *arguments: Any) -> None:
        """After the first failure everything is passed on untouched, so that nobody waits for ever."""
        if self._failure is not None:
            return
        try:
            step(*arguments)
        except BaseException as error:  # raised again by the producer
            self._failure = error

    def _write_piece(self, piece: _Piece) -> None:
        file = piece.file
        if piece.hole or piece.last:
            return
        done = self._copy(piece) if piece.origin is not None and self._can_copy else 0
        while done < len(piece.data):
            done += os.pwrite(file.handle, piece.data[done:], piece.offset + done)
        file.written_bytes += done
        file.unflushed_bytes += done
        if file.unflushed_bytes >= _FLUSH_BYTES:
            file.unflushed_bytes = 0
            self._sync.put((file, False))

    def _copy(self, piece: _Piece) -> int:
        """Bytes that the kernel copied; the rest is written from memory."""
        assert piece.origin is not None
        source, start = piece.origin
        done = 0
        try:
            while done < len(piece.data):
                count = os.copy_file_range(
                    source, piece.file.handle, len(piece.data) - done, start + done, piece.offset + done
                )
                if count == 0:
                    break
                done += count
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            self._can_copy = False
        return done

    def _hash_piece(self, piece: _Piece) -> None:
        piece.file.hasher.update(piece.data)
        if piece.last:
            self._sync.put((piece.file, True))

    def _flush(self, file: OutFile, last: bool) -> None:
        os.fdatasync(file.handle)
        if not last:
            return
        os.fsync(file.handle)
        os.close(file.handle)
        self._open.remove(file)
        if file.on_sealed is not None:
            file.on_sealed(file)
