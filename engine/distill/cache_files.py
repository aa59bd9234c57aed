"""A teacher's top logits on disk: what identifies them, their files, and how damage is noticed.

Owns the format. Must not know teachers, losses or runs. A cache is a folder of shards:

    order.json                 whose logits of what: data, teacher, its form, k; written first
    logits-00000.safetensors   keys (R, 16) of the rows, counts (R,) of their positions, and for all C positions
                               ids (C, K) int32, log_probs (C, K) float16 at temperature 1, rest (C, 12) float32
    logits-00000.json          size and SHA-256 of the shard, written when it is whole
    manifest.json              all of that once more, written last

It grows under a hidden name and gets its own with the manifest. What is found damaged later goes back under the hidden
name, loses the bad shards only, and is completed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.data.rows import EncodedRow
from engine.estimate.surroundings import cached_token_bytes
from engine.jobs.layout import fsync_directory, write_atomic
from engine.paths import teachers_dir

ORDER, MANIFEST = "order.json", "manifest.json"
SHARD_BYTES = 64 << 20
KEY_BYTES = 16
_SMALL_FILE_BYTES = 1 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 64 << 10
_HASH_BYTES = 4 << 20
_TEACHER_FILES = ("*.safetensors", "*.json")
_NOT_THE_MODEL = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


@dataclass(frozen=True, slots=True)
class Segment:
    """A row as it is computed, whatever shares a sequence with it."""

    ids: tuple[int, ...]
    wanted: tuple[int, ...]
    """Ascending positions whose next token is trained."""

    @property
    def key(self) -> bytes:
        """What its logits are found again by."""
        return key_of(self.ids, self.wanted)


def key_of(ids: Sequence[int], wanted: Sequence[int]) -> bytes:
    """16 bytes of a row's ids and wanted positions."""
    digest = hashlib.blake2b(len(ids).to_bytes(8, "little"), digest_size=KEY_BYTES)
    for numbers in (ids, wanted):
        digest.update(b"".join(number.to_bytes(4, "little") for number in numbers))
    return digest.digest()


def segments_of_rows(rows: Iterable[EncodedRow]) -> list[Segment]:
    """Every different row once, in order, as packing gives it to the model: its first token is never predicted."""
    found: dict[bytes, Segment] = {}
    for row in rows:
        wanted = tuple(place - 1 for place, trained in enumerate(row.trained) if trained and place)
        if wanted:
            segment = Segment(row.input_ids, wanted)
            found.setdefault(segment.key, segment)
    return list(found.values())


class CacheOrder(msgspec.Struct, frozen=True, kw_only=True):
    """`order.json`: whose top logits, of what. The temperature is no part of it."""

    data_sha256: str
    """Of the rows' keys, in order: `data_sha256_of`."""
    teacher: str
    """Its name, for people."""
    teacher_sha256: str
    form: str
    """What it was computed with: "bfloat16", "nf4"."""
    k: int
    vocabulary: int
    """Ids from 0 that both tokenizers share: the distribution is that over them."""
    v: int = 2

    @property
    def folder_name(self) -> str:
        """Equal orders have equal names; the teacher's spelling does not count."""
        words = (self.data_sha256, self.teacher_sha256, self.form, str(self.k), str(self.vocabulary), str(self.v))
        return f"{_plain(self.teacher)}-{hashlib.sha256('|'.join(words).encode()).hexdigest()[:16]}"

    def same_as(self, other: CacheOrder) -> bool:
        return msgspec.structs.replace(other, teacher=self.teacher) == self


class ShardRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One shard, whole."""

    name: str
    rows: int
    tokens: int
    size_bytes: int
    sha256: str
    seconds: float = 0.0
    """Of computing it, the teacher being loaded."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`."""

    order: CacheOrder
    shards: tuple[ShardRecord, ...]

    @property
    def seconds(self) -> float:
        """Of computing them, whichever attempt did."""
        return sum(shard.seconds for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def size_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self.shards)


def data_sha256_of(segments: Iterable[Segment]) -> str:
    """Of the rows' tokens and of where they are trained, not of files: another template is other data."""
    digest = hashlib.sha256()
    for segment in segments:
        digest.update(segment.key)
    return digest.hexdigest()


def teacher_sha256(*folders: Path) -> str:
    """Of what a teacher computes with: configs whole, weight files by size, head and 64 samples of 64 KiB, so that
    14 GB are told apart in a moment. Tokenizers are no part of it: what they mean is in the order."""
    digest = hashlib.sha256()
    for folder in folders:
        files = {path for pattern in _TEACHER_FILES for path in folder.glob(pattern) if path.name not in _NOT_THE_MODEL}
        for path in sorted(files):
            size = path.stat().st_size
            digest.update(f"{path.name}|{size}|".encode())
            for block in _blocks(path, size):
                digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield file.read(_SMALL_FILE_BYTES)
        for number in range(_SAMPLES if size > _SMALL_FILE_BYTES else 0):
            file.seek(max(size - _SAMPLE_BYTES, 0) * (number + 1) // _SAMPLES)
            yield file.read(_SAMPLE_BYTES)


def cache_home(asked: str) -> Path:
    """`distillation.cache`, or the program's own folder."""
    return teachers_dir(asked)


def staging_of(home: Path, order: CacheOrder) -> Path:
    """Where a cache grows."""
    return home / f".{order.folder_name}.caching"


def parts_of(segments: Sequence[Segment], k: int, shard_bytes: int = SHARD_BYTES) -> list[list[Segment]]:
    """The rows of every shard, in order: the same for the same rows, so that another process can go on."""
    parts: list[list[Segment]] = [[]]
    most, tokens = max(shard_bytes // cached_token_bytes(k), 1), 0
    for segment in segments:
        if parts[-1] and tokens + len(segment.wanted) > most:
            parts.append([])
            tokens = 0
        parts[-1].append(segment)
        tokens += len(segment.wanted)
    return [part for part in parts if part]


def shard_name(number: int) -> str:
    return f"logits-{number:05}.safetensors"


def read_manifest(folder: Path) -> Manifest | None:
    """None where there is none that can be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def read_record(folder: Path, number: int) -> ShardRecord | None:
    """None where the shard is not whole."""
    try:
        content = (folder / shard_name(number)).with_suffix(".json").read_bytes()
        return msgspec.json.decode(content, type=ShardRecord)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def write_record(folder: Path, record: ShardRecord) -> None:
    """Raises EngineError `disk.full`."""
    write_atomic((folder / record.name).with_suffix(".json"), msgspec.json.encode(record) + b"\n")


def is_sound(folder: Path, record: ShardRecord) -> bool:
    """Whether the shard is what was written: size first, then SHA-256."""
    path = folder / record.name
    try:
        return path.stat().st_size == record.size_bytes and sha256_of(path) == record.sha256
    except OSError:
        return False


def sha256_of(path: Path) -> str:
    """Of a file, streamed."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BYTES):
            found.update(block)
    return found.hexdigest()


def rename(source: Path, target: Path) -> None:
    """Durably."""
    fsync_directory(source)
    source.rename(target)
    fsync_directory(target.parent)


def _plain(name: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in Path(name).name or name)
    return kept.strip(".-")[:40] or "teacher"
