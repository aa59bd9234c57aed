"""Write a teacher's top logits: the shards that are missing, each whole or not at all.

Owns the passes over the rows and the hidden folder. Must not know how a teacher is loaded or who asks. A process that
is killed loses the shard it was computing; the next one computes that and those behind it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save
from torch import Tensor

from engine.distill.cache_files import (
    MANIFEST,
    ORDER,
    CacheOrder,
    Manifest,
    Segment,
    ShardRecord,
    is_sound,
    parts_of,
    read_manifest,
    read_record,
    rename,
    shard_name,
    staging_of,
    write_record,
)
from engine.distill.knowledge import FullLogits, Knowledge
from engine.distill.tail import POWERS, powers_of_the_rest
from engine.errors import EngineError, ExitCode
from engine.estimate.surroundings import cached_token_bytes
from engine.evaluation.head import Wanted
from engine.jobs.layout import DISK_FULL_ERRNOS, write_atomic
from engine.jobs.lock import take
from engine.paths import ensure_writable
from engine.units import format_bytes

SEQUENCE_TOKENS = 1024
"""Rows share sequences of so many tokens; a longer row has its own."""
CHUNK_POSITIONS = 512
"""Whole distributions at once."""
_WAIT_SECONDS = 1.0
_MARGIN_BYTES = 16 << 20

Teacher = Callable[[], AbstractContextManager[Knowledge]]
"""Loads a teacher that gives `FullLogits`, and frees it on leaving."""
Tell = Callable[[int, int, str], None]
"""Told positions done, of how many, and what is going on; may raise to give up."""


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """What there is, and what was done for it."""

    folder: Path
    tokens: int
    size_bytes: int
    shards: int
    made_shards: int
    seconds: float
    """Of computing them, by whichever run."""


def ensure_cache(
    order: CacheOrder,
    segments: Sequence[Segment],
    home: Path,
    teacher: Teacher,
    tell: Tell,
    *,
    shard_bytes: int = 0,
) -> CacheFacts:
    """The folder with all shards, whole and sound: found, completed, or made. The teacher is loaded only where
    something is missing, and is gone afterwards. Another process that makes the same cache is waited for.

    Raises EngineError `disk.full`, `home.unwritable`, `distill.teacher_narrow`, and what `teacher` and `tell` raise.
    """
    folder, staging = home / order.folder_name, staging_of(home, order)
    ensure_writable(home)
    parts = parts_of(segments, order.k, shard_bytes) if shard_bytes else parts_of(segments, order.k)
    with _locked(home / f".{order.folder_name}.lock", tell):
        manifest = _found(folder, order, parts)
        if manifest is not None:
            return _facts(folder, manifest, 0)
        if folder.exists():
            _take_back(folder, staging, order)
        kept = _begun(staging, order, parts)
        missing = [number for number in range(len(parts)) if number not in kept]
        _check_room(staging, order, [parts[number] for number in missing])
        if missing:
            kept |= _made(staging, order, parts, missing, teacher, tell)
        manifest = Manifest(order=order, shards=tuple(kept[number] for number in range(len(parts))))
        write_atomic(staging / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
        rename(staging, folder)
        return _facts(folder, manifest, len(missing))


def _facts(folder: Path, manifest: Manifest, made: int) -> CacheFacts:
    return CacheFacts(folder, manifest.tokens, manifest.size_bytes, len(manifest.shards), made, manifest.seconds)


@contextmanager
def _locked(path: Path, tell: Tell) -> Iterator[None]:
    while (handle := take(path, _WAIT_SECONDS)) is None:
        tell(0, 0, "another job is making the same logits")
    try:
        yield
    finally:
        os.close(handle)


# ── what is there ─────────────────────────────────────────────────────────────────────────────────────────────────
def _found(folder: Path, order: CacheOrder, parts: Sequence[Sequence[Segment]]) -> Manifest | None:
    """The manifest of a complete cache all of whose shards are as they were written."""
    manifest = read_manifest(folder)
    if manifest is None or not manifest.order.same_as(order) or len(manifest.shards) != len(parts):
        return None
    return manifest if all(is_sound(folder, record) for record in manifest.shards) else None


def _take_back(folder: Path, staging: Path, order: CacheOrder) -> None:
    """A cache that is damaged loses its name until it is whole again."""
    if staging.exists():
        shutil.rmtree(staging)
    rename(folder, staging)


def _begun(staging: Path, order: CacheOrder, parts: Sequence[Sequence[Segment]]) -> dict[int, ShardRecord]:
    """The shards of earlier attempts that are whole and sound, by number; everything else is cleared away."""
    staging.mkdir(exist_ok=True)
    if not _is_order(staging / ORDER, order):
        shutil.rmtree(staging)
        staging.mkdir()
        write_atomic(staging / ORDER, msgspec.json.encode(order) + b"\n")
    kept = {}
    for number, part in enumerate(parts):
        record = read_record(staging, number)
        whole = record is not None and record.name == shard_name(number) and record.tokens == _tokens(part)
        if record is not None and whole and is_sound(staging, record):
            kept[number] = record
    names = {record.name for record in kept.values()}
    names |= {Path(name).with_suffix(".json").name for name in names} | {ORDER, MANIFEST}
    for path in staging.iterdir():
        if path.name not in names:
            path.unlink()
    return kept


def _is_order(path: Path, order: CacheOrder) -> bool:
    try:
        return msgspec.json.decode(path.read_bytes(), type=CacheOrder).same_as(order)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return False


def _tokens(part: Sequence[Segment]) -> int:
    return sum(len(segment.wanted) for segment in part)


# ── making ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _made(
    staging: Path,
    order: CacheOrder,
    parts: Sequence[Sequence[Segment]],
    missing: Sequence[int],
    teacher: Teacher,
    tell: Tell,
) -> dict[int, ShardRecord]:
    total = sum(map(_tokens, parts))
    done = total - sum(_tokens(parts[number]) for number in missing)
    made = {}
    tell(done, total, "loading the teacher")
    with teacher() as knowledge:
        for number in missing:
            began = time.monotonic()
            rows = _Rows(parts[number], order)
            for batch in _sequences(parts[number]):
                tell(done, total, "")
                rows.add(knowledge, batch)
                done += _tokens(batch)
            later_bytes = (total - done) * cached_token_bytes(order.k)
            made[number] = _written(staging, number, rows, later_bytes, time.monotonic() - began)
    tell(done, total, "")
    return made


def _sequences(part: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Rows that are computed together, in order."""
    batch: list[Segment] = []
    for segment in part:
        if batch and sum(len(one.ids) for one in batch) + len(segment.ids) > SEQUENCE_TOKENS:
            yield batch
            batch = []
        batch.append(segment)
    if batch:
        yield batch


