"""[distillation]: learning from a teacher as well as from labels.

Owns the fields, their limits and meanings. Must not know how a loss is computed (`engine.distill`), nor memory.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from engine.jobs.spec_section import Section

SELF = "self"


class Held(StrEnum):
    """Where the teacher's knowledge is while the student learns."""

    AUTO = "auto"
    RESIDENT = "resident"
    NF4 = "nf4"
    OFFLOADED = "offloaded"
    CACHED = "cached"


class DistillLoss(StrEnum):
    """p is the teacher's distribution, q the student's, both at the temperature."""

    FORWARD_KL = "forward_kl"
    """KL(p || q)."""
    REVERSE_KL = "reverse_kl"
    """KL(q || p)."""
    JSD = "jsd"
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD, arXiv 2306.13649)."""


class MissingMass(StrEnum):
    """What becomes of the probability outside the teacher's top k."""

    REST = "rest"
    """It is one more outcome, for both."""
    RENORMALISE = "renormalise"
    """Both are divided by their mass inside the top k."""
    ZERO = "zero"
    """The terms outside are left out; the sum is no divergence of distributions, and may fall below zero."""


class Tokenizers(StrEnum):
    SAME = "same"
    """Checked token by token; padded tails of the vocabularies are accepted."""
    ULD = "uld"
    """Sorted probabilities are compared, whatever they stand for (arXiv 2402.12030)."""


class DistillationSection(Section, frozen=True, kw_only=True):
    teacher: Annotated[
        str,
        Meta(
            description='A folder (a model or an adapter), a hub id, "demo", or "self": the model as it was before this'
            ' job, which costs an adapter job no memory. "" trains on labels alone.'
        ),
    ] = ""
    teacher_revision: Annotated[str, Meta(description='Hub revision of the teacher; "" means the newest.')] = ""
    held: Annotated[
        Held,
        Meta(
            description="auto, resident, nf4, offloaded (weights in host RAM), or cached: its top logits are written"
            " to disk before training."
        ),
    ] = Held.AUTO
    loss: Annotated[DistillLoss, Meta(description="forward_kl, reverse_kl or jsd.")] = DistillLoss.FORWARD_KL
    beta: Annotated[float, Meta(gt=0.0, lt=1.0, description="jsd only: the teacher's share of the mixture.")] = 0.5
    temperature: Annotated[
        float, Meta(gt=0.0, le=100.0, description="Both are softened by it; the loss is multiplied by its square.")
    ] = 1.0
    ce_weight: Annotated[
        float,
        Meta(
            ge=0.0,
            le=1.0,
            description="Share of the labels' cross-entropy; the rest is the teacher's, who has all on own answers.",
        ),
    ] = 0.5
    top_k: Annotated[
        int, Meta(ge=0, description="Only the teacher's most likely tokens; 0 means all of them (cached: 64).")
    ] = 0
    missing_mass: Annotated[MissingMass, Meta(description="With top_k: rest, renormalise or zero.")] = MissingMass.REST
    hidden_weight: Annotated[
        float,
        Meta(
            ge=0.0,
            description="Weight of the distance between hidden states; needs teacher and student of equal width.",
        ),
    ] = 0.0
    hidden_layers: Annotated[
        tuple[int, ...],
        Meta(
            description="The student's layers compared, from 1; [] means the last. The teacher's are at the same depth."
        ),
    ] = ()
    on_policy: Annotated[
        float, Meta(ge=0.0, le=1.0, description="Share of the steps that learn on the student's own answers.")
    ] = 0.0
    rollout_tokens: Annotated[int, Meta(ge=1, le=4096, description="New tokens of such an answer at most.")] = 128
    rollout_temperature: Annotated[float, Meta(ge=0.0, le=10.0, description="0 answers greedily.")] = 1.0
    tokenizers: Annotated[Tokenizers, Meta(description="same, or uld for a teacher with another tokenizer.")] = (
        Tokenizers.SAME
    )
    cache: Annotated[
        str,
        Meta(
            description='Folder of the cached logits; "" keeps them in this machine\'s cache, found again by content.'
        ),
    ] = ""

    @property
    def distils(self) -> bool:
        """Whether there is a teacher at all."""
        return bool(self.teacher)
