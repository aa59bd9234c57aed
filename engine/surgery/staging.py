"""The hidden folder beside the output in which it grows, and what a resume needs to trust it.

Owns `.OUT.growing/`: the frozen order, the progress log, the lock, and the last rename. Must not know tensors.

    order.json       plan, recipes' digest, the source's identity; written first, compared on resume
    progress.jsonl   one line per finished step, appended and flushed after the step is durable
    plan.json  made.safetensors  proof.json       for and from the other processes
    model-0000i-of-0000n.safetensors              each has its name only when it is whole

What is not part of the output goes before the rename, the log after the rest: a folder with a certificate and no log is
complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from engine.errors import EngineError, ExitCode
from engine.expansion.certificate import CERTIFICATE_NAME
from engine.jobs import lock
from engine.jobs.layout import fsync_directory, write_atomic
from engine.surgery.writer import PARTIAL, Sealed

ORDER, PROGRESS, PLAN, MADE, PROOF, PROOF_LOG = (
    "order.json", "progress.jsonl", "plan.json", "made.safetensors", "proof.json", "proof.log",
)  # fmt: skip
_HASH_BYTES = 4 << 20


class SourceFile(msgspec.Struct, frozen=True):
    """What must not change between two attempts."""

    name: str
    size_bytes: int
    modified_ns: int
    head_sha256: str
    """Of a weight file's header, or of a whole small file."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """`order.json`: what is being made of what."""

    v: int = 1
    program: str
    source: str
    files: tuple[SourceFile, ...]
    plan: dict[str, Any]
    recipes_sha256: str
    shard_bytes: int
    undo: bool = False


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of `progress.jsonl`."""

    step: str
    """ "made", "shard", "failed"."""
    name: str = ""
    size_bytes: int = 0
    sha256: str = ""
    written_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """What earlier attempts finished."""

    shards: dict[str, Sealed]
    made: bool


def staging_folder(out: Path) -> Path:
    """Where `out` grows: hidden, beside it, on the same file system."""
    return out.parent / f".{out.name}.growing"


class Staging:
    """A context that holds the folder's lock."""

    def __init__(self, out: Path, folder: Path, log: int) -> None:
        self.out, self.folder, self._log = out, folder, log

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        nothing_kept = os.fstat(self._log).st_size == 0
        if error is not None and nothing_kept:
            shutil.rmtree(self.folder, ignore_errors=True)  # nothing a resume could use
        os.close(self._log)

    @classmethod
    def create(cls, out: Path, order: Order) -> Staging:
        """A new folder. Raises EngineError `surgery.unfinished` when an earlier attempt lies there."""
        folder = staging_folder(out)
        if folder.exists():
            raise EngineError(
                "surgery.unfinished",
                f"An unfinished expansion to {out} lies in {folder}.",
                cause=_why_unfinished(folder),
                next_step=f"Continue it with --resume, or remove {folder} and start again.",
            )
        folder.mkdir(parents=True)
        write_atomic(folder / ORDER, msgspec.json.encode(order))
        fsync_directory(folder.parent)
        return cls(out, folder, _locked(folder))

    @classmethod
    def resume(cls, out: Path, order: Order) -> Staging:
        """The folder of an earlier attempt at the same order. Raises EngineError `surgery.nothing_to_resume`,
        `surgery.other_plan`, `surgery.source_changed`, `surgery.busy`."""
        folder = staging_folder(out)
        if not (folder / ORDER).is_file():
            raise EngineError(
                "surgery.nothing_to_resume",
                f"There is no unfinished expansion to {out}.",
                next_step=f"Start it without --resume{f', after removing {folder}' if folder.exists() else ''}.",
            )
        staging = cls(out, folder, _locked(folder))
        try:
            _compare(order, folder)
        except BaseException:
            os.close(staging._log)
            raise
        for partial in folder.glob(f".*{PARTIAL}"):
            partial.unlink()
        return staging

    def done(self) -> Done:
        """What is finished and still as it was: size and SHA-256 of every shard are checked again."""
        lines = list(_lines(self.folder / PROGRESS))
        shards = {line.name: line for line in lines if line.step == "shard"}
        kept: dict[str, Sealed] = {}
        for name, line in shards.items():
            path = self.folder / name
            if path.is_file() and path.stat().st_size == line.size_bytes and sha256_of(path) == line.sha256:
                kept[name] = Sealed(name, line.size_bytes, line.sha256, line.written_bytes)
        return Done(kept, any(line.step == "made" for line in lines) and (self.folder / MADE).is_file())

    def record_shard(self, sealed: Sealed) -> None:
        """A shard is durable under its name."""
        fsync_directory(self.folder)
        self._append(
            _Line(
                step="shard",
                name=sealed.name,
                size_bytes=sealed.size_bytes,
                sha256=sealed.sha256,
                written_bytes=sealed.written_bytes,
            )
        )

    def record(self, step: str, words: str = "") -> None:
        """Another step is finished, or ("failed") why this attempt ended."""
        self._append(_Line(step=step, name=words))

    def publish(self, names: Iterable[str]) -> None:
        """The folder is complete: everything but `names` goes, and it gets its own. Raises EngineError
        `surgery.out_exists`."""
        if self.out.exists():
            raise EngineError(
                "surgery.out_exists",
                f"{self.out} appeared while the model was being made.",
                next_step=f"Move it away and use --resume; the result is in {self.folder}.",
            )
        kept = {*names, ORDER, PROGRESS}
        for path in list(self.folder.rglob("*")):
            if path.is_file() and path.relative_to(self.folder).as_posix() not in kept:
                path.unlink()
        (self.folder / PROGRESS).unlink()
        _take_name(self.folder, self.out)

    def _append(self, line: _Line) -> None:
        os.write(self._log, msgspec.json.encode(line) + b"\n")
        os.fsync(self._log)


