"""The registry's type: what an operator grows, what it keeps, what it loses, and where it is from.

Must not know any operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.expansion.axes import Dim, Dims
from engine.expansion.growth import AxisGrowth, AxisRequest, LayerSource
from engine.expansion.layout import Traits

LAYERS = "layers"
"""The key of depth operators in a plan; the others use `Dim` values."""


@dataclass(frozen=True, slots=True)
class LayerRequest:
    """Layers to make."""

    old: int
    new: int
    traits: Traits
    seed: int = 17
    placement: str = ""
    """ "interleaved", "start", "end", "upper" (upper half); "" is the operator's own."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One way to grow."""

    name: str
    title: str
    axes: tuple[str, ...]
    """`Dim` values, or "layers"."""
    exact: str
    """ "always", "never", or the condition in words ("when the new width is a multiple")."""
    loses: str
    """What it does not preserve, as a sentence; "" when nothing."""
    source: str
    """Paper or derivation."""
    grow: Callable[[AxisRequest], AxisGrowth] | None = None
    layers: Callable[[LayerRequest], tuple[LayerSource, ...]] | None = None
    is_exact: Callable[[str, Dims, Dims], bool] | None = None
    """Decides conditional exactness of an axis; None means `exact == "always"`."""

    def exact_for(self, axis: str, before: Dims, after: Dims) -> bool:
        """Whether the function is kept when `axis` grows like this."""
        if self.is_exact is not None:
            return self.is_exact(axis, before, after)
        return self.exact == "always"


WIDTHS = (Dim.HIDDEN.value, Dim.FFN.value, Dim.EXPERT_FFN.value, Dim.SHARED_FFN.value)
ATTENTION = (Dim.QUERY.value, Dim.KEY_VALUE.value)
