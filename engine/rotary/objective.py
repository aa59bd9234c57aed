"""What a set of divisors is worth: needle-driven perplexity, and perplexity of the closing tokens, in one pass.

Owns the documents and the pass. Must not know which sets are tried. B documents, K questions each, T tokens shared.

    document cut to L' tokens, needles at several depths │ question, answer      x K, continued from one cache
    ...................... last k tokens: text_nll ......│ ....... answer: needle_nll

Source: LongRoPE2 (arXiv 2502.20082), section 3: only the answers' tokens count, which perplexity over whole documents
drowns. Asking for several needles per document is our own; the document goes through the model once either way.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.context.plan import ContextPlan
from engine.context.search_evolution import Measured, StopAsked
from engine.evaluation.haystack import Haystack, HaystackOrder, build
from engine.evaluation.haystack_frame import Writer
from engine.evaluation.haystack_tasks import NEEDLE
from engine.evaluation.long_pass import Room, cache_bytes, can_cache, continued, prefill
from engine.evaluation.model import LoadedModel
from engine.evaluation.needles import batches
from engine.rotary.modules import using

QUESTIONS_PER_DOCUMENT = 5
DEEPEST = 0.8
"""Far needles are what a longer window has to win; those beside the question say nothing."""
SALT = "search "
"""Divisors are fitted to these documents: no race and no report, whatever its seed, may ask about the same ones."""
CLOSING_TOKENS = 256
"""k, at the most a quarter of the document."""

PlanFor = Callable[[tuple[float, ...], float], ContextPlan]
"""(divisors, m) -> the plan that applies them."""


@dataclass(frozen=True, slots=True)
class Documents:
    """What every set is measured on; the same on every machine for one seed."""

    stacks: tuple[Haystack, ...]
    closing_tokens: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every token, shortened."""
        digest = hashlib.sha256()
        for stack in self.stacks:
            for ids in (stack.shared, *(question.ids for question in stack.questions)):
                digest.update(repr(ids).encode())
        return digest.hexdigest()[:16]


def documents(writer: Writer, length: int, count: int, seed: int) -> Documents:
    """`count` documents of exactly `length` tokens, question and answer included, that nothing else measures on.

    Raises EngineError `evaluation.too_short` where not even one needle fits.
    """
    depths = tuple(DEEPEST * n / (QUESTIONS_PER_DOCUMENT - 1) for n in range(QUESTIONS_PER_DOCUMENT))
    orders = [HaystackOrder(NEEDLE, length, depths, seed, n, SALT) for n in range(count)]
    stacks = [stack for order in orders for stack in build(writer, order)]
    return Documents(tuple(stacks), max(min(CLOSING_TOKENS, length // 4), 1))


class NeedleObjective:
    """The search's objective on one loaded model, whose frequencies are swapped and put back."""

    def __init__(
        self, model: LoadedModel, texts: Documents, plan_for: PlanFor, room: Room, stopped: Callable[[], bool]
    ) -> None:
        self._model = model
        self._stopped = stopped
        self._texts = texts
        self._plan_for = plan_for
        self._room = room

    def __call__(self, divisors: tuple[float, ...], attention_factor: float) -> Measured:
        """Raises EngineError `evaluation.memory` when one document alone is too much for the device, and StopAsked."""
        with using(self._model.model, self._plan_for(divisors, attention_factor)):
            while True:
                try:
                    return self._measured()
                except torch.OutOfMemoryError:
                    self._room.halve()

    def _measured(self) -> Measured:
        needles: list[float] = []
        texts: list[float] = []
        with self._model.inference():
            for batch in batches(self._model, self._texts.stacks, self._room):
                if self._stopped():
                    raise StopAsked
                needle, text = self._passed(batch.stacks)
                needles += needle.tolist()
                texts += text.tolist()
        return Measured(math.fsum(needles) / len(needles), math.fsum(texts) / len(texts))

    def _passed(self, stacks: Sequence[Haystack]) -> tuple[Tensor, Tensor]:
        """Documents of one shape: losses of all answer tokens and of all closing tokens."""
        return self._cached(stacks) if can_cache(self._model, stacks[0].length) else self._whole(stacks)

    def _cached(self, stacks: Sequence[Haystack]) -> tuple[Tensor, Tensor]:
        """Each document once, its questions continued from its cache."""
        model, first, k = self._model, stacks[0], self._texts.closing_tokens
        shared = torch.tensor([stack.shared for stack in stacks], device=model.device)  # (B, T)
        cache = prefill(model, shared[:, : -k - 1], first.length, self._room)
        closing = shared[:, -k - 1 :]  # (B, k + 1)
        places = torch.arange(1, k + 1, device=model.device)
        text = _losses(continued(model, cache, closing, places, last=True), closing[:, 1:])
        count = len(first.questions)
        step = max(1, self._room.cache_bytes // max(cache_bytes(model, first.length) * len(stacks), 1))
        needles = []
        for begin in range(0, count, step):
            end = min(begin + step, count)
            asked = [question for stack in stacks for question in stack.questions[begin:end]]
            ids = torch.tensor([question.ids for question in asked], device=model.device)  # (B * K, Q)
            scored = torch.tensor(asked[0].scored, device=model.device)  # (S,)
            needles.append(_losses(continued(model, cache, ids, scored, last=end == count), ids[:, scored]))
        return torch.cat(needles), text

    def _whole(self, stacks: Sequence[Haystack]) -> tuple[Tensor, Tensor]:
        """Every prompt by itself: the caches of some families cannot be cut into pieces."""
        model, k = self._model, self._texts.closing_tokens
        texts, needles = [], []
        for stack in stacks:
            size = len(stack.shared)
            closing = torch.arange(size - k, size, device=model.device)
            for number, question in enumerate(stack.questions):
                ids = torch.tensor([stack.prompt(number)], device=model.device)  # (1, T + Q)
                scored = torch.tensor(question.scored, device=model.device) + size  # (S,)
                chosen = torch.cat((closing, scored)) if not number else scored
                grid = torch.arange(ids.shape[1], device=model.device)[None, :]
                found = _losses(model.logits_at(ids, grid, chosen - 1)[None], ids[:, chosen])
                texts.append(found[: -len(scored)])
                needles.append(found[-len(scored) :])
        return torch.cat(needles), torch.cat(texts)


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(R, S, V), (R, S) -> (R * S,) nats in float32."""
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.reshape(-1), reduction="none").cpu()
