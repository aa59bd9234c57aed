"""A source's layer tensors sorted by kind, and the made layers' names.

Owns the sorting and the checks that neighbours have equal shapes. Must not know how a layer is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.errors import EngineError
from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.layout import Layout, Rule
from engine.expansion.plan import ExpansionPlan
from engine.models.headers import Headers, TensorHeader


@dataclass(frozen=True, slots=True)
class Kind:
    """One tensor of every layer that has it: all query projections, all gains of the first norm ..."""

    rule: Rule
    head: int | None
    """Where each head has a tensor of its own."""
    layers: Mapping[int, TensorHeader]

    @property
    def is_matrix(self) -> bool:
        """Whether it has two axes."""
        return len(self.rule.axes) == 2


@dataclass(frozen=True, slots=True)
class MadeLayer:
    """A layer to compute: its number in the larger model and its neighbours in the source."""

    number: int
    base: int
    other: int
    share: float
    """How far towards `other` it lies, between 0 and 1."""

    def name(self, header: TensorHeader) -> str:
        """What the surgery looks for; `header` is the tensor of `base`."""
        return f"made.{self.number}.{header.name}"


def made_layers(plan: ExpansionPlan) -> tuple[MadeLayer, ...]:
    """The plan's layers that must be computed."""
    return tuple(
        MadeLayer(number, layer.base, layer.other, layer.weight)
        for number, layer in enumerate(plan.layer_sources)
        if _is_made(layer)
    )


def _is_made(layer: LayerSource) -> bool:
    return layer.kind is LayerKind.MADE


def kinds(headers: Headers, layout: Layout, made: Sequence[MadeLayer]) -> tuple[Kind, ...]:
    """The layers' tensors by kind, in the order of the first layer that has them.

    Raises EngineError `learned.experts` for a mixture's layer, `learned.shape` where neighbours differ.
    """
    found: dict[tuple[str, int | None], tuple[Rule, dict[int, TensorHeader]]] = {}
    for header in headers.tensors:
        match = layout.find(header.name)
        if match is None or match.layer is None:
            continue
        if match.expert is not None or len(match.rule.axes) > 2:
            raise EngineError(
                "learned.experts",
                f"Layers of a mixture of experts cannot be computed from their neighbours ('{header.name[:80]}').",
                cause="Experts of neighbouring layers do not correspond, and nothing is known that predicts a router.",
                next_step="Use the operator identity, which repeats a layer with its router.",
            )
        _, layers = found.setdefault((match.rule.pattern, match.head), (match.rule, {}))
        layers[match.layer] = header
    result = tuple(Kind(rule, head, layers) for (_, head), (rule, layers) in found.items())
    for kind in result:
        _check_neighbours(kind, made)
    return result


def _check_neighbours(kind: Kind, made: Sequence[MadeLayer]) -> None:
    for layer in made:
        first, second = kind.layers.get(layer.base), kind.layers.get(layer.other)
        shapes = [None if header is None else header.shape for header in (first, second)]
        if shapes[0] != shapes[1]:
            raise EngineError(
                "learned.shape",
                f"Layers {layer.base} and {layer.other} cannot have a layer between them.",
                cause=f"'{kind.rule.pattern}' has the shapes {shapes[0] or 'none'} and {shapes[1] or 'none'}.",
                next_step="Use the operator identity.",
            )
