"""SHA-256 of local files, remembered: a file that did not change is not read again.

Owns `hashes.json` in the state folder. A file counts as unchanged while its path, size, inode and time of change are
what they were. Must not know why a hash is wanted. The memory may be lost at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.jobs import layout
from engine.paths import ensure_writable, state_home

FILE = "hashes.json"
YOUNG_SECONDS = 2.0
"""A file changed so recently may change again within the clock's grain: its hash is not kept."""

_MOST = 50_000


class Known(msgspec.Struct, frozen=True, array_like=True):
    """A file as it was when it was read."""

    size: int
    modified_ns: int
    inode: int
    sha: str


class Hashes:
    """Open once, ask often, save at the end."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._known = msgspec.json.decode((state_home() / FILE).read_bytes(), type=dict[str, Known])

    def of(self, path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
        """The hash of a file; `on_bytes` is told how much was read. Raises OSError."""
        status = path.stat()
        known = self._known.get(str(path))
        if known and (known.size, known.modified_ns, known.inode) == (
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
        ):
            return known.sha
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                on_bytes(len(chunk))
        sha = digest.hexdigest()
        if time.time() - status.st_mtime > YOUNG_SECONDS:
            self._known[str(path)] = Known(status.st_size, status.st_mtime_ns, status.st_ino, sha)
        return sha

    def save(self) -> None:
        """Keep what was learned, of the newest files if there are too many; a full disk is no reason to fail."""
        kept = dict(list(self._known.items())[-_MOST:])
        with contextlib.suppress(OSError, EngineError):
            layout.write_atomic(ensure_writable(state_home()) / FILE, msgspec.json.encode(kept))
