"""One large file that has its name only when it is whole.

Owns the hidden sibling `.NAME.partial`, its lock, the room it needs and the rename. Must not know formats. A kill
leaves the sibling, and the next attempt writes over it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import EngineError, ExitCode
from engine.jobs import lock
from engine.jobs.layout import DISK_FULL_ERRNOS, fsync_directory
from engine.units import format_bytes


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


@contextmanager
def whole_file(out: Path, needed_bytes: int) -> Iterator[Path]:
    """The hidden path to write to; on leaving it is flushed and becomes `out`. After an error it is removed.

    Raises EngineError `export.busy` while another process writes the same file, `disk.full` with the bytes that are
    missing - before anything is written where that can be told - and `export.write`.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        handle = lock.take(partial)
        if handle is None:
            raise EngineError(
                "export.busy", f"Another process is writing {out}.", next_step="Wait for it, or stop it first."
            )
        try:
            yield from _written(partial, out, needed_bytes)
        finally:
            partial.unlink(missing_ok=True)
            os.close(handle)
    except OSError as error:
        raise _explained(error, out, 0) from error


def _written(partial: Path, out: Path, needed_bytes: int) -> Iterator[Path]:
    os.truncate(partial, 0)
    if missing := no_room(out, needed_bytes):
        raise missing
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(out)
        fsync_directory(out.parent)
    except OSError as error:
        written = partial.stat().st_size if partial.exists() else 0
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
