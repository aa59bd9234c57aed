"""The hidden sibling in which an export grows, and what a rerun may keep of it.

Owns `.NAME.exporting`: the frozen order, whole files, the last rename. Must not know formats. A kill leaves the folder
there, and the same order goes on with it; another order, or a source that changed, begins anew.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.errors import EngineError, ExitCode
from engine.export.finished import remove
from engine.export.order import ExportOrder, check_target
from engine.jobs import lock
from engine.jobs.layout import DISK_FULL_ERRNOS, fsync_directory, write_atomic
from engine.units import format_bytes

_ORDER, _LOCK, _REPLACED = "order.json", "lock", "replaced"
_NO_LINK_ERRNOS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES})
_FREE_TO_CHANGE = {"force", "keep_failed", "verify"}
"""Fields of an order that do not change a byte of what is written."""
_PATIENCE_SECONDS = 6.0
"""An exporting process whose asker was killed needs a moment to end."""


@dataclass(frozen=True, slots=True)
class Staging:
    """A folder that becomes the output when it is complete."""

    folder: Path
    order: ExportOrder

    @property
    def out(self) -> Path:
        """The final name."""
        return self.order.out_path

    @property
    def result(self) -> Path:
        """What gets the final name: the folder itself, or with `one_file` the only file in it."""
        return self.folder / "result"

    @property
    def identity(self) -> str:
        """As `identity_of`, when the attempt began."""
        return hashlib.sha256((self.folder / _ORDER).read_bytes()).hexdigest()

    @property
    def work(self) -> Path:
        """Files that are needed on the way and not kept."""
        return self.folder / "work"


@contextmanager
def staging_of(order: ExportOrder) -> Iterator[Staging]:
    """The folder of `order`, with what an earlier attempt finished. Held by one process at a time; with anything made
    in it, it stays after an error, so that the next attempt goes on. Raises EngineError `export.busy`, `disk.full`,
    `export.write`, and as `check_target` does."""
    out = order.out_path
    folder = out.with_name(f".{out.name}.exporting")
    with explained(folder):
        handle = _taken(folder, out)
        try:
            _begin(folder, order)
            staging = Staging(folder, order)
            staging.work.mkdir(exist_ok=True)
            yield staging
        finally:
            _drop_where_nothing_was_made(folder)
            os.close(handle)


def finish(staging: Staging) -> None:
    """Give the result its name, durably. What has the name by now is replaced with `force` only; a kill between the
    two renames leaves it in the folder, and the next attempt puts it back. Raises as `check_target` does."""
    with explained(staging.out):
        _flush(staging.result)
        named = staging.result
        if staging.order.one_file:
            (named,) = staging.result.iterdir()
        check_target(staging.order)
        if staging.out.exists():
            staging.out.rename(staging.folder / _REPLACED)
        named.rename(staging.out)
        fsync_directory(staging.out.parent)
        shutil.rmtree(staging.folder, ignore_errors=True)


def identity_of(order: ExportOrder) -> str:
    """SHA-256 of the order and of the files it reads, with sizes and times."""
    return hashlib.sha256(_identity(order)).hexdigest()


def place(source: Path, target: Path) -> None:
    """`source`'s bytes under `target`, linked where the file system can, else copied whole or not at all. A target that
    has them already stays."""
    source = source.resolve()
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
        return
    except OSError as error:
        if error.errno not in _NO_LINK_ERRNOS:
            raise
    require_room(target.parent, source.stat().st_size, target.name)
    partial = target.with_name(f".{target.name}.partial")
    shutil.copyfile(source, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.rename(target)


def written_bytes(folder: Path) -> int:
    """What was made in `folder` of the export; linked files are others', and the order's own are not counted."""
    made = (path for part in ("result", "work") for path in (folder / part).rglob("*"))
    found = (path.stat() for path in made if path.is_file())
    return sum(file.st_size for file in found if file.st_nlink == 1)


def require_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Raises EngineError `disk.full` that says how much is missing."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise EngineError(
            "disk.full",
            f"{what} takes {format_bytes(needed_bytes)}; {format_bytes(free)} are free in {existing}.",
            cause=f"{format_bytes(needed_bytes - free)} are missing.",
            next_step="Free some space, or choose a folder on another disk with --out.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )


@contextmanager
def explained(place: Path, needed_bytes: int = 0) -> Iterator[None]:
    """What a disk says, in words, with what is missing where the whole is known to take `needed_bytes`. Raises
    EngineError `disk.full`, `export.write`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in DISK_FULL_ERRNOS:
            raise EngineError(
                "disk.full",
                f"There is no room left to write {place}.{_missing(place, needed_bytes)}",
                cause=reason,
                next_step="Free some space and run the same command again: it goes on with what is missing.",
                exit_code=ExitCode.DOES_NOT_FIT,
            ) from error
        raise EngineError(
            "export.write",
            f"{place} cannot be written.",
            cause=reason,
            next_step="Check the folder and its permissions, or choose another with --out.",
        ) from error


def _missing(folder: Path, needed_bytes: int) -> str:
    """ " 1.2 GiB are missing.": what is still to be written, less what is free now."""
    if not folder.is_dir():
        return ""
    left = needed_bytes - written_bytes(folder)
    missing = left - shutil.disk_usage(folder).free
    return f" {format_bytes(missing if missing > 0 else left)} are missing." if left > 0 else ""


def _taken(folder: Path, out: Path) -> int:
    """The folder's lock. Whoever held it may have removed the folder by then."""
    path = folder / _LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = lock.take(path, _PATIENCE_SECONDS)
        except FileNotFoundError:
            continue
        if handle is None:
            raise EngineError(
                "export.busy", f"Another process is exporting to {out}.", next_step="Wait for it, or stop it first."
            )
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            return handle
        os.close(handle)


def _drop_where_nothing_was_made(folder: Path) -> None:
    made = [*(folder / "result").rglob("*"), *(folder / "work").rglob("*")]
    if not (folder / _REPLACED).exists() and not any(path.is_file() for path in made):
        shutil.rmtree(folder, ignore_errors=True)


def _put_back(folder: Path, out: Path) -> None:
    """What a killed attempt had moved away for its result: to its name where the result did not come."""
    replaced = folder / _REPLACED
    if not os.path.lexists(replaced):
        return
    if os.path.lexists(out):
        remove(replaced)
    else:
        replaced.rename(out)


def _begin(folder: Path, order: ExportOrder) -> None:
    """Keep what an earlier attempt at the same order left; else begin anew."""
    _put_back(folder, order.out_path)
    check_target(order)
    present = _identity(order)
    kept = folder / _ORDER
    if kept.is_file() and kept.read_bytes() == present:
        return
    for path in folder.iterdir():
        if path.name != _LOCK:
            remove(path)
    write_atomic(kept, present)


def _identity(order: ExportOrder) -> bytes:
    """The order, and the files it reads with sizes and times."""
    fields = {name: value for name, value in msgspec.to_builtins(order).items() if name not in _FREE_TO_CHANGE}
    named = [Path(word) for word in (order.source, order.base) if word]
    files = sorted(path for folder in named for path in folder.iterdir() if path.is_file())
    if order.imatrix:
        files.append(Path(order.imatrix))
    seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return msgspec.json.encode({"order": fields, "files": seen})


def _flush(path: Path) -> None:
    for file in [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    if path.is_dir():
        fsync_directory(path)
