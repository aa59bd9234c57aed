"""Checkpoint folders that are whole or not there: staged, flushed, sealed with a manifest, renamed.

Owns `checkpoints/step-00000010/` and its `manifest.json` (size and SHA-256 of every file, written last). Must not
know what the files hold; which of them a resume cannot do without is the caller's `required`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.jobs import layout
from engine.units import format_bytes

MANIFEST = "manifest.json"
ROOM_FACTOR = 1.2
"""Free space asked for before a save, relative to the size of the last one."""

_NAME = re.compile(r"step-(\d{8,})")
_STAGING, _REPLACED = ".staging-", ".replaced-"
_FULL_DISK_TEXT = re.compile(r"No space left on device|Disk quota exceeded|File too large|os error (28|122|27)\b")


class FileSeal(msgspec.Struct, frozen=True):
    """One file of a checkpoint."""

    path: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`; `seal` covers the other fields, so that an edited manifest is noticed."""

    step: int
    created: float
    files: tuple[FileSeal, ...]
    seal: str = ""
    v: int = 1


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to "which checkpoint can be resumed from?"."""

    path: Path | None
    step: int
    messages: tuple[str, ...]
    """One sentence per newer checkpoint that was passed over."""


def folder_name(step: int) -> str:
    """ "step-00000010"."""
    return f"step-{step:08d}"


def _all(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder), newest first, verified or not."""
    try:
        entries = list((run_dir / layout.CHECKPOINTS).iterdir())
    except OSError:
        return []
    found = [(int(match.group(1)), entry) for entry in entries if (match := _NAME.fullmatch(entry.name))]
    return sorted(found, reverse=True)


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint that has a manifest, without reading its files; 0 when there is none."""
    return next((step for step, path in _all(run_dir) if (path / MANIFEST).is_file()), 0)


def sound_steps(run_dir: Path) -> tuple[int, ...]:
    """Steps of the checkpoints that look whole, newest first; contents are not hashed."""
    return tuple(step for step, path in _all(run_dir) if not verify(path, deep=False))


def size_bytes(path: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────
@contextlib.contextmanager
def saving(run_dir: Path, step: int, *, required: Iterable[str] = (), expected_bytes: int = 0) -> Iterator[Path]:
    """Yields an empty folder to write into; on leaving, it becomes the checkpoint of `step`. When anything fails the
    folder is removed and the earlier checkpoints stay; a full disk raises EngineError `disk.full`."""
    staging = stage_dir(run_dir, step, expected_bytes=expected_bytes)
    try:
        yield staging
        commit(staging, step, required=required)
    except EngineError:
        raise
    except Exception as error:
        full = is_disk_full(error)
        if full:
            raise layout.disk_full(run_dir, str(error)) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def stage_dir(run_dir: Path, step: int, *, expected_bytes: int = 0) -> Path:
    """A hidden, empty sibling of the checkpoint to be. Raises EngineError `disk.full` when room looks too short."""
    require_room(run_dir, expected_bytes)
    staging = run_dir / layout.CHECKPOINTS / f"{_STAGING}{folder_name(step)}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def require_room(run_dir: Path, expected_bytes: int = 0) -> None:
    """Asks for 1.2 x the larger of `expected_bytes` and the newest checkpoint. Raises EngineError `disk.full`."""
    newest = next((path for _, path in _all(run_dir)), None)
    last_bytes = size_bytes(newest) if newest is not None else 0
    needed_bytes = int(max(expected_bytes, last_bytes) * ROOM_FACTOR)
    free_bytes = shutil.disk_usage(run_dir).free
    if free_bytes < needed_bytes:
        raise layout.disk_full(
            run_dir, f"A checkpoint needs {format_bytes(needed_bytes)}; {format_bytes(free_bytes)} are free."
        )


def commit(staging: Path, step: int, *, required: Iterable[str] = ()) -> Path:
    """Flush, seal and rename `staging`; returns the checkpoint folder. On failure `staging` is gone and EngineError
    `disk.full` or the OSError is raised."""
    target = staging.parent / folder_name(step)
    try:
        missing = [name for name in required if not (staging / name).is_file()]
        if missing:
            raise EngineError(
                "checkpoint.incomplete", f"The checkpoint of step {step} lacks {', '.join(missing)}; it was not kept."
            )
        seals = tuple(_flush_and_seal(staging))
        manifest = Manifest(step=step, created=time.time(), files=seals)
        manifest = msgspec.structs.replace(manifest, seal=_seal_of(manifest))
        layout.write_atomic(staging / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        _put_in_place(staging, target)
        return target
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if is_disk_full(error):
            raise layout.disk_full(staging.parent.parent, error.strerror or str(error)) from error
        raise
    except EngineError:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _flush_and_seal(folder: Path) -> Iterator[FileSeal]:
    """Every file and directory below `folder` reaches the disk."""
    for directory, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(directory) / name
            with path.open("rb") as file:
                os.fsync(file.fileno())
                digest = _sha256_of(path)
            yield FileSeal(path.relative_to(folder).as_posix(), path.stat().st_size, digest)
        layout.fsync_directory(Path(directory))


def _put_in_place(staging: Path, target: Path) -> None:
    replaced = target.with_name(f"{_REPLACED}{target.name}")
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    staging.rename(target)
    layout.fsync_directory(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def is_disk_full(error: BaseException) -> bool:
    """Did this come from a full disk, a quota or a file-size limit? Libraries hide the errno in their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in layout.DISK_FULL_ERRNOS
    return bool(_FULL_DISK_TEXT.search(str(error)))


