"""Lines of a byte stream, with their numbers and bytes; a line beyond the limit is passed over without being held.

Owns splitting. Must not know what lines mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.corpus.unpacking import ByteStream, read_some

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end; `content` is None where it was too long."""

    content: bytes | None
    number: int
    """From 1."""
    first_byte: int
    """In the unpacked file, from 0."""
    size_bytes: int
    """With its end."""


def lines(stream: ByteStream, limit_bytes: int, *, number: int = 0, first_byte: int = 0) -> Iterator[Line]:
    """All lines from where the stream stands: behind `number` lines, `first_byte` bytes into the file.

    Raises Damaged or OSError in the middle of a line, which is then lost.
    """
    held: list[bytes] = []
    held_bytes = 0
    while block := read_some(stream, BLOCK_BYTES):
        *whole, rest = block.split(b"\n")
        for part in whole:
            size = held_bytes + len(part) + 1
            number += 1
            if size - 1 > limit_bytes:
                yield Line(None, number, first_byte, size)
            else:
                yield Line(b"".join((*held, part)) if held else part, number, first_byte, size)
            first_byte += size
            held, held_bytes = [], 0
        held_bytes += len(rest)
        if held_bytes <= limit_bytes:
            held.append(rest)
        else:
            held = []
    if held_bytes:
        content = b"".join(held) if held_bytes <= limit_bytes else None
        yield Line(content, number + 1, first_byte, held_bytes)


def pass_over(stream: ByteStream, size_bytes: int) -> None:
    """Read and forget: how a compressed file is gone on with."""
    while size_bytes > 0 and (block := read_some(stream, min(size_bytes, BLOCK_BYTES))):
        size_bytes -= len(block)
