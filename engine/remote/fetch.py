"""What a run elsewhere has made, brought here: its output, by hash, from the byte where an interrupted copy stopped.

Owns `output/` of a mirror. A file gets its name when its SHA-256 is the host's. Must not know what is in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec

from engine.errors import EngineError, ExitCode
from engine.jobs import layout
from engine.jobs.launch import require_free_disk
from engine.remote import tail
from engine.remote.begin import Progress, Say, silent
from engine.remote.farside import Far, listening, order, patiently
from engine.remote.mirror import place_of
from engine.remote.passing import required_record
from engine.units import format_bytes

_READ_BYTES = 1 << 18


class _File(msgspec.Struct):
    name: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came, and what was here already."""

    files: tuple[str, ...]
    copied_bytes: int
    reused_bytes: int


def fetch(run_dir: Path, *, checkpoints: bool = False, say: Say = silent) -> Fetched:
    """Bring `output/` (and with `checkpoints` those too) into the mirror. Raises EngineError `remote.nothing`,
    `remote.damaged`, `remote.name`, `disk.full`."""
    record = required_record(run_dir)
    far = tail.far_of(record)
    tail.start(run_dir)  # whatever else the mirror lacks
    folders = [layout.OUTPUT, *([layout.CHECKPOINTS] if checkpoints else [])]
    say(f"Asking {record.host} what there is ...")
    answer = patiently(lambda: order(far, "listing", directory=record.directory, folders=folders), say=say)
    files = listed_files(run_dir, answer, folders)
    if not files:
        raise EngineError(
            "remote.nothing",
            f"Run {run_dir.name} has no output yet.",
            cause="It is written when training is complete, or stopped.",
            next_step=f"See how far it is: scaler-wizard attach {run_dir.name}",
        )
    lacking = [file for file in files if not _is_here(run_dir, file)]
    needed = sum(file.size for file in lacking)
    require_free_disk(run_dir, needed)
    progress = Progress(say)
    if needed:
        progress.expect(needed)
    for file in lacking:
        target = place_of(run_dir, file.name)
        patiently(partial(_get, far, record.directory, file, target, progress.on_bytes), say=say)
    total = sum(file.size for file in files)
    say(f"{format_bytes(needed)} copied, {format_bytes(total - needed)} were here already; every file has its SHA-256.")
    return Fetched(tuple(file.name for file in files), needed, total - needed)


def _is_here(run_dir: Path, file: _File) -> bool:
    path = place_of(run_dir, file.name)
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha


def listed_files(run_dir: Path, answer: dict[str, object], folders: Sequence[str]) -> list[_File]:
    """What the host says there is; all of it lies below the folders asked for. Raises EngineError `remote.failed`,
    `remote.name`."""
    try:
        files = msgspec.convert(answer.get("files"), list[_File])
    except msgspec.ValidationError as error:
        raise EngineError("remote.failed", "The host's list of files cannot be read.", cause=str(error)) from error
    for file in files:
        place_of(run_dir, file.name)
        if PurePosixPath(file.name).parts[0] not in folders:
            raise EngineError("remote.name", f"The host lists a file that was not asked for: {file.name!a}.")
    return files


def _get(far: Far, directory: str, file: _File, target: Path, on_bytes: Callable[[int], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{file.sha[:16]}.part")
    try:
        with part.open("ab") as out:
            offset = out.tell()
            if offset < file.size:
                with listening(far, "send", path=f"{directory}/{file.name}", offset=offset) as talk:
                    while chunk := talk.out.read(_READ_BYTES):
                        out.write(chunk)
                        on_bytes(len(chunk))
                    if talk.process.wait() or out.tell() < file.size:
                        raise talk.lost()
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        if error.errno in layout.DISK_FULL_ERRNOS:
            raise layout.disk_full(target.parent, error.strerror or str(error)) from error
        raise
    with part.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha:
            part.unlink()
            raise EngineError(
                "remote.damaged",
                f"{file.name} arrived damaged, or changed meanwhile.",
                cause=f"Its SHA-256 is not {file.sha[:12]}...",
                next_step="Fetch again: what was damaged is copied anew.",
                exit_code=ExitCode.RUN_FAILED,
            )
    shutil.move(part, target)
