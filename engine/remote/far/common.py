"""What all orders have in common: the folder that holds everything, files by their hash, refusals.

Owns those. Must not know any order.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

CHUNK_BYTES = 1 << 18


class Refused(Exception):
    """What cannot be done here: a slug and sentences for people."""

    def __init__(self, code: str, what: str, cause: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.told = {"code": code, "what": what, "cause": cause, "next_step": next_step}


def blob_path(root: Path, sha: str) -> Path:
    return root / "files" / sha[:2] / sha


def sha_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, text: str) -> None:
    """A small file, whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_text(text, encoding="utf-8")
    staging.replace(path)


class Locked:
    """Held by one process at a time; others wait."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def __enter__(self) -> None:
        fcntl.flock(self._handle, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)
