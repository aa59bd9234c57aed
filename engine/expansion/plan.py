"""The expansion plan: from which shape to which, with which operators, and the seed that fixes every draw.

Owns the plan type; it and the source's headers determine every output tensor (`engine.expansion.recipes`).
Must not know files or how a plan was chosen (`engine.expansion.planner`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.expansion.axes import Dim, Dims
from engine.expansion.growth import LayerKind, LayerSource


@dataclass(frozen=True, slots=True)
class ExpansionPlan:
    """A complete decision; equal plans of equal sources give equal bytes."""

    family: str
    before: Dims
    after: Dims
    operators: dict[str, str] = field(default_factory=dict)
    """Axis ("hidden", "ffn", "heads", "kv_heads", "experts", "layers") -> operator name; only axes that change."""
    layers: tuple[LayerSource, ...] = ()
    """The larger model's layers; empty when depth stays."""
    seed: int = 17
    dtype: str = ""
    """Cast everything to "bfloat16", "float16" or "float32"; "" keeps each tensor's type."""
    target_family: str = ""
    """Config family after upcycling a dense model to a mixture; "" when it stays."""

    @property
    def layer_sources(self) -> tuple[LayerSource, ...]:
        """One entry per layer of the larger model."""
        return self.layers or tuple(LayerSource(index) for index in range(self.before.layers))

    @property
    def needs_made_layers(self) -> bool:
        """Whether layers must be computed before the surgery."""
        return any(layer.kind is LayerKind.MADE for layer in self.layers)

    def operator_for(self, dim: Dim) -> str:
        """The operator chosen for `dim`; "" when the axis stays."""
        return self.operators.get(dim.value, "")
