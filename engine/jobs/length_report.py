"""What a model is worth at every length, as data: perplexity, needles, and what short text lost.

Owns the report's types; the evaluation fills them (`engine.evaluation`), cards, commands and screens read them.
Must not know torch. Fields are only added, never renamed.
"""

from __future__ import annotations

import msgspec

SHORTEST_LENGTH = 32
"""Tokens: below, a perplexity by length says nothing."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A section of the report."""


class LengthPerplexity(_Part, frozen=True, kw_only=True):
    """Perplexity of the same closing tokens with `length` tokens in all before and among them."""

    length: int
    nll: float
    """Mean over the tokens, nats per token."""
    perplexity: float
    tokens: int
    """Predicted tokens, over all documents."""
    documents: int
    rise: float | None = None
    """Against the best shorter length from the original window on, relative: 0.04 is 4 % worse, below 0 better; None
    where there is none (`engine.jobs.length_verdict.reference_length`)."""
    rise_error: float = 0.0
    """Standard error of that, from the same tokens' differences, nats."""
    sliding: float | None = None
    """Perplexity of whole documents by sliding windows of `length` tokens (Press et al., arXiv 2108.12409)."""


class PositionLoss(_Part, frozen=True, kw_only=True):
    """Mean loss of tokens by where they stand."""

    start: int
    end: int
    """Half-open."""
    nll: float
    tokens: int


class NeedleCell(_Part, frozen=True, kw_only=True):
    """One length and depth of one retrieval task."""

    task: str
    """ "needle", "multi-needle", "key-value", "variables"."""
    length: int
    """Tokens of every prompt with its answer."""
    depth: float
    """Where what is asked for stands: 0 first, 1 last."""
    prompts: int
    accuracy: float
    """Share of prompts whose whole answer is the model's first choice, 0 to 1."""
    nll: float
    """Mean over the answers' tokens, nats per token."""


class ShortRegression(_Part, frozen=True, kw_only=True):
    """The same short text through the model before and after, both as they would be served."""

    length: int
    tokens: int
    perplexity_before: float
    perplexity_after: float

    @property
    def change(self) -> float:
        """Relative: 0.004 is 0.4 % worse."""
        return self.perplexity_after / self.perplexity_before - 1


class LengthReport(_Part, frozen=True, kw_only=True):
    """One model, measured."""

    model: str
    window: int
    """What its config promises, tokens."""
    original: int
    """The window before it was extended; equal to `window` where it was not."""
    perplexity: tuple[LengthPerplexity, ...] = ()
    positions: tuple[PositionLoss, ...] = ()
    needles: tuple[NeedleCell, ...] = ()
    short: ShortRegression | None = None
    style: str = ""
    """How needles were asked: "passkey", "notes"."""
    informative: bool = True
    """Whether the unextended model answers needles within its own window; else needles say nothing."""
    text: str = ""
    """Where the documents came from."""
    documents: int = 0
    seed: int = 0
    seconds: float = 0.0
    method: str = ""
    notes: tuple[str, ...] = ()
