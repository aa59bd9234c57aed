"""One answer: the prompt through the model once, then token by token with a key-value cache.

Owns the loop and when it ends. Must not know adapters, templates or lines. T prompt tokens, V vocabulary.

At temperature 0 it gives the tokens of transformers' `generate(do_sample=False)`; a loop of our own because every
answer draws from a generator of its own, is shown as it comes, and can be stopped between two tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.chat.draw import Draw
from engine.evaluation.long_pass import depends_on_length, forget_length, new_cache
from engine.evaluation.model import LoadedModel
from engine.jobs.chat_lines import Ended, Sampling

PREFILL_TOKENS = 512
"""Of a prompt at one time, so that a long one can be stopped."""


@dataclass(slots=True)
class Outcome:
    """What is known once an answer is over."""

    ended: Ended = "stopped"
    tokens: int = 0
    """With the one that ended it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt and how it is answered."""

    ids: Sequence[int]
    sampling: Sampling
    ends: Collection[int]
    """Tokens that end the answer."""
    window: int
    """Tokens that prompt and answer share; 0: no limit known."""


def answer(model: LoadedModel, asked: Asked, stopped: Callable[[], bool], outcome: Outcome) -> Iterator[int]:
    """The tokens of the answer, its end token left out; `outcome` says afterwards how it ended.

    Call inside `model.inference()`. The prompt must leave room for a token in the window.
    """
    draw = Draw(asked.sampling)
    row = _Row(model, list(asked.ids))
    while not stopped():
        logits = row.advance(stopped)
        if logits is None:
            return
        token = draw.next(logits)
        outcome.tokens += 1
        if token in asked.ends:
            outcome.ended = "end"
            return
        yield token
        row.ids.append(token)
        if outcome.tokens >= asked.sampling.max_new_tokens:
            outcome.ended = "length"
            return
        if asked.window and len(row.ids) >= asked.window:
            outcome.ended = "window"
            return


class _Row:
    """The tokens so far, and the cache that has all but the newest of them."""

    def __init__(self, model: LoadedModel, ids: list[int]) -> None:
        self.ids = ids
        self._model = model
        self._cache: Any = None
        self._cached = 0
        self._adapts = depends_on_length(model)
        self._switch = _switches_at(model) if self._adapts else 0
        """Above so many tokens LongRoPE has other frequencies, and what was cached with the old ones is void."""

    def advance(self, stopped: Callable[[], bool]) -> torch.Tensor | None:
        """Logits (V,) after the newest token; None when it was stopped on the way."""
        if self._cache is None or (self._switch and self._cached <= self._switch < len(self.ids)):
            forget_length(self._model)
            self._cache, self._cached = new_cache(self._model), 0
        # Frequencies that follow the length are chosen per call: the prompt must be one.
        step = len(self.ids) if self._adapts else PREFILL_TOKENS
        logits = None
        while self._cached < len(self.ids):
            if stopped():
                return None
            logits = self._pass(self.ids[self._cached : self._cached + step])
        assert logits is not None
        return logits

    def _pass(self, chunk: list[int]) -> torch.Tensor:
        device = self._model.device
        ids = torch.tensor([chunk], device=device)  # (1, C)
        places = torch.arange(self._cached, self._cached + len(chunk), device=device)[None]  # (1, C)
        last = torch.tensor([len(chunk) - 1], device=device)
        logits = self._model.logits_at(ids, places, last, self._cache)[0]  # (V,)
        self._cached += len(chunk)
        return logits


def _switches_at(model: LoadedModel) -> int:
    """The window LongRoPE's short factors are for, tokens; 0 for other embeddings."""
    config = model.model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = rope.values() if any(isinstance(value, dict) for value in rope.values()) else (rope,)
    for kind in kinds:
        if isinstance(kind, dict) and kind.get("rope_type", kind.get("type")) == "longrope":
            named = kind.get("original_max_position_embeddings")
            return int(named or getattr(config, "original_max_position_embeddings", 0) or 0)
    return 0
