"""[mix] and [[adapters]]: several adapters of one base become one.

Owns the fields, their limits and meanings. Must not know how updates are computed (`engine.adapters`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from engine.jobs.spec_section import Section


class MixMethod(StrEnum):
    """W is the weight of an adapter, D its update of a matrix; all of them work on the updates themselves."""

    EXACT = "exact"
    """Sum of W x D, without any loss: low-rank factors are concatenated, or the update is kept whole."""
    LINEAR = "linear"
    """The same with weights divided by their sum."""
    TIES = "ties"
    """Trim to density, elect signs, average those that agree (arXiv 2306.01708)."""
    DARE = "dare"
    """Drop at random, rescale by 1 / density, sum (arXiv 2311.03099)."""
    DARE_TIES = "dare_ties"
    """DARE's dropping with the sign election of TIES."""
    MAGNITUDE = "magnitude"
    """Keep the largest, sum."""
    SVD = "svd"
    """The exact sum cut to `rank` by its singular values."""


class Signs(StrEnum):
    TOTAL = "total"
    """By the sum of the values."""
    FREQUENCY = "frequency"
    """By the number of adapters."""


class MixSection(Section, frozen=True, kw_only=True):
    method: Annotated[MixMethod, Meta(description="exact, linear, ties, dare, dare_ties, magnitude or svd.")] = (
        MixMethod.EXACT
    )
    density: Annotated[
        float, Meta(gt=0.0, le=1.0, description="Share of an update that ties, dare and magnitude keep.")
    ] = 0.5
    signs: Annotated[Signs, Meta(description="ties, dare_ties: signs elected by total or by frequency.")] = Signs.TOTAL
    rank: Annotated[
        int, Meta(ge=0, le=65536, description="Of the result; 0 means what is exact, or the sum of the ranks.")
    ] = 0
    sweep: Annotated[
        int,
        Meta(
            ge=0,
            le=10000,
            description="Measure so many sets of weights on held-out rows and take the best; 0 takes those given.",
        ),
    ] = 0


class MixedAdapter(Section, frozen=True, kw_only=True):
    """An adapter of [mix], with its weight."""

    path: Annotated[str, Meta(min_length=1, description="A peft folder, or a run of this machine.")]
    weight: Annotated[float, Meta(ge=-100.0, le=100.0, description="Negative takes away what the adapter learnt.")] = (
        1.0
    )
    name: Annotated[str, Meta(max_length=80, description="For reports; the folder's name when empty.")] = ""
