"""The comparison matrix as data: one row per approach, every cell an estimate that can be explained.

Owns the shape of the matrix; `engine.advise.compare` fills it. Must not know how it is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.estimate.estimate import Estimate, Verdict

if TYPE_CHECKING:
    from engine.advise.appraisal import Appraisal


@dataclass(frozen=True, slots=True)
class ApproachRow:
    """One approach for one model on one machine under the given answers."""

    id: str
    """qlora, lora, lora-large, context, block-expansion, partial-expansion, full-expansion, pretrained-larger,
    distillation: the keys of `profiles/approaches.toml`."""
    title: str
    base_parameters: int
    final_parameters: int
    effective_capacity: str
    """A phrase with its range and source, "+5–15 % behaviour (brief)"."""
    verdict: Verdict
    verdict_reason: str
    """ "needs about 31.0 GiB (up to 34.2 GiB); 22.1 GiB of 24.0 GiB are free on this card"."""
    vram: Estimate
    """Bytes on the busiest device; on a machine without a GPU all zero and `ram` holds the need."""
    ram: Estimate
    disk: Estimate
    hours: Estimate
    cost_usd: Estimate
    performance: str
    """Expected performance in words, with its origin."""
    reason: str
    """One sentence: when this is the right choice."""
    runnable: bool
    """Whether this version can run it from here."""
    not_runnable_reason: str = ""
    impediment: str = ""
    """Why the approach is not for this model at all, in one sentence; such a row is never recommended."""
    settings: str = ""
    """What the figures assume: "micro-batch 4 x 2,048 tokens, rank 16, checkpointing"."""
    limiting: str = ""
    """The largest term of the memory in words."""
    appraisal: Appraisal | None = None
    """What the figures were read from: for fixes and for questions the other way round."""

    @property
    def obstacle(self) -> str:
        """ "no teacher": shown instead of a verdict and figures, which would be of nobody's; "" otherwise."""
        return "no teacher" if self.impediment and self.id == "distillation" else ""


@dataclass(frozen=True, slots=True)
class Matrix:
    model: str
    machine: str
    simulated: bool
    rows: tuple[ApproachRow, ...]
    recommended: str
    """The id of a row."""
    recommendation: str
    """Why, in one sentence."""
    otherwise: dict[str, str] = field(default_factory=dict)
    """Row id -> what choosing it instead would cost, in one sentence."""
    warnings: tuple[str, ...] = ()

    def row(self, approach: str) -> ApproachRow:
        """The row of `approach`; KeyError when there is none."""
        for candidate in self.rows:
            if candidate.id == approach:
                return candidate
        raise KeyError(approach)
