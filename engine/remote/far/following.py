"""A run followed from elsewhere: everything its mirror lacks, then everything that is new, until nobody works on it.

Owns the frames: a line of JSON, then as many bytes as it says. Must not know what the files mean.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .common import CHUNK_BYTES, Refused

POLL_SECONDS = 0.2
ALIVE_SECONDS = 2.0
CHECK_BYTES = 4096
"""Of what a mirror has, so much is compared before anything is appended to it."""
LARGEST_WHOLE_BYTES = 32 << 20
APPENDED = (".jsonl", ".log")
WHOLE = (".json", ".html")
OWN_FILES = ("remote.json", "link.json", "tail.log")
"""Of a mirror; a run that is itself one does not hand them on."""
SKIPPED_FOLDERS = ("checkpoints", "output", "control")


def tail(order: dict[str, Any]) -> None:
    """Send what the mirror of a run lacks, and go on until nobody works on the run any more or nobody listens."""
    Tail(Path(order["directory"]), order["offsets"], order["whole"]).run()


class Tail:
    """Where a mirror stands, and what it has to be told."""

    def __init__(self, run_dir: Path, offsets: dict[str, list[Any]], whole: dict[str, str]) -> None:
        self.run_dir = run_dir
        self.sent: dict[str, int] = {}
        self.known = offsets
        self.whole = whole
        self.seen: dict[str, tuple[int, int]] = {}
        self.out: BinaryIO = sys.stdout.buffer

    def run(self) -> None:
        if not self.run_dir.is_dir():
            raise Refused("remote.no_run", f"The run directory {self.run_dir} is gone from the host.")
        told = 0.0
        while True:
            working = held(self.run_dir)  # asked first: what is sent after it is complete
            busy = self._send_appended() + self._send_whole()
            now = time.monotonic()
            if busy or not working or now - told >= ALIVE_SECONDS:
                self._frame({"working": working})
                told = now
            if not working:
                return
            if listener_left(POLL_SECONDS):
                return

    def _frame(self, header: dict[str, Any], content: bytes = b"") -> None:
        self.out.write(json.dumps(header).encode() + b"\n" + content)
        self.out.flush()

    def _send_appended(self) -> int:
        count = 0
        for name in self._names(APPENDED):
            with (self.run_dir / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                offset = self.sent.get(name)
                if offset is None:
                    offset = self._agreed(name, file, size)
                if offset > size:
                    offset = 0
                while offset < size:
                    file.seek(offset)
                    chunk = file.read(min(CHUNK_BYTES, size - offset))
                    self._frame({"file": name, "offset": offset, "bytes": len(chunk)}, chunk)
                    offset += len(chunk)
                    count += 1
                self.sent[name] = offset
        return count

    def _agreed(self, name: str, file: BinaryIO, size: int) -> int:
        """Where to go on: the mirror's length if its end is what is here, else the beginning."""
        offset, sha = self.known.get(name, [0, ""])
        if not 0 < offset <= size:
            return 0
        begin = max(offset - CHECK_BYTES, 0)
        file.seek(begin)
        return int(offset) if hashlib.sha256(file.read(offset - begin)).hexdigest() == sha else 0

    def _send_whole(self) -> int:
        count = 0
        for name in self._names(WHOLE):
            path = self.run_dir / name
            try:
                status = path.stat()
                if self.seen.get(name) == (status.st_mtime_ns, status.st_size) or status.st_size > LARGEST_WHOLE_BYTES:
                    continue
                content = path.read_bytes()
            except OSError:
                continue
            self.seen[name] = (status.st_mtime_ns, status.st_size)
            sha = hashlib.sha256(content).hexdigest()
            if self.whole.get(name) != sha:
                self.whole[name] = sha
                self._frame({"file": name, "bytes": len(content)}, content)
                count += 1
        return count

    def _names(self, suffixes: tuple[str, ...]) -> Iterator[str]:
        """Journals, logs, cards and certificates: of the run itself and of its stages, not models nor checkpoints."""
        folders = [self.run_dir]
        for folder in folders:
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                continue
            for entry in entries:
                if entry.name.startswith(".") or entry.name in OWN_FILES or entry.is_symlink():
                    continue
                if entry.is_dir():
                    if entry.name not in SKIPPED_FOLDERS and not os.path.exists(f"{entry.path}/config.json"):
                        folders.append(Path(entry.path))
                elif entry.name.endswith(suffixes):
                    yield str(Path(entry.path).relative_to(self.run_dir))


def held(run_dir: Path) -> bool:
    """Does a runner or a worker work on the run? They hold its lock for as long as they live."""
    try:
        handle = os.open(run_dir / "runner.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def listener_left(seconds: float) -> bool:
    """Wait; true when the other side closed its end, which also happens when the connection is lost."""
    readable, _, _ = select.select([sys.stdin.buffer], [], [], seconds)
    return bool(readable) and not os.read(sys.stdin.fileno(), 4096)
