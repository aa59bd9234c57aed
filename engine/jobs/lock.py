"""One runner per run, one process per output: advisory locks.

Owns taking and testing it. Must not know what the holder does. The runner hands the locked file to its worker, so the
lock is held as long as anybody works on the run, even when the runner itself was killed.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from engine.jobs.layout import LOCK

PATIENCE_SECONDS = 2.0
"""A reader tests the lock for microseconds; that must not turn a runner away."""


def take(path: Path, patience_seconds: float = 0.0) -> int | None:
    """The handle of a file that is made where it is missing, locked and open for appending; None when somebody else
    holds it. The lock lasts until the handle is closed, also by a kill."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except OSError:
            if time.monotonic() >= deadline:
                os.close(handle)
                return None
            time.sleep(0.02)


def acquire(run_dir: Path) -> int | None:
    """The locked file's handle, to be kept open; None when somebody works on the run."""
    return take(run_dir / LOCK, PATIENCE_SECONDS)


def is_held(run_dir: Path) -> bool:
    """Does a runner or a worker hold the run?"""
    return is_locked(run_dir / LOCK)


def is_locked(path: Path) -> bool:
    """Does somebody hold the lock of this file? False where there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
