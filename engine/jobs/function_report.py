"""Whether two model folders compute the same function, as data: what `verify` measured and its verdict.

Owns the report's shape and its one sentence. Must not know torch, nor how anything is measured
(`engine.proof.same_function`).
"""

from __future__ import annotations

import msgspec

from engine.jobs.events import DriftReport

SAME, ROUNDING, DIFFERENT = "same", "rounding", "different"


class LayerDrift(msgspec.Struct, frozen=True, kw_only=True):
    """What two models hold after the same layer."""

    layer: int
    """From 0."""
    largest: float
    """Largest difference, relative to the range (max - min) of the first model's values there."""
    mean: float
    """Root of the mean squared difference, relative to that of the first model's values."""


class FunctionReport(msgspec.Struct, frozen=True, kw_only=True):
    """The second model against the first, on the same tokens."""

    first: str
    second: str
    first_kind: str
    """ "model", "adapter on base", "model in 4 bits (nf4)"."""
    second_kind: str
    verdict: str
    """ "same": equal within what the order of float32 sums explains; "rounding": within what 16 bits do to the first
    model itself; "different"."""
    words: str
    text: str
    tokens: int
    method: str
    """ "whole" or "layer by layer"."""
    tolerance: float
    """Largest relative difference of logits that counts as the same."""
    logits: DriftReport
    identical: bool
    """Whether the logits are equal bit for bit."""
    own_rounding: DriftReport | None = None
    """The first model in bfloat16 against itself in float32: what rounding alone does. None where it was not needed."""
    generation_tokens: int = 0
    generation_identical: bool | None = None
    """Greedy, with a key-value cache; None where it was not tried."""
    generation_tie: bool = False
    """They part where two tokens are equally good, within the difference of the logits."""
    parted_at: int = -1
    """The first token that differs; -1 for none."""
    reloaded: bool | None = None
    """Whether the second folder, loaded once more, gives the logits it gave before."""
    perplexity_first: float = 0.0
    perplexity_second: float = 0.0
    layers: tuple[LayerDrift, ...] = ()
    layers_note: str = ""
    """Why layers were not compared."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    versions: dict[str, str] = {}
    v: int = 1

    @property
    def agrees(self) -> bool:
        """Whether one may be used for the other."""
        return self.verdict in (SAME, ROUNDING)
