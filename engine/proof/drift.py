"""How far two sets of logits are apart.

Owns the comparison and the perplexity. Must not know models. Everything is added up in float64, a few positions at a
time, so that the measurement adds no noise of its own and no copy of the whole.

T positions, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.errors import EngineError, ExitCode
from engine.expansion.certificate import Drift

POSITIONS_AT_ONCE = 16


def logit_drift(reference: Tensor, logits: Tensor) -> Drift:
    """`logits` (T, V) against `reference` (T, V); relative figures are parts of the reference's range (max - min)."""
    assert reference.shape == logits.shape
    worst = total = divergence = 0.0
    agreed = 0
    low, high = math.inf, -math.inf
    for begin in range(0, reference.shape[0], POSITIONS_AT_ONCE):
        end = begin + POSITIONS_AT_ONCE
        expected, found = reference[begin:end].double(), logits[begin:end].double()  # (t, V)
        low, high = min(low, float(expected.min())), max(high, float(expected.max()))
        difference = (found - expected).abs()
        worst, total = max(worst, float(difference.max())), total + float(difference.sum())
        agreed += int((expected.argmax(-1) == found.argmax(-1)).sum())
        known = expected.log_softmax(-1)
        divergence += float((known.exp() * (known - found.log_softmax(-1))).sum())
    positions = reference.shape[0]
    return Drift(
        max_abs_logit_diff=worst,
        mean_abs_logit_diff=total / reference.numel(),
        max_rel_logit_diff=worst / (high - low) if high > low else (0.0 if worst == 0 else math.inf),
        mean_kl=max(divergence / positions, 0.0),
        top1_agreement=agreed / positions,
    )


def perplexity(logits: Tensor, ids: Tensor) -> float:
    """exp of the mean cross-entropy of each next token: (T, V), (T,) -> scalar; inf when that overflows."""
    targets, total = ids[1:], 0.0
    for begin in range(0, targets.shape[0], POSITIONS_AT_ONCE):
        part = slice(begin, min(begin + POSITIONS_AT_ONCE, targets.shape[0]))
        known = logits[part].double().log_softmax(-1)
        total -= float(known.gather(-1, targets[part, None]).sum())
    mean = total / max(targets.shape[0], 1)
    return math.exp(mean) if mean < 700 else math.inf


def require_numbers(logits: Tensor, whose: str) -> None:
    """Raises EngineError `proof.not_numbers` when a logit is NaN or infinite."""
    for begin in range(0, logits.shape[0], POSITIONS_AT_ONCE):
        finite = torch.isfinite(logits[begin : begin + POSITIONS_AT_ONCE])
        if not bool(finite.all()):
            position = begin + int((~finite).any(-1).nonzero()[0])
            raise EngineError(
                "proof.not_numbers",
                f"The {whose} model's logits are not numbers (NaN or infinite), first at token {position}.",
                cause="A weight is NaN or infinite, or the computation overflows.",
                next_step="Check the weights of the source model.",
                exit_code=ExitCode.RUN_FAILED,
            )
