"""What an operator answers: how one axis grows, which layers the larger model is made of.

Owns the types between operators and recipes. Must not know tensors or families.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from engine.expansion.axes import Dim, Dims
from engine.expansion.layout import Traits
from engine.expansion.maps import AxisMap, identity


@dataclass(frozen=True, slots=True)
class AxisRequest:
    """One axis to grow. `old` and `new` are units: coordinates, heads, experts."""

    dim: Dim
    old: int
    new: int
    before: Dims
    after: Dims
    traits: Traits
    seed: int
    operators: Mapping[str, str] = field(default_factory=dict)
    """Axis name -> operator of the whole plan: query heads depend on what happens to key/value heads."""


@dataclass(frozen=True, slots=True)
class AxisGrowth:
    """How the units of one axis come from the old ones, by what a tensor does with the axis."""

    dim: Dim
    out: AxisMap
    into: AxisMap
    along: AxisMap
    operator: str = ""
    copies: int = 1
    """HIDDEN: how many whole copies of the old stream the new one holds; the rest is zero or the mean."""
    rescale: float = 1.0
    """QUERY and KEY_VALUE under a norm over the whole projection: factor of the old rows."""

    @classmethod
    def unchanged(cls, dim: Dim, units: int) -> AxisGrowth:
        """The axis as it was."""
        axis = identity(units)
        return cls(dim, axis, axis, axis)


class LayerKind(StrEnum):
    """How a layer of the larger model is made."""

    OLD = "old"
    """A layer of the source, in its order."""
    COPY = "copy"
    """A repeated layer; the function changes."""
    IDENTITY = "identity"
    """A copy whose branches write nothing at first."""
    FRESH = "fresh"
    """Drawn anew, its branches write nothing at first."""
    BLEND = "blend"
    """The weighted mean of two layers."""
    MADE = "made"
    """Computed beforehand (LESA, aligned averages) at the source's widths."""


@dataclass(frozen=True, slots=True)
class LayerSource:
    """One layer of the larger model."""

    base: int
    """Source layer whose tensors it takes, and whose entries in per-layer config lists."""
    kind: LayerKind = LayerKind.OLD
    other: int = -1
    """BLEND and MADE: the second neighbour."""
    weight: float = 0.5
    """BLEND: share of `other`."""
    silent: bool = False
    """MADE, BLEND: additionally close its branches, so that the function is kept."""

    @property
    def new(self) -> bool:
        """Whether the layer is an addition."""
        return self.kind is not LayerKind.OLD

    @property
    def closed(self) -> bool:
        """Whether its branches write nothing at first."""
        return self.silent or self.kind in (LayerKind.IDENTITY, LayerKind.FRESH)


@dataclass(frozen=True, slots=True)
class StreamScales:
    """How the residual stream is rescaled so that its norms see the statistics they knew.

    The new stream is `stream` x [copies of x; 0]; `stretch` = sqrt(new / (copies x old)) is what a norm over it would
    multiply its output by, so gains are divided by it. With stream = stretch the epsilon stays; with stream = 1 no
    matrix changes a bit and the config's epsilon is multiplied by `epsilon_factor` = (stream / stretch)^2.
    Source: derived; the zero-padded case is Gesmundo & Maile (arXiv 2308.06103), which leaves out epsilon.
    """

    stretch: float = 1.0
    stream: float = 1.0
    branch: float = 1.0
    """Factor of a branch's output before its post-norm; equals `stream` where there is none."""
    multiplier: float = 1.0
    """sqrt(new / old) where the family multiplies the embedding by sqrt(hidden)."""
    copies: int = 1
    query_key: float = 1.0
    """Factor of query and key under a norm over the whole projection, which shares the changed epsilon."""

    @property
    def epsilon_factor(self) -> float:
        """What the config's epsilon is multiplied by."""
        return (self.stream / self.stretch) ** 2
