"""Greedy generation with a KV cache, and whether two models wrote the same.

Owns the loop. Must not know how a model holds its weights: a streamed one works as well, once per token and layer.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model wrote, and by how much each token won."""

    ids: Tensor
    """(B, N) chosen tokens."""
    margins: Tensor
    """(B, N) best logit minus second best."""


def generate(model: Any, prompt: Tensor, tokens: int, seconds: float = math.inf) -> Continuation:
    """Continue `prompt` (B, L) by `tokens` greedy tokens, or by those that `seconds` allow; ends of text are ordinary
    tokens here."""
    chosen, margins = [], []
    began = time.monotonic()
    with torch.no_grad():
        output = model(input_ids=prompt, use_cache=True, **_last_logits_only(model))
        for step in range(tokens):
            best = output.logits[:, -1].double().topk(2, dim=-1)  # (B, 2)
            token = best.indices[:, :1]  # (B, 1)
            chosen.append(token)
            margins.append(best.values[:, 0] - best.values[:, 1])
            if time.monotonic() - began >= seconds:
                break
            if step + 1 < tokens:
                output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
    return Continuation(torch.cat(chosen, dim=1), torch.stack(margins, dim=1))


def _last_logits_only(model: Any) -> dict[str, int]:
    """Families that can leave the prompt's other logits out are asked to."""
    return {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}


def first_difference(source: Continuation, grown: Continuation) -> tuple[int, float] | None:
    """(step, margin of the source's choice there) where the first row parts; None when all rows are the same."""
    differs = source.ids != grown.ids  # (B, N)
    if not bool(differs.any()):
        return None
    row, step = (int(number) for number in differs.nonzero()[0])
    return step, float(source.margins[row, step])
