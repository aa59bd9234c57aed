"""Which token comes next: the likeliest, or one drawn at a temperature from the likeliest few.

Owns sampling. Must not know models, text or who asks. V tokens in the vocabulary.

Drawing is an exponential race (the Gumbel-max trick in another dress): with E_i ~ Exp(1) independent,
argmax_i p_i / E_i is token i with probability p_i. The draws E depend on the seed and the position in the answer only,
so two models that agree on the probabilities draw the same token, and answers part where the models do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.jobs.chat_lines import SEEDS, Sampling


class Draw:
    """Chooses the tokens of one answer; make a new one for every answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator(device="cpu").manual_seed(sampling.seed % SEEDS)

    def next(self, logits: Tensor) -> int:
        """The token after logits (V,). On the processor, so that a seed gives the same draws on every device."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        scaled = logits.float().cpu() / self._sampling.temperature  # (V,)
        race = torch.empty_like(scaled).exponential_(generator=self._generator)
        chances = within(torch.softmax(scaled, dim=-1), self._sampling.top_p)
        return int((chances / race).argmax())


def within(chances: Tensor, top_p: float) -> Tensor:
    """`chances` (V,) with zeros outside the smallest set of likeliest tokens that together reach `top_p`; the likeliest
    always stays. Nucleus sampling: Holtzman et al., arXiv:1904.09751. Not renormalised: a race does not need it."""
    if top_p >= 1:
        return chances
    ordered, order = chances.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    kept = torch.zeros_like(chances)
    inside = order[before < top_p]
    inside = inside if len(inside) else order[:1]
    kept[inside] = chances[inside]
    return kept
