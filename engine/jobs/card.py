"""The before/after card as data: what a run changed, measured, with the prediction beside it.

Owns the shape of `card.json`. The worker fills and writes it; screens, `card ID` and the HTML page read it.
Must not know torch.
"""

from __future__ import annotations

import msgspec


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of a model, before or after."""

    task_loss: float
    """Mean cross-entropy per trained token on held-out rows, nats."""
    task_tokens: int
    exact_match: float | None = None
    """Share of held-out rows whose greedy answer equals the reference exactly, 0 to 1."""
    exact_match_rows: int = 0
    base_perplexity: float | None = None
    """exp(mean cross-entropy per token) on base text: rises when the model forgets."""
    base_tokens: int = 0
    seconds: float = 0.0


class SampleComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One fixed prompt, answered greedily by both."""

    prompt: str
    before: str
    after: str
    expected: str = ""


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    """Relative to the run directory."""
    size_bytes: int
    parameters: int


class MergeCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Adapter on its base against the merged model, on the same held-out tokens."""

    path: str
    size_bytes: int
    max_logit_difference: float
    mean_logit_difference: float
    same_top_token: float
    """Share of positions where both name the same next token, 0 to 1."""
    merged_task_loss: float
    adapter_task_loss: float
    base_dtype: str
    """What the adapter was measured on: "nf4" or a float type."""


class PredictedMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """One promise and what came of it."""

    name: str
    """ "memory", "time", "speed"."""
    unit: str
    low: float
    likely: float
    high: float
    measured: float
    origin: str


class CurvePoint(msgspec.Struct, frozen=True, array_like=True):
    step: int
    value: float


class Card(msgspec.Struct, frozen=True, kw_only=True):
    run_id: str
    name: str
    task: str
    model: str
    created: float
    before: Scores
    after: Scores
    samples: tuple[SampleComparison, ...]
    steps: int
    tokens: int
    trained_tokens: int
    training_seconds: float
    working_seconds: float
    cost_usd: float
    adapter: Adapter
    merged: MergeCheck | None = None
    predicted: tuple[PredictedMeasured, ...] = ()
    loss_curve: tuple[CurvePoint, ...] = ()
    eval_curve: tuple[CurvePoint, ...] = ()
    spec_hash: str = ""
    data_sha256: str = ""
    attempts: int = 1
    """How many workers it took; more than one means the run was resumed."""
    device: str = ""
    versions: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    v: int = 1