def sweep(run_dir: Path) -> None:
    """Remove what an interrupted save left behind. Only for who holds the run."""
    parent = run_dir / layout.CHECKPOINTS
    with contextlib.suppress(OSError):
        for entry in list(parent.iterdir()):
            target = parent / entry.name.removeprefix(_REPLACED)
            if entry.name.startswith(_REPLACED) and not target.exists():
                entry.rename(target)
            elif entry.name.startswith((_STAGING, _REPLACED)):
                shutil.rmtree(entry, ignore_errors=True)


def drop(run_dir: Path, step: int) -> None:
    """Remove the checkpoint of `step`: at once gone for everybody, however long the removal takes."""
    leaving = run_dir / layout.CHECKPOINTS / f"{_STAGING}dropped-{folder_name(step)}"
    shutil.rmtree(leaving, ignore_errors=True)
    (run_dir / layout.CHECKPOINTS / folder_name(step)).rename(leaving)
    layout.fsync_directory(leaving.parent)
    shutil.rmtree(leaving, ignore_errors=True)


def prune(run_dir: Path, keep: int) -> None:
    """Remove checkpoints older than the newest `keep` sound ones; damaged ones in between do not count as kept."""
    sound = 0
    for _, path in _all(run_dir):
        if sound >= keep:
            shutil.rmtree(path, ignore_errors=True)
        elif not verify(path, deep=False):
            sound += 1


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────
def latest(run_dir: Path, *, required: Iterable[str] | Callable[[Path], Iterable[str]] = ()) -> Found:
    """The newest checkpoint that verifies, and what was wrong with newer ones. `required`: files that none can do
    without, or those that the one in a folder cannot."""
    always = () if callable(required) else tuple(required)
    messages: list[str] = []
    for step, path in _all(run_dir):
        problems = verify(path, required=required(path) if callable(required) else always)
        if not problems:
            return Found(path, step, tuple(messages))
        messages.append(f"The checkpoint of step {step} is damaged and was passed over: {'; '.join(problems)}.")
    return Found(None, 0, tuple(messages))


def verify(path: Path, *, required: Iterable[str] = (), deep: bool = True) -> list[str]:
    """Every problem of a checkpoint folder, in words; empty means sound. Without `deep` contents are not hashed."""
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, msgspec.MsgspecError) as error:
        return [f"{MANIFEST} cannot be read ({error})"]
    problems: list[str] = []
    if manifest.seal != _seal_of(manifest):
        problems.append(f"{MANIFEST} was changed")
    if folder_name(manifest.step) != path.name:
        problems.append(f"{MANIFEST} is of step {manifest.step}")
    sealed = {seal.path for seal in manifest.files}
    problems += [f"{name} is not part of it" for name in required if name not in sealed]
    for seal in manifest.files:
        problem = _file_problem(path, seal, deep)
        if problem:
            problems.append(problem)
    return problems


def _file_problem(folder: Path, seal: FileSeal, deep: bool) -> str:
    path = folder / seal.path
    if not path.resolve().is_relative_to(folder.resolve()):
        return f"{seal.path} lies outside the checkpoint"
    try:
        size = path.stat().st_size
        if size != seal.size_bytes:
            return f"{seal.path} has {size} bytes instead of {seal.size_bytes}"
        if deep and _sha256_of(path) != seal.sha256:
            return f"{seal.path} has other contents than were saved"
    except FileNotFoundError:
        return f"{seal.path} is missing"
    except OSError as error:
        return f"{seal.path} cannot be read ({error.strerror})"
    return ""


def _sha256_of(path: Path) -> str:
    import hashlib  # late: the runner never hashes, and OpenSSL is a third of its memory

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal_of(manifest: Manifest) -> str:
    import hashlib

    unsealed = msgspec.structs.replace(manifest, seal="")
    return hashlib.sha256(msgspec.json.encode(unsealed)).hexdigest()
