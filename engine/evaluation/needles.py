"""Retrieval by teacher forcing: one pass per haystack, its questions continued from one cache, in batches.

Owns what counts as an answer and how haystacks are batched. Must not know files or reports.

A greedy answer equals the reference exactly when, with the reference as context, every scored token is the model's
first choice; so nothing is generated. All questions of a haystack begin with the same tokens, which go through the
model once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.evaluation.haystack import Haystack
from engine.evaluation.long_pass import Room, cache_bytes, can_cache, continued, forget_length, prefill
from engine.evaluation.model import LoadedModel
from engine.jobs.length_report import NeedleCell


@dataclass(frozen=True, slots=True)
class Answered:
    """One question, scored."""

    depth: float
    correct: bool
    nll: float
    """Sum over the scored tokens, nats."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Haystacks with equal lengths and equally many questions; their indices in the sequence given."""

    indices: tuple[int, ...]
    stacks: tuple[Haystack, ...]


def batches(model: LoadedModel, stacks: Sequence[Haystack], room: Room) -> Iterator[Batch]:
    """In the order given, neighbours of one shape together, within the room."""
    group: list[int] = []
    for index, stack in enumerate(stacks):
        if group:
            first = stacks[group[0]]
            per_row = cache_bytes(model, first.length) * len(first.questions)
            if _shape(stack) != _shape(first) or len(group) >= room.rows(first.length, per_row):
                yield Batch(tuple(group), tuple(stacks[i] for i in group))
                group = []
        group.append(index)
    if group:
        yield Batch(tuple(group), tuple(stacks[i] for i in group))


def _shape(stack: Haystack) -> tuple[int, int, int]:
    return stack.length, len(stack.shared), len(stack.questions)


def answer(model: LoadedModel, stacks: Sequence[Haystack], room: Room) -> list[tuple[Answered, ...]]:
    """Every question of every haystack, in their order."""
    found: list[tuple[Answered, ...]] = [()] * len(stacks)
    for batch in batches(model, stacks, room):
        for index, answers in zip(batch.indices, answer_batch(model, batch.stacks, room), strict=True):
            found[index] = answers
    return found


def answer_batch(model: LoadedModel, stacks: Sequence[Haystack], room: Room) -> list[tuple[Answered, ...]]:
    """Haystacks of one shape. On a card that runs out of memory the room is halved and it is tried again."""
    while True:
        try:
            with model.inference():
                return _answer(model, stacks, room)
        except torch.OutOfMemoryError:
            room.halve()


def _answer(model: LoadedModel, stacks: Sequence[Haystack], room: Room) -> list[tuple[Answered, ...]]:
    first = stacks[0]
    rows = room.rows(first.length, cache_bytes(model, first.length) * len(first.questions))
    if len(stacks) > rows:  # the room was halved
        return [
            row for start in range(0, len(stacks), rows) for row in _answer(model, stacks[start : start + rows], room)
        ]
    if len(first.questions) > 1 and can_cache(model, first.length):
        return _shared(model, stacks, room)
    return _one_by_one(model, stacks, room)


def _shared(model: LoadedModel, stacks: Sequence[Haystack], room: Room) -> list[tuple[Answered, ...]]:
    """B haystacks: their common parts once, then as many questions at a time as the cache may be repeated."""
    first = stacks[0]
    shared = torch.tensor([stack.shared for stack in stacks], device=model.device)  # (B, P)
    cache = prefill(model, shared, first.length, room)
    count = len(first.questions)
    per_copy = cache_bytes(model, first.length) * len(stacks)
    step = max(1, min(count, room.cache_bytes // max(per_copy, 1)))
    found: list[list[Answered]] = [[] for _ in stacks]
    for begin in range(0, count, step):
        end = min(begin + step, count)
        asked = [question for stack in stacks for question in stack.questions[begin:end]]
        scored = torch.tensor(asked[0].scored, device=model.device)  # (S,)
        ids = torch.tensor([question.ids for question in asked], device=model.device)  # (B * K, Q)
        logits = continued(model, cache, ids, scored, last=end == count)  # (B * K, S, V)
        scores = _scores(logits, ids[:, scored])
        for row, question in enumerate(asked):
            found[row // (end - begin)].append(_answered(question.depth, scores, row))
    return [tuple(answers) for answers in found]


def _one_by_one(model: LoadedModel, stacks: Sequence[Haystack], room: Room) -> list[tuple[Answered, ...]]:
    """Every prompt as a row of its own."""
    asked = [(index, number) for index, stack in enumerate(stacks) for number in range(len(stack.questions))]
    length = stacks[0].length
    step = room.rows(length, cache_bytes(model, length))
    found: list[list[Answered]] = [[] for _ in stacks]
    for begin in range(0, len(asked), step):
        part = asked[begin : begin + step]
        ids = torch.tensor([stacks[index].prompt(number) for index, number in part], device=model.device)  # (B, T)
        scored = torch.tensor(stacks[0].questions[0].scored, device=model.device) + len(stacks[0].shared)
        grid = torch.arange(length, device=model.device).expand(len(part), -1)
        flat = (scored - 1)[None, :] + torch.arange(len(part), device=model.device)[:, None] * length
        forget_length(model)
        logits = model.logits_at(ids, grid, flat.reshape(-1)).reshape(len(part), len(scored), -1)
        scores = _scores(logits, ids[:, scored])
        for row, (index, number) in enumerate(part):
            found[index].append(_answered(stacks[index].questions[number].depth, scores, row))
    return [tuple(answers) for answers in found]


def _scores(logits: Tensor, targets: Tensor) -> tuple[list[list[bool]], list[list[float]]]:
    """(R, S, V), (R, S) -> first choices right or not, and nats."""
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")  # (R, S)
    return (logits.argmax(-1) == targets).tolist(), losses.tolist()


def _answered(depth: float, scores: tuple[list[list[bool]], list[list[float]]], row: int) -> Answered:
    right, losses = scores[0][row], scores[1][row]
    return Answered(depth, all(right), sum(losses), len(losses))


def cells(task: str, length: int, answers: Sequence[Answered]) -> tuple[NeedleCell, ...]:
    """One cell per depth, in order of depth."""
    by_depth: dict[float, list[Answered]] = {}
    for entry in answers:
        by_depth.setdefault(entry.depth, []).append(entry)
    return tuple(
        NeedleCell(
            task=task,
            length=length,
            depth=depth,
            prompts=len(found),
            accuracy=sum(entry.correct for entry in found) / len(found),
            nll=sum(entry.nll for entry in found) / sum(entry.tokens for entry in found),
        )
        for depth, found in sorted(by_depth.items())
    )
