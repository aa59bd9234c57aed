"""How a longer window is trained so that it fits: the gentlest of full length, chunks, offload, 4 bits and PoSE.

Owns that order. Must not know machines or answers: it is given what is free and how much a job takes.

Order, from the research on one card: embeddings learn where memory allows (LongLoRA, arXiv 2309.12307, table 2);
logits in chunks before anything else, since the head and not attention is the first wall; then what layers keep waits
in host RAM; then the base in 4 bits; at last PoSE (arXiv 2309.10400), whose memory does not grow with the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from engine.advise.context import FULL, MIXED, POSE, ContextChoice, measured_lengths
from engine.estimate.workload import DeviceKind, Loss, Packing4Bit, Workload

SMALL_CHUNK_TOKENS = 256
"""Tokens per piece of the loss where even 1,024 are too many: 0.13 GB of fp32 logits at a vocabulary of 128k."""
JOINED_UP_TO_TOKENS = 8192
"""Own choice: a mask of 64 MB; beyond it rows stand alone, and attention needs no mask at all."""
LEAST_POSE_TOKENS = 1024
"""A shorter training length saves little more: weights remain."""
FULL_MICRO_BATCH_TOKENS = 4096
"""So many tokens keep a card busy; shorter sequences are put side by side."""
WANTED_STEPS = 60
"""Published runs take 30 (Gradient) to 400 (YaRN) steps of a quarter million to 4 million tokens."""
MOST_STEP_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class Trained:
    """How the window is trained."""

    work: Workload
    bounds: tuple[float, float, float]
    choice: ContextChoice
    """With its window decided."""


Bounds = Callable[[Workload], tuple[float, float, float]]


def fit_window(
    first: Workload,
    choice: ContextChoice,
    original: int,
    free_bytes: float,
    bounds: Bounds,
    *,
    data_tokens: float,
    may_pack: bool = True,
) -> Trained:
    """The first way that fits, of those the choice leaves open; when none fits, the smallest.

    `first` has the target as its sequence; `original` is the model's present window, tokens; `data_tokens` those of the
    run; `may_pack` whether 4-bit weights can be had.
    """
    windows = (choice.window,) if choice.window else (FULL, POSE)
    found: Trained | None = None
    for window in windows:
        for way in _ways(first, window, original, may_pack=may_pack):
            work = replace(way, accumulation=step_tokens(data_tokens, way) // way.tokens, measured_tokens=0)
            if bounds(work)[2] <= free_bytes:
                work, measured = with_measured(work, choice, original, free_bytes, bounds)
                return Trained(work, bounds(work), replace(choice, window=window, measured=measured))
            if found is None or bounds(work)[2] < found.bounds[2]:
                found = Trained(work, bounds(work), replace(choice, window=window))
    assert found is not None
    work, measured = with_measured(found.work, choice, original, free_bytes, bounds)
    return Trained(work, bounds(work), replace(found.choice, measured=measured))


def with_measured(
    work: Workload, choice: ContextChoice, original: int, free_bytes: float, bounds: Bounds
) -> tuple[Workload, tuple[int, ...]]:
    """The job with the longest texts whose keys and values fit, and the lengths that leaves; () for all of them."""
    wanted = choice.measured or measured_lengths(original, choice.length)
    lengths = list(wanted)
    while len(lengths) > 1 and bounds(replace(work, measured_tokens=lengths[-1]))[2] > free_bytes:
        lengths.pop()
    return replace(work, measured_tokens=lengths[-1]), () if tuple(lengths) == wanted else tuple(lengths)


def _ways(first: Workload, window: str, original: int, *, may_pack: bool) -> Iterator[Workload]:
    lengths = [first.sequence] if window in (FULL, MIXED) else pose_lengths(original, first.sequence)
    for length in lengths:
        work = at_length(first, length, joined=joins(length, window))
        yield from _settings(work, may_pack=may_pack, joined=joins(length, window))


def at_length(work: Workload, length: int, *, joined: bool) -> Workload:
    """Sequences of that length side by side; `joined`: several documents share one."""
    batch = side_by_side(length)
    return replace(work, sequence=length, batch=batch, masked=batch > 1 or joined)


def joins(length: int, window: str) -> bool:
    """Whether short documents share a sequence: their mask takes s² bytes and makes attention compute every pair.
    PoSE's never do, since a border in positions would look like a skip."""
    return length <= JOINED_UP_TO_TOKENS and window != POSE


def side_by_side(length: int) -> int:
    """Sequences per micro-batch."""
    return max(FULL_MICRO_BATCH_TOKENS // length, 1)


def pose_lengths(original: int, target: int) -> list[int]:
    """The model's own window first, then halves."""
    lengths = [min(original or target, target)]
    while lengths[-1] // 2 >= LEAST_POSE_TOKENS:
        lengths.append(lengths[-1] // 2)
    return lengths


def _settings(work: Workload, *, may_pack: bool, joined: bool) -> Iterator[Workload]:
    on_card = work.device is DeviceKind.GPU
    chunked = replace(work, loss=Loss.CHUNKED)
    embedded = replace(work, train_embeddings=True)
    yield embedded
    yield from _offloaded(replace(chunked, train_embeddings=True), on_card=on_card)
    yield from _offloaded(chunked, on_card=on_card)
    last = chunked
    if may_pack and not work.packed:
        last = replace(chunked, packing=Packing4Bit.NF4_DOUBLE)
        yield from _offloaded(last, on_card=on_card)
    stack = replace(last.stack, loss_chunk_tokens=SMALL_CHUNK_TOKENS)
    yield replace(last, batch=1, masked=joined, stack=stack, offload_activations=on_card)


def _offloaded(work: Workload, *, on_card: bool) -> Iterator[Workload]:
    yield work
    if on_card:
        yield replace(work, offload_activations=True)


def step_tokens(data_tokens: float, work: Workload) -> int:
    """Tokens per optimizer step: what makes `WANTED_STEPS` steps of the data, at least one micro-batch, at most 2^20;
    a whole number of micro-batches."""
    wanted = min(max(data_tokens / WANTED_STEPS, work.tokens), MOST_STEP_TOKENS)
    return max(math.floor(wanted / work.tokens), 1) * work.tokens
