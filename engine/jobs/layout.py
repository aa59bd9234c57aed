"""The names inside a run directory, and how files in it are replaced.

Owns file names and atomic writing. Must not know what the files mean.
A run directory is self-contained: every path written into it is relative to it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from engine.errors import EngineError, ExitCode

SPEC = "spec.toml"
RUN = "run.json"
JOURNAL = "journal.jsonl"
RUNNER_JOURNAL = "runner.jsonl"
WORKER_LOG = "worker.log"
RUNNER_LOG = "runner.log"
LOCK = "runner.lock"
CONTROL = "control"
CHECKPOINTS = "checkpoints"
OUTPUT = "output"
CARD = "card.json"
CARD_PAGE = "card.html"
HOSTS = "hosts.txt"
"""Machines of a run on several, one a line."""
PROCESSES = "processes"
"""Processes per machine, where that is no longer what the spec says."""

COMMANDS = ("stop", "pause", "checkpoint")
"""What can be asked of a run, as files in `control/`; by rank: of two requests the stronger one counts."""

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def fsync_directory(directory: Path) -> None:
    """Make renames and new names in `directory` durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: bytes, *, private: bool = False) -> None:
    """Readers see the old file or the whole new one; after a power cut too. A `private` one is for its owner alone.
    Raises EngineError `disk.full`."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with staging.open("wb") as file:
            if private:
                os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        staging.unlink(missing_ok=True)
        if error.errno in DISK_FULL_ERRNOS:
            raise disk_full(path.parent, error.strerror or str(error)) from error
        raise


def disk_full(directory: Path, cause: str) -> EngineError:
    """The one wording for a disk without room."""
    return EngineError(
        "disk.full",
        f"There is no room left to write in {directory}.",
        cause=cause,
        next_step="Free some space there, then resume the run; its last good checkpoint is kept.",
        exit_code=ExitCode.RUN_FAILED,
    )


def read_tail(path: Path, *, max_bytes: int, after: int = 0) -> bytes:
    """The last `max_bytes` of a file, never from before offset `after`; empty when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(after, size - max_bytes, 0))
            return file.read(max_bytes)
    except OSError:
        return b""
