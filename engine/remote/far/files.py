"""Files taken in by their hash, shown under their own names, and handed out again.

Owns the store below the root: `files/` by hash, `inputs/` as links to them. Must not know what is in a file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

from .common import CHUNK_BYTES, Refused, blob_path, sha_of, write_whole

SILENT_SECONDS = 60
"""A sender that sends nothing for so long is gone; its own ssh gives up sooner. Without a limit a connection that broke
unnoticed would keep the file from the one that goes on with it."""


def have(order: dict[str, Any]) -> dict[str, Any]:
    """Bytes that are here of each file asked for: all of it, the part an interrupted copy left, or 0."""
    root = Path(order["root"])
    sizes = {}
    for sha in order["files"]:
        blob = blob_path(root, sha)
        found = blob if blob.is_file() else blob.with_suffix(".part")
        sizes[sha] = found.stat().st_size if found.is_file() else 0
    return {"bytes": sizes, "complete": [sha for sha in order["files"] if blob_path(root, sha).is_file()]}


def receive(order: dict[str, Any]) -> dict[str, Any]:
    """Take files in from standard input, one after the other, each from the byte where it stopped; none is taken over
    whose hash is not its name."""
    root, taken = Path(order["root"]), []
    for entry in order["files"]:
        _take(blob_path(root, entry["sha"]), entry["sha"], entry["offset"], entry["size"])
        taken.append(entry["sha"])
    return {"taken": taken}


def _take(blob: Path, sha: str, offset: int, size: int) -> None:
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_suffix(".part")
    with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two connections may copy the same file: the second one waits
        if blob.is_file():  # for the first one, which was done meanwhile
            _pass_on(size - offset, None)
            part.unlink(missing_ok=True)
            return
        file.truncate(offset)
        file.seek(offset)
        _pass_on(size - offset, file)
        file.flush()
        os.fsync(file.fileno())
        if sha_of(part) != sha:
            file.truncate(0)  # never removed: somebody may wait for it
            raise Refused(
                "remote.damaged",
                "A file arrived damaged.",
                f"Its SHA-256 is not {sha[:12]}...",
                "Try again: it is copied anew.",
            )
        part.chmod(0o444)
        part.replace(blob)


def _pass_on(left: int, file: BinaryIO | None) -> None:
    """The next `left` bytes of standard input into `file`, or to nobody."""
    source = cast("BufferedReader", sys.stdin.buffer)
    signal.signal(signal.SIGALRM, _sender_gone)
    while left:
        signal.alarm(SILENT_SECONDS)
        chunk = source.read1(min(left, CHUNK_BYTES))
        signal.alarm(0)  # a slow disk is no silent sender
        if not chunk:
            raise Refused("remote.dropped", "The connection was lost while a file was copied.")
        if file is not None:
            file.write(chunk)
        left -= len(chunk)


def _sender_gone(*_: object) -> None:
    raise Refused("remote.dropped", f"Nothing arrived for {SILENT_SECONDS} seconds while a file was copied.")


def tree(order: dict[str, Any]) -> dict[str, Any]:
    """A folder with files under their own names, all of them here already; its name is the hash of the list."""
    root = Path(order["root"])
    target = root / "inputs" / order["name"]
    if not target.is_dir():
        staging = target.with_name(f".{target.name}.{os.getpid()}")
        for name, sha in order["files"]:
            place = staging / name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(blob_path(root, sha), place)
            except OSError:  # a file system without links
                shutil.copyfile(blob_path(root, sha), place)
        try:
            staging.rename(target)
        except OSError:  # somebody else was faster
            shutil.rmtree(staging)
    return {"path": str(target)}


def write(order: dict[str, Any]) -> dict[str, Any]:
    """A small file, whole or not there."""
    write_whole(Path(order["path"]), order["text"])
    return {}


def read(order: dict[str, Any]) -> dict[str, Any]:
    """A small file, its bytes as hexadecimal digits."""
    path = Path(order["path"])
    if not path.is_file():
        raise Refused("remote.no_run", f"There is no {path}.", "", "Is the run's folder still there?")
    return {"content": path.read_bytes().hex()}


def listing(order: dict[str, Any]) -> dict[str, Any]:
    """Every file below the folders named: name, bytes, SHA-256."""
    base = Path(order["directory"])
    files = [
        {"name": str(path.relative_to(base)), "size": path.stat().st_size, "sha": sha_of(path)}
        for folder in order["folders"]
        for path in sorted((base / folder).rglob("*"))
        if path.is_file()
    ]
    return {"files": files}


def send(order: dict[str, Any]) -> None:
    """The bytes of a file from an offset on."""
    with open(order["path"], "rb") as file:
        file.seek(order["offset"])
        shutil.copyfileobj(file, sys.stdout.buffer, CHUNK_BYTES)
    sys.stdout.buffer.flush()