def wanted_of(batch: Sequence[Segment]) -> Wanted:
    """Rows one behind the other in one sequence (1, T), kept apart by positions that restart."""
    ids: list[int] = []
    places: list[int] = []
    positions: list[int] = []
    for segment in batch:
        positions += [len(ids) + place for place in segment.wanted]
        ids += segment.ids
        places += range(len(segment.ids))
    return Wanted(torch.tensor([ids]), torch.tensor([places]), torch.tensor(positions))


class _Rows:
    """A shard while it is computed."""

    def __init__(self, part: Sequence[Segment], order: CacheOrder) -> None:
        tokens, k = _tokens(part), min(order.k, order.vocabulary)
        self._order, self._filled = order, 0
        self.rows, self.tokens = len(part), tokens
        keys = torch.frombuffer(bytearray(b"".join(segment.key for segment in part)), dtype=torch.uint8)
        self.tensors: dict[str, Tensor] = {
            "keys": keys.reshape(len(part), -1),
            "counts": torch.tensor([len(segment.wanted) for segment in part], dtype=torch.int32),
            "ids": torch.empty((tokens, k), dtype=torch.int32),
            "log_probs": torch.empty((tokens, k), dtype=torch.float16),
            "rest": torch.empty((tokens, len(POWERS)), dtype=torch.float32),
        }

    @torch.no_grad()
    def add(self, knowledge: Knowledge, batch: Sequence[Segment]) -> None:
        """The teacher's answer to some rows. Raises EngineError `distill.teacher_narrow`."""
        view, count = knowledge.at(wanted_of(batch)), _tokens(batch)
        for first in range(0, count, CHUNK_POSITIONS):
            said = view.chunk(first, min(first + CHUNK_POSITIONS, count))
            if not isinstance(said, FullLogits):
                raise TypeError("a cache is made from whole distributions")
            self._keep(said.logits)

    def _keep(self, logits: Tensor) -> None:
        """(C, V) -> the next C rows of the shard."""
        vocabulary = self._order.vocabulary
        if logits.shape[-1] < vocabulary:
            raise EngineError(
                "distill.teacher_narrow",
                f"The teacher answers with {logits.shape[-1]:,} tokens; {vocabulary:,} are shared by the tokenizers.",
                cause="Its output head is smaller than its vocabulary.",
                next_step="Choose another teacher.",
            )
        log_probs = torch.log_softmax(logits[..., :vocabulary].float(), -1)  # (C, V)
        kept, ids = log_probs.topk(self.tensors["ids"].shape[-1], -1)  # (C, K)
        rest = powers_of_the_rest(log_probs, ids)  # (C, 12)
        here = slice(self._filled, self._filled + logits.shape[0])
        for name, values in (("ids", ids), ("log_probs", kept), ("rest", rest)):
            self.tensors[name][here] = values.to("cpu", self.tensors[name].dtype)
        self._filled += logits.shape[0]


def _written(staging: Path, number: int, rows: _Rows, later_bytes: int, seconds: float) -> ShardRecord:
    """The shard under its name, then its record. `later_bytes`: of the shards to come."""
    name = shard_name(number)
    part, content = staging / f".{name}.part", save(rows.tensors)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(staging / name)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in DISK_FULL_ERRNOS:
            raise _no_room(staging, len(content) + later_bytes, error.strerror or str(error)) from error
        raise
    record = ShardRecord(
        name=name,
        rows=rows.rows,
        tokens=rows.tokens,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        seconds=seconds,
    )
    write_record(staging, record)
    return record


def _check_room(staging: Path, order: CacheOrder, parts: Sequence[Sequence[Segment]]) -> None:
    """Before the first byte. Raises EngineError `disk.full`."""
    needed = sum(_tokens(part) * cached_token_bytes(order.k) + 20 * len(part) for part in parts)
    if needed and needed + _MARGIN_BYTES > shutil.disk_usage(staging).free:
        raise _no_room(staging, needed + _MARGIN_BYTES, "")


def _no_room(staging: Path, needed: int, cause: str) -> EngineError:
    free = shutil.disk_usage(staging).free
    missing = format_bytes(max(needed - free, 1))
    return EngineError(
        "disk.full",
        f"The teacher's logits need {format_bytes(needed)} more in {staging.parent}, and {format_bytes(free)} are free:"
        f" {missing} are missing.",
        cause=cause,
        next_step="Free some space and start again, finished files are kept; or lower distillation.top_k, or name a "
        "folder on another disk in distillation.cache.",
        exit_code=ExitCode.RUN_FAILED if cause else ExitCode.DOES_NOT_FIT,
    )
