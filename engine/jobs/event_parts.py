"""What events are made of beside plain values: meters, proofs and retention as the journal keeps them.

Owns these shapes. Must not know events (`engine.jobs.events` takes them in under its own name).
"""

from __future__ import annotations

import msgspec


class GpuMeter(msgspec.Struct, frozen=True):
    index: int
    used_bytes: int
    total_bytes: int
    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


class DriftReport(msgspec.Struct, frozen=True, kw_only=True):
    """`engine.expansion.certificate.Drift`, as the journal keeps it."""

    max_abs_logit_diff: float = 0.0
    mean_abs_logit_diff: float = 0.0
    max_rel_logit_diff: float = 0.0
    mean_kl: float = 0.0
    top1_agreement: float = 0.0


class LivenessReport(msgspec.Struct, frozen=True, kw_only=True):
    """`engine.expansion.certificate.Liveness`, as the journal keeps it."""

    checked: bool = False
    alive: bool = False
    new_tensors: int = 0
    dead: tuple[str, ...] = ()
    twins: tuple[str, ...] = ()
    reason: str = ""


class ProofReport(msgspec.Struct, frozen=True, kw_only=True):
    """`engine.expansion.certificate.Proof`, field by field, as the journal and the card keep it."""

    passed: bool
    exact_claimed: bool
    reason: str = ""
    text: str = ""
    tokens: int = 0
    method: str = ""
    float32: DriftReport | None = None
    arithmetic: DriftReport | None = None
    bfloat16: DriftReport | None = None
    bfloat16_source: DriftReport | None = None
    generation_tokens: int = 0
    generation_identical: bool | None = None
    reloaded: bool | None = None
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    liveness: LivenessReport = LivenessReport()
    seconds: float = 0.0


class RetentionReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one ability against the parent model."""

    on: str
    """A benchmark, a suite, a source or "base_text"."""
    unit: str
    """ "accuracy" (higher is better) or "bits per byte" (lower is better)."""
    before: float
    after: float
    delta: float
    """after - before."""
    low: float
    """95 % interval of delta, by paired bootstrap; it holds zero too where few items changed and chance may do that."""
    high: float
    pairs: int
    """Questions or documents that both were asked."""
    verdict: str
    """ "lost", "kept", "gained", or "unclear": the interval holds zero and reaches beyond what would matter."""
    words: str
    """ "arithmetic fell from 91 % to 78 %, significant"."""