def finish_interrupted(out: Path, certificate: str = CERTIFICATE_NAME) -> bool:
    """Whether an attempt that was killed between its last two steps could be completed by renaming alone.
    `certificate`: the file that is written when everything else is."""
    folder = staging_folder(out)
    if (folder / certificate).is_file() and not (folder / PROGRESS).exists() and not out.exists():
        _take_name(folder, out)
        return True
    return False


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, streamed through a small buffer."""
    hasher = hashlib.sha256()
    buffer = bytearray(_HASH_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(memoryview(buffer)[:count])
    return hasher.hexdigest()


def _take_name(folder: Path, out: Path) -> None:
    (folder / ORDER).unlink(missing_ok=True)
    fsync_directory(folder)
    folder.rename(out)
    fsync_directory(out.parent)


def _locked(folder: Path) -> int:
    handle = lock.take(folder / PROGRESS)
    if handle is None:
        raise EngineError(
            "surgery.busy",
            f"Another process is working in {folder}.",
            next_step="Wait for it, or stop it first.",
        )
    return handle


def _lines(path: Path) -> Iterator[_Line]:
    """The log's whole lines; the last one may have been cut by a crash."""
    for raw in path.read_bytes().split(b"\n"):
        try:
            yield msgspec.json.decode(raw, type=_Line)
        except msgspec.MsgspecError:
            continue


def _compare(order: Order, folder: Path) -> None:
    try:
        earlier = msgspec.json.decode((folder / ORDER).read_bytes(), type=Order)
    except msgspec.MsgspecError as error:
        raise EngineError(
            "surgery.staging_damaged",
            f"{folder / ORDER} cannot be read.",
            cause=str(error),
            next_step=f"Remove {folder} and start again.",
        ) from error
    if earlier.files != order.files:
        changed = [file.name for file in earlier.files if file not in order.files]
        raise EngineError(
            "surgery.source_changed",
            f"The source is not what it was when the expansion to {folder.name} began.",
            cause=f"Changed: {', '.join(changed[:3]) or 'the list of its files'}.",
            next_step=f"Restore it, or remove {folder} and start again.",
        )
    if (earlier.plan, earlier.shard_bytes, earlier.recipes_sha256, earlier.undo) != (
        msgspec.to_builtins(order.plan),
        order.shard_bytes,
        order.recipes_sha256,
        order.undo,
    ):
        raise EngineError(
            "surgery.other_plan",
            "The unfinished expansion has another plan.",
            cause=f"Dimensions, operators, seed, type or shard size differ from those in {folder / ORDER}.",
            next_step=f"Resume with the same options, or remove {folder} and start again.",
        )


def _why_unfinished(folder: Path) -> str:
    lines = list(_lines(folder / PROGRESS)) if (folder / PROGRESS).is_file() else []
    shards = sum(1 for line in lines if line.step == "shard")
    failed = [line.name for line in lines if line.step == "failed"]
    return failed[-1] if failed else f"It was interrupted with {shards} weight files finished."


def no_room(folder: Path, needed_bytes: str, free_bytes: str) -> EngineError:
    """The refusal before the first byte."""
    return EngineError(
        "disk.full",
        f"The larger model needs {needed_bytes} in {folder}, and {free_bytes} are free.",
        cause="The output is written whole beside the source, which stays.",
        next_step="Free some space, or choose an output folder on another disk.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


def disk_full(folder: Path, error: OSError) -> EngineError:
    """The disk filled up on the way."""
    return EngineError(
        "disk.full",
        f"There is no room left to write in {folder}.",
        cause=error.strerror or str(error),
        next_step="Free some space and use --resume; finished weight files are kept.",
        exit_code=ExitCode.RUN_FAILED,
    )
