"""Perplexity by length, by sliding window and by position.

Owns the three ways to average a text's losses. Must not know files, needles or reports' verdicts. D documents, all
cut to one length: documents of different lengths are never averaged together.

- Last k: the same closing tokens, predicted with more and more of the text before them. Falls with length for a model
  that uses its context; nothing but the context differs between two lengths.
- Sliding window (Press et al., arXiv 2108.12409): every token of the text, in windows of `window` tokens that advance
  by `stride`; of each window but the first only its last `stride` tokens count.
- By position: one pass over the longest length, losses averaged where they stand.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from engine.evaluation.haystack_frame import Ids
from engine.evaluation.length_text import Documents
from engine.evaluation.long_pass import Room, cache_bytes, token_losses
from engine.evaluation.model import LoadedModel
from engine.jobs.length_report import LengthPerplexity, PositionLoss

LAST_TOKENS = 256
BUCKETS = 16
STRIDES = 8
"""Windows per longest length: S = L' / 8."""

Progress = Callable[[int], None]
"""(tokens that went through the model since the last call)."""


def ignore(_tokens: int) -> None:
    """No one is told."""


@dataclass(frozen=True, slots=True)
class LossSum:
    """Nats over tokens."""

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.nats / max(self.tokens, 1)


def losses(
    model: LoadedModel, rows: Sequence[Ids], first: int, room: Room, progress: Progress = ignore
) -> Iterator[Tensor]:
    """Cross-entropies of the tokens from `first` of rows of one length, batch by batch: float32 (B, T - first).

    A batch that runs a card out of memory is halved.
    """
    done = 0
    while done < len(rows):
        length = len(rows[0])
        batch = rows[done : done + room.rows(length, cache_bytes(model, length))]
        try:
            with model.inference():
                found = token_losses(model, torch.tensor(batch), first, room)
        except torch.OutOfMemoryError:
            room.halve()
            continue
        done += len(batch)
        progress(len(batch) * length)
        yield found


def _summed(found: Iterator[Tensor]) -> LossSum:
    nats, tokens = 0.0, 0
    for part in found:
        nats += float(part.double().sum())
        tokens += part.numel()
    return LossSum(nats, tokens)


def last_tokens(shortest: int, original: int) -> int:
    """k: as many closing tokens as leave most of the shortest length, and most of the window, as context."""
    return max(1, min(LAST_TOKENS, shortest // 2, max(original, 4) // 4))


def last_k(
    model: LoadedModel, documents: Documents, length: int, k: int, room: Room, progress: Progress = ignore
) -> tuple[float, ...]:
    """Nats of each of the documents' last `k` tokens with `length` tokens in all."""
    found = losses(model, documents.ends(length), length - k, room, progress)
    return tuple(loss for part in found for loss in part.flatten().tolist())


def paired_change(after: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """Mean difference of the same tokens' losses, and its standard error, nats."""
    differences = [one - other for one, other in zip(after, before, strict=True)]
    spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
    return statistics.fmean(differences), spread / math.sqrt(len(differences))


def perplexity_of(nll: float) -> float:
    """exp, kept finite."""
    return math.exp(min(nll, 700.0))


def entry(
    length: int, found: Mapping[int, Sequence[float]], reference: int, documents: int, slid: LossSum | None = None
) -> LengthPerplexity:
    """The report's entry of one length from `last_k` of all of them, as far as they are known.

    `reference` is `engine.jobs.length_verdict.reference_length`: the rise is against the best length from there on.
    """
    here = found[length]
    shorter = [found[other] for other in sorted(found) if 0 < reference <= other < length]
    change, error = paired_change(here, min(shorter, key=sum)) if shorter else (0.0, 0.0)
    nll = math.fsum(here) / len(here)
    return LengthPerplexity(
        length=length,
        nll=nll,
        perplexity=perplexity_of(nll),
        tokens=len(here),
        documents=documents,
        rise=math.expm1(min(change, 700.0)) if shorter else None,
        rise_error=error,
        sliding=perplexity_of(slid.mean) if slid is not None else None,
    )


@dataclass(frozen=True, slots=True)
class Window:
    """One step of a sliding window over a document of `Documents`."""

    end: int
    counted: int
    """Tokens at the end of the window whose loss counts."""


def windows(length: int, window: int, stride: int) -> tuple[Window, ...]:
    """Windows that count every token of a document of `length` tokens but the first exactly once."""
    assert 0 < stride <= window <= length
    found = [Window(window, window - 1)]
    while found[-1].end < length:
        end = min(found[-1].end + stride, length)
        found.append(Window(end, end - found[-1].end))
    return tuple(found)


def stride_for(window: int, longest: int) -> int:
    """S = L' / 8, at most half a window."""
    return max(1, min(window, longest // STRIDES, max(window // 2, 1)))


def sliding(
    model: LoadedModel,
    documents: Documents,
    window: int,
    stride: int,
    room: Room,
    progress: Progress = ignore,
) -> LossSum:
    """Every token of the documents with at most `window` tokens in all; one pass where the window is the document."""
    by_count: dict[int, list[Ids]] = {}
    for step in windows(documents.length, window, stride):
        begin = step.end - window + len(documents.start)
        rows = [documents.start + row[begin : step.end] for row in documents.whole()]
        by_count.setdefault(step.counted, []).extend(rows)
    parts = [_summed(losses(model, rows, window - count, room, progress)) for count, rows in by_count.items()]
    return LossSum(sum(part.nats for part in parts), sum(part.tokens for part in parts))


def sliding_tokens(length: int, window: int, stride: int) -> int:
    """Tokens through the model for one document."""
    return len(windows(length, window, stride)) * window


def by_position(
    model: LoadedModel, documents: Documents, room: Room, progress: Progress = ignore
) -> tuple[PositionLoss, ...]:
    """Mean loss in up to 16 equal stretches of the documents, from one pass over each."""
    length = documents.length
    count = min(BUCKETS, length - 1)
    edges = [1 + (length - 1) * index // count for index in range(count + 1)]
    sums = torch.zeros(length - 1, dtype=torch.float64)
    for part in losses(model, documents.whole(), 1, room, progress):
        sums += part.double().sum(0)
    number = len(documents.texts)
    return tuple(
        PositionLoss(
            start=start,
            end=end,
            nll=float(sums[start - 1 : end - 1].mean()) / number,
            tokens=(end - start) * number,
        )
        for start, end in pairwise(edges)
    )
