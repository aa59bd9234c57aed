"""Copying to a host: only what it lacks, from the byte where an interrupted copy stopped, verified there.

Owns what is sent and in which order. Must not know what the files are for. A second call with the same files sends
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError, ExitCode
from engine.remote.farside import Far, order, patiently
from engine.remote.inputs import Bundle
from engine.units import MIB, format_bytes

CHUNK_BYTES = 1 << 18
RESERVE_BYTES = 256 * MIB
"""Left free on the host's disk."""


@dataclass(frozen=True, slots=True)
class Item:
    """A file to be there, by its hash; from a path, or from memory."""

    sha: str
    size: int
    path: Path | None = None
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a copy took."""

    copied_bytes: int
    reused_bytes: int


class Copy:
    """One copy of several files to a host."""

    def __init__(self, far: Far, root: str, items: Sequence[Item], on_bytes: Callable[[int], None]) -> None:
        self.far = far
        self.root = root
        self.items = {item.sha: item for item in items}
        self.on_bytes = on_bytes
        self.copied_bytes = 0

    def run(self, free_bytes: int, say: Callable[[str], None], expect: Callable[[int], None]) -> Sent:
        """Raises EngineError `remote.no_room`, `remote.damaged`, `remote.dropped` when patience is over."""
        lacking = self._lacking()
        needed = sum(self.items[sha].size - offset for sha, offset in lacking)
        if needed + RESERVE_BYTES > free_bytes:
            raise _no_room(self.far.host.name, self.root, needed, free_bytes)
        if needed:
            expect(needed)
            patiently(self._send_once, say=say)
        total = sum(item.size for item in self.items.values())
        return Sent(needed, total - needed)

    def _lacking(self) -> list[tuple[str, int]]:
        """Hash and the bytes that are there already, of each file that is not complete."""
        have = order(self.far, "have", root=self.root, files=list(self.items))
        complete = set(have["complete"])
        found = [(sha, min(int(have["bytes"][sha]), item.size)) for sha, item in self.items.items()]
        return [(sha, offset) for sha, offset in found if sha not in complete]

    def _send_once(self) -> None:
        lacking = self._lacking()
        files = [{"sha": sha, "offset": offset, "size": self.items[sha].size} for sha, offset in lacking]
        order(self.far, "receive", self._bytes_of(lacking), root=self.root, files=files)

    def _bytes_of(self, lacking: list[tuple[str, int]]) -> Iterator[bytes]:
        for sha, offset in lacking:
            item = self.items[sha]
            for chunk in _chunks(item, offset):
                yield chunk
                self.copied_bytes += len(chunk)
                self.on_bytes(len(chunk))


def _chunks(item: Item, offset: int) -> Iterator[bytes]:
    if item.path is None:
        yield item.content[offset:]
        return
    left = item.size - offset
    with item.path.open("rb") as file:
        file.seek(offset)
        while left:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise EngineError(
                    "remote.input",
                    f"{item.path} became shorter while it was copied.",
                    next_step="Try again when nobody writes to it.",
                )
            left -= len(chunk)
            yield chunk


def place_bundle(far: Far, root: str, bundle: Bundle) -> str:
    """Show a bundle's files, all of them there, under their own names; returns the value for the spec there."""
    files = [[file.name, file.sha] for file in bundle.files]
    answer = patiently(lambda: order(far, "tree", root=root, name=bundle.name, files=files))
    return f"{answer['path']}/{bundle.tail}" if bundle.tail else str(answer["path"])


def _no_room(host: str, root: str, needed: int, free: int) -> EngineError:
    return EngineError(
        "remote.no_room",
        f"{host} has {format_bytes(free)} free in {root}; {format_bytes(needed)} have to be copied there.",
        cause=f"{format_bytes(RESERVE_BYTES)} are left free besides.",
        next_step="Free some space there, or name a folder on a larger disk with --home.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )
