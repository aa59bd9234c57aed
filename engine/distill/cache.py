"""A teacher that left its top logits on disk: found by what they are of, made where they are missing, read row by row.

Owns that knowledge. Must not know how a teacher is loaded, nor runs. A row is found again by its tokens and trained
places, so that packing, shuffling and the size of a batch do not matter; the temperature is applied when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from engine.distill.cache_files import (
    CacheOrder,
    Segment,
    cache_home,
    data_sha256_of,
    key_of,
    read_manifest,
    segments_of_rows,
    teacher_sha256,
)
from engine.distill.cache_writer import CacheFacts, Teacher, Tell, ensure_cache
from engine.distill.knowledge import TopLogits
from engine.distill.segments import segments_of
from engine.distill.tail import at_temperature
from engine.errors import EngineError, ExitCode
from engine.evaluation.head import Wanted

__all__ = [
    "CacheFacts",
    "CacheOrder",
    "CachedKnowledge",
    "Segment",
    "cache_home",
    "cached_knowledge",
    "data_sha256_of",
    "segments_of_rows",
    "teacher_sha256",
]


def cached_knowledge(
    order: CacheOrder,
    segments: Sequence[Segment],
    home: Path,
    teacher: Teacher,
    temperature: float,
    tell: Tell,
    *,
    shard_bytes: int = 0,
) -> tuple[CachedKnowledge, CacheFacts]:
    """What the teacher says about the rows, from disk; raises as `ensure_cache` does."""
    facts = ensure_cache(order, segments, home, teacher, tell, shard_bytes=shard_bytes)
    return CachedKnowledge(facts.folder, temperature), facts


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row's positions are."""

    shard: int
    first: int
    count: int


class CachedKnowledge:
    """A complete cache, opened. A `Knowledge`."""

    def __init__(self, folder: Path, temperature: float) -> None:
        """Raises EngineError `distill.cache_damaged`."""
        manifest = read_manifest(folder)
        if manifest is None:
            raise _damaged(folder, "Its manifest cannot be read.")
        self.folder, self.temperature, self.order = folder, temperature, manifest.order
        self._others = max(manifest.order.vocabulary - manifest.order.k, 0)
        self._shards: list[Any] = []
        self._places: dict[bytes, _Place] = {}
        for number, record in enumerate(manifest.shards):
            try:
                shard: Any = safe_open(str(folder / record.name), "pt")
                keys, counts = shard.get_tensor("keys").numpy(), shard.get_tensor("counts").tolist()
            except Exception as error:  # the library raises its own kind for every damage
                raise _damaged(folder, str(error)) from error
            self._shards.append(shard)
            first = 0
            for key, count in zip(keys, counts, strict=True):
                self._places[key.tobytes()] = _Place(number, first, count)
                first += count

    def at(self, wanted: Wanted) -> CachedView:
        """The rows of a micro-batch. Raises EngineError `distill.not_cached`."""
        places = []
        for segment in segments_of(wanted):
            place = self._places.get(key_of(segment.ids, segment.wanted))
            if place is None:
                raise EngineError(
                    "distill.not_cached",
                    f"The teacher's logits in {self.folder} have no row of {len(segment.ids):,} tokens that is trained "
                    f"on {len(segment.wanted):,} of them in this way.",
                    cause="Rows were cut or joined in another way than when the logits were made.",
                    next_step='Set distillation.held = "auto" to ask the teacher itself.',
                    exit_code=ExitCode.RUN_FAILED,
                )
            places.append(place)
        return CachedView(self, tuple(places), wanted.positions.device)

    def read(self, place: _Place, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids (C, K), log-probabilities (C, K) at T = 1 and sums over the rest (C, 12) of some positions of a row."""
        shard, here = self._shards[place.shard], slice(place.first + first, place.first + last)
        ids, log_probs, rest = (shard.get_slice(name)[here] for name in ("ids", "log_probs", "rest"))
        return ids, log_probs, rest

    @property
    def others(self) -> int:
        """Tokens outside the top k."""
        return self._others


@dataclass(frozen=True, slots=True)
class CachedView:
    """A `TeacherView` of a micro-batch."""

    knowledge: CachedKnowledge
    places: tuple[_Place, ...]
    device: torch.device

    @property
    def hidden(self) -> tuple[Tensor, ...]:
        """Hidden states are not kept."""
        return ()

    @torch.no_grad()
    def chunk(self, first: int, last: int) -> TopLogits:
        """Of wanted positions first <= n < last."""
        found, begin = [], 0
        for place in self.places:
            low, high = max(first - begin, 0), min(last - begin, place.count)
            if low < high:
                found.append(self.knowledge.read(place, low, high))
            begin += place.count
        ids, log_probs, rest = (torch.cat(parts).to(self.device) for parts in zip(*found, strict=True))
        kept, missing = at_temperature(log_probs, rest, self.knowledge.others, self.knowledge.temperature)
        return TopLogits(ids.long(), kept, missing)


def _damaged(folder: Path, cause: str) -> EngineError:
    return EngineError(
        "distill.cache_damaged",
        f"The teacher's logits in {folder} cannot be read.",
        cause=cause,
        next_step="Resume the run: what is damaged is made again.",
        exit_code=ExitCode.RUN_FAILED,
    )
