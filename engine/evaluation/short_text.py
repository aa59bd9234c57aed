"""What short text lost: the same short pieces through the model before and after, both as they would be served.

Owns the pieces and the comparison. Must not know how either model was made. A static scheme changes short inputs too,
so "after" is the extended model with its new config, not the old one with new weights.
"""

from __future__ import annotations

import math

import msgspec

from engine.evaluation.length_text import Documents
from engine.evaluation.lengths import Progress, ignore, losses
from engine.evaluation.long_pass import Room
from engine.evaluation.model import LoadedModel
from engine.jobs.length_report import ShortRegression

MOST_PIECES = 16


class ShortScore(msgspec.Struct, frozen=True, kw_only=True):
    """One model on the short pieces."""

    length: int
    nll: float
    """Mean over the tokens, nats."""
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nll, 700.0))


def short_score(
    model: LoadedModel, documents: Documents, length: int, room: Room, progress: Progress = ignore
) -> ShortScore:
    """Every token but the first of up to 16 pieces of `length` tokens."""
    nats, tokens = 0.0, 0
    for part in losses(model, documents.pieces(length, MOST_PIECES), 1, room, progress):
        nats += float(part.double().sum())
        tokens += part.numel()
    return ShortScore(length=length, nll=nats / max(tokens, 1), tokens=tokens)


def regression(before: ShortScore, after: ShortScore) -> ShortRegression:
    """The two compared; they must have been measured on the same pieces."""
    assert (before.length, before.tokens) == (after.length, after.tokens)
    return ShortRegression(
        length=after.length,
        tokens=after.tokens,
        perplexity_before=before.perplexity,
        perplexity_after=after.perplexity,
    )
