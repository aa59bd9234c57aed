"""What a mix or a merge of adapters did and how exact it was, as data for cards, screens and JSON.

Owns the shape. Must not know how updates are computed.
"""

from __future__ import annotations

import msgspec


class LayerError(msgspec.Struct, frozen=True, kw_only=True):
    """One adapted matrix of the result against the true weighted sum of the updates."""

    module: str
    rank: int
    """Of the result; 0 where the update is kept whole."""
    relative_error: float
    """Frobenius norm of the difference over that of the true sum; 0 where the true sum is 0."""
    update_norm: float
    """Frobenius norm of the true sum."""


class MixReport(msgspec.Struct, frozen=True, kw_only=True):
    """One mix."""

    method: str
    adapters: tuple[str, ...]
    weights: tuple[float, ...]
    layers: tuple[LayerError, ...]
    relative_error: float
    """Over all matrices together."""
    rank: int
    """The largest of the result."""
    out: str
    size_bytes: int
    cut_error: float | None = None
    """What the rank cuts off the matrices that ties, dare or magnitude give, relative; None for a weighted sum."""
    density: float = 1.0
    identity_error: float | None = None
    """The self-test: every adapter alone at weight 1 against itself, relative, the worst of them."""
    score_before: float | None = None
    """Mean loss of the base on the held-out rows, nats per trained token."""
    score: float | None = None
    """The same of the result."""
    swept: int = 0
    """Sets of weights that were measured, on one half of the held-out rows."""
    check_before: float | None = None
    """Of a sweep: the base's loss on the other half, which the weights were not chosen by."""
    check_score: float | None = None
    """The same of the weights that were chosen."""
    seconds: float = 0.0
    peak_rss_bytes: int = 0
