"""A folder that appears complete or not at all, and what had its name before stays until then.

Owns the hidden siblings, their lock and the renames. Must not know what is in the folder. The lock is on the hidden
folder itself, so that nothing else is left lying about.

    .staging-NAME    grows; the next attempt removes what a kill left of it
    .replaced-NAME   what had the name, between the two renames; the next attempt puts it back after a kill there
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import EngineError
from engine.jobs.layout import fsync_directory


@contextmanager
def staged(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """An empty sibling folder; on leaving it is flushed and becomes `target`. When anything fails it is removed, and
    what was there stays. `replace`: take the name from what has it by then.

    Raises EngineError `output.busy` while another process makes the same folder, `output.exists`; OSError.
    """
    staging, replaced = target.with_name(f".staging-{target.name}"), target.with_name(f".replaced-{target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle = _begun(staging, target)
    try:
        _put_back(replaced, target)
        _remove(replaced)
        yield staging
        _flush(staging)
        _take_name(staging, target, replaced, replace=replace)
        _remove(replaced)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(handle)


def _begun(staging: Path, target: Path) -> int:
    """The empty folder's handle, locked until it is closed."""
    if staging.is_dir():
        os.close(_locked(staging, target))  # nobody's any more
        shutil.rmtree(staging)
    try:
        staging.mkdir()
    except FileExistsError:
        raise _busy(target) from None
    handle = _locked(staging, target)
    try:
        same = os.fstat(handle).st_ino == staging.stat().st_ino
    except FileNotFoundError:
        same = False
    if not same:  # another process took it for a leftover before it was locked
        os.close(handle)
        raise _busy(target)
    return handle


def _locked(folder: Path, target: Path) -> int:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _busy(target) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise _busy(target) from None
    except OSError:
        pass  # a file system that has no locks for folders
    return handle


def _busy(target: Path) -> EngineError:
    return EngineError(
        "output.busy",
        f"Another process is writing {target}.",
        next_step="Wait for it, or stop it first.",
    )


def _take_name(staging: Path, target: Path, replaced: Path, *, replace: bool) -> None:
    if os.path.lexists(target) and not replace:
        raise EngineError(
            "output.exists",
            f"{target} appeared while it was being made.",
            cause="Nothing is overwritten.",
            next_step="Choose another name, or move away what is there.",
        )
    try:
        if os.path.lexists(target):
            target.rename(replaced)
        staging.rename(target)
    except BaseException:
        _put_back(replaced, target)
        raise
    fsync_directory(target.parent)


def _put_back(replaced: Path, target: Path) -> None:
    if os.path.lexists(replaced) and not os.path.lexists(target):
        replaced.rename(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    for directory, _, names in os.walk(folder):
        for name in names:
            with (Path(directory) / name).open("rb") as file:
                os.fsync(file.fileno())
        fsync_directory(Path(directory))
