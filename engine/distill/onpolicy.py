"""The student's own answers as something to learn on: which steps, which prompts, and how they are written.

Owns the draw. Must not know teachers, losses or the loop. Learning on its own mistakes is what off-policy distillation
cannot give a student (GKD, Agarwal et al., arXiv 2306.13649).

Everything follows from the seed, the step's number and the weights: a resumed run writes the very same answers. Random
generators are left as they were.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from engine.distill.segments import segments_of
from engine.evaluation.answers import end_ids
from engine.evaluation.head import Wanted
from engine.evaluation.model import LoadedModel

PROMPTS_PER_BATCH = 32


@dataclass(frozen=True, slots=True)
class Writing:
    """How the student answers."""

    share: float
    """Of the steps, 0 to 1."""
    new_tokens: int
    """Of an answer at most, its end token included."""
    temperature: float
    """0 takes the most likely token."""
    longest: int
    """Tokens of prompt and answer together at most; prompts are shorter."""
    seed: int
    vocabulary: int = 0
    """Ids from 0 that the teacher knows too: no other token is written. 0 for all."""


@dataclass(frozen=True, slots=True)
class OwnAnswer:
    """One row to learn on."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """With its end token, where there was room for one; at least one token."""


def is_own_step(writing: Writing, step: int) -> bool:
    """Whether `step`, from 1, learns on own answers. Of any n steps in a row share x n do, rounded up or down; the seed
    says where the pattern begins."""
    if writing.share >= 1:
        return True
    offset = random.Random(f"{writing.seed} own answers").random()
    return math.floor(step * writing.share + offset) > math.floor((step - 1) * writing.share + offset)


def prompts_of(batches: Sequence[Wanted]) -> list[tuple[int, ...]]:
    """Of every row: all before its last answer. Rows of plain text, learnt from their first token on, have none."""
    found = []
    for batch in batches:
        for segment in segments_of(batch):
            start = len(segment.wanted) - 1
            while start and segment.wanted[start - 1] == segment.wanted[start] - 1:
                start -= 1
            prompt = segment.ids[: segment.wanted[start] + 1]
            if len(prompt) > 1:
                found.append(prompt)
    return found


def write_answers(
    student: LoadedModel, prompts: Sequence[tuple[int, ...]], writing: Writing, step: int, pieces: int = 1
) -> list[OwnAnswer]:
    """In the order of the prompts, in batches with left padding and a key-value cache. `pieces`: memory ran out before;
    so many times smaller batches. Other batches draw other answers."""
    answers: dict[int, OwnAnswer] = {}
    size = max(1, min(PROMPTS_PER_BATCH, len(prompts)) // pieces)
    order = sorted(range(len(prompts)), key=lambda number: (len(prompts[number]), number))
    with student.inference(), student.autocast():
        for first in range(0, len(order), size):
            group = order[first : first + size]
            with _drawing(student.device, f"{writing.seed} {step} {first}"):
                written = _write(student, [prompts[number] for number in group], writing)
            answers |= zip(group, written, strict=True)
    return [answers[number] for number in range(len(prompts))]


@contextlib.contextmanager
def _drawing(device: str, place: str) -> Iterator[None]:
    """Draws that follow from `place` alone; the generators go on afterwards as if nothing had been drawn."""
    kind = device.partition(":")[0]
    forked = (
        torch.random.fork_rng([]) if kind == "cpu" else torch.random.fork_rng([torch.device(device)], device_type=kind)
    )
    with forked:
        torch.manual_seed(int.from_bytes(hashlib.sha256(place.encode()).digest()[:7]))
        yield


def _write(student: LoadedModel, prompts: Sequence[tuple[int, ...]], writing: Writing) -> list[OwnAnswer]:
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), student.pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for number, prompt in enumerate(prompts):
        input_ids[number, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[number, width - len(prompt) :] = 1
    ends = end_ids(student)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max(1, min(writing.new_tokens, writing.longest - width)),
        eos_token_id=ends or None,
        pad_token_id=student.pad_id,
        use_cache=True,
        **_sampling(writing.temperature),
    )
    with _generating_by(student.model, config):
        output = student.model.generate(
            input_ids=input_ids.to(student.device),
            attention_mask=attention_mask.to(student.device),
            logits_processor=[_known_to(writing.vocabulary)] if writing.vocabulary else [],
        )
    rows: list[list[int]] = output[:, width:].tolist()
    return [OwnAnswer(prompt, _to_end(row, ends)) for prompt, row in zip(prompts, rows, strict=True)]


def _known_to(vocabulary: int) -> Callable[[Tensor, Tensor], Tensor]:
    """For `generate`: rows behind the shared vocabulary, padding and tokens added later, cannot be drawn."""

    def mask(_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, vocabulary:] = float("-inf")  # (B, V)
        return scores

    return mask


def _sampling(temperature: float) -> dict[str, float | int | bool]:
    """From the whole distribution; transformers takes the 50 likeliest tokens where nothing is said."""
    if not temperature:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}


@contextlib.contextmanager
def _generating_by(model: Any, config: GenerationConfig) -> Iterator[None]:
    """The model's own distribution: nothing of what its folder recommends for chatting (penalties, cut-offs, forbidden
    words). `generate` fills what a given config leaves open from the model's, so that one is put aside."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = [(one, one.generation_config) for one in (model, inner)]
    for one, _ in kept:
        one.generation_config = config
    try:
        yield
    finally:
        for one, was in kept:
            one.generation_config = was


def _to_end(ids: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    last = next((number for number, token in enumerate(ids) if token in ends), len(ids) - 1)
    return tuple(ids[: last + 1])
