"""One large file that has its name only when it is whole.

Owns the hidden sibling `.NAME.partial`, its lock, the room it needs and the rename. Must not know formats. A kill
leaves the sibling, and the next attempt writes over it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError, ExitCode
from engine.jobs import lock
from engine.jobs.layout import DISK_FULL_ERRNOS, fsync_directory
from engine.units import format_bytes

_PATIENCE_SECONDS = 2.0
"""A worker whose asker was killed needs a moment to end."""


def check_target(out: Path, *, force: bool) -> None:
    """Raises EngineError `export.exists` where something has the name already and may not be replaced, `export.write`
    where there is no folder for it."""
    if out.is_dir():
        raise EngineError("export.exists", f"{out} is a folder.", next_step="Name a file, like model.gguf.")
    if out.exists() and not force:
        raise EngineError(
            "export.exists", f"{out} exists already.", next_step="Choose another name, or replace it with --force."
        )
    if not out.parent.is_dir():
        raise EngineError("export.write", f"There is no folder {out.parent}.", next_step="Make it, or choose another.")


@dataclass(frozen=True, slots=True)
class Partial:
    """A file before it has its name."""

    path: Path
    handle: int
    """Locked; another process that writes to the path must inherit it, so that nobody else begins before it ends."""


@contextmanager
def whole_file(out: Path, needed_bytes: int, *, force: bool) -> Iterator[Partial]:
    """The hidden file to write to; on leaving it is flushed and becomes `out`. After an error it is removed.

    Raises EngineError as `check_target`, `export.busy` while another process writes the same file, `disk.full` with the
    bytes that are missing - before anything is written where that can be told - and `export.write`.
    """
    check_target(out, force=force)
    try:
        partial = _taken(out)
        try:
            yield from _written(partial, out, needed_bytes, force=force)
        except BaseException:
            partial.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(partial.handle)
    except OSError as error:
        raise _explained(error, out, 0) from error


def _taken(out: Path) -> Partial:
    path = out.with_name(f".{out.name}.partial")
    while True:
        handle = lock.take(path, _PATIENCE_SECONDS)
        if handle is None:
            raise EngineError(
                "export.busy", f"Another process is writing {out}.", next_step="Wait for it, or stop it first."
            )
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            return Partial(path, handle)
        os.close(handle)  # the other's file, which has its name by now


def _written(partial: Partial, out: Path, needed_bytes: int, *, force: bool) -> Iterator[Partial]:
    os.truncate(partial.path, 0)
    if missing := no_room(out, needed_bytes):
        raise missing
    try:
        yield partial
        os.fsync(partial.handle)
        check_target(out, force=force)
        partial.path.rename(out)
        fsync_directory(out.parent)
    except OSError as error:
        written = partial.path.stat().st_size if partial.path.exists() else 0
        raise _explained(error, out, needed_bytes - written) from error


def no_room(out: Path, needed_bytes: int) -> EngineError | None:
    """The refusal where `needed_bytes` more do not fit beside `out`; the caller raises it."""
    free = shutil.disk_usage(out.parent).free
    if free >= needed_bytes:
        return None
    return _full(out, f"{format_bytes(needed_bytes)} are needed, {format_bytes(free)} free.", needed_bytes - free)


def _explained(error: OSError, out: Path, left_bytes: int) -> EngineError:
    reason = error.strerror or str(error)
    if error.errno in DISK_FULL_ERRNOS:
        missing = max(left_bytes - shutil.disk_usage(out.parent).free, 0) or left_bytes
        return _full(out, reason, missing)
    return EngineError(
        "export.write",
        f"{out} cannot be written.",
        cause=reason,
        next_step="Check the folder and its permissions, or choose another.",
    )


def _full(out: Path, cause: str, missing_bytes: int) -> EngineError:
    missing = f" {format_bytes(missing_bytes)} are missing." if missing_bytes > 0 else ""
    return EngineError(
        "disk.full",
        f"There is no room for {out}.{missing}",
        cause=cause,
        next_step="Free some space, or choose a folder on another disk, and run the same command again.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )
