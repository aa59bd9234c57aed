"""Compressed files as plain byte streams, unpacked piece by piece, and noticed when they end too early.

Owns the four formats. Must not know lines or documents. No read returns much more than it was asked for, however well
a file is compressed.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from enum import StrEnum
from typing import Any, BinaryIO, Protocol

_ZSTD_FEED_BYTES = 1 << 10
"""A block of 128 KiB may be four bytes long when packed: so much is fed at once to keep what comes out below 32 MiB."""
_ZSTD_WINDOW_BYTES = 1 << 27
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
"""What reading raises when a file is not what it should be; bz2 raises OSError without a number."""


class Packing(StrEnum):
    NONE = ""
    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"


_MAGIC = {
    b"\x1f\x8b": Packing.GZIP,
    b"BZh": Packing.BZIP2,
    b"\xfd7zXZ": Packing.XZ,
    b"\x28\xb5\x2f\xfd": Packing.ZSTD,
}


class ByteStream(Protocol):
    """What lines are read from."""

    def read(self, size: int, /) -> bytes: ...


class Damaged(Exception):
    """A compressed file is broken or ends too early."""

    def __init__(self, detail: str, *, truncated: bool) -> None:
        super().__init__(detail)
        self.truncated = truncated


def packing_of(start: bytes) -> Packing:
    """By a file's first bytes."""
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), Packing.NONE)


def unpacked(raw: BinaryIO, packing: Packing) -> ByteStream:
    """The bytes inside. Reading raises one of DAMAGE or OSError."""
    if packing is Packing.GZIP:
        return _Pieces(gzip.GzipFile(fileobj=raw))
    if packing is Packing.BZIP2:
        return _Pieces(bz2.BZ2File(raw))
    if packing is Packing.XZ:
        return _Pieces(lzma.LZMAFile(raw))
    if packing is Packing.ZSTD:
        return _ZstdStream(raw)
    return raw


def read_some(stream: ByteStream, size: int) -> bytes:
    """Up to `size` bytes, none at the end. Raises Damaged, or OSError when the disk cannot be read."""
    try:
        return stream.read(size)
    except EOFError as error:
        raise Damaged(_words(error), truncated=True) from error
    except DAMAGE as error:
        raise Damaged(_words(error), truncated=False) from error
    except OSError as error:
        if error.errno is None:
            raise Damaged(_words(error), truncated=False) from error
        raise


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class _Pieces:
    """What is unpacked so far at every read, so that nothing before the damage is lost with it."""

    def __init__(self, file: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile) -> None:
        self._file = file

    def read(self, size: int, /) -> bytes:
        return self._file.read1(size)


class _ZstdStream:
    """Frames one behind the other. Raises EOFError where the last one is incomplete."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._raw = raw
        self._library = zstandard
        self._frame: Any = None
        self._fed = b""
        self._ready = bytearray()
        self._broken: zlib.error | None = None

    def read(self, size: int, /) -> bytes:
        try:
            while len(self._ready) < size and self._feed():
                pass
        except (EOFError, zlib.error):
            if not self._ready:
                raise
        taken = bytes(self._ready[:size])
        del self._ready[:size]
        return taken

    def _feed(self) -> bool:
        if self._broken is not None:
            raise self._broken
        fed = self._fed or self._raw.read(_ZSTD_FEED_BYTES)
        self._fed = b""
        if not fed:
            if self._frame is not None:
                raise EOFError("the last frame is incomplete")
            return False
        if self._frame is None:
            self._frame = self._library.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
        try:
            self._ready += self._frame.decompress(fed)
        except self._library.ZstdError as error:
            self._broken = zlib.error(str(error))
            raise self._broken from error
        if self._frame.eof:
            self._fed = self._frame.unused_data
            self._frame = None
        return True
