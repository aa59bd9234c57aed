"""Aligned averages: the mean of two neighbouring layers whose neurons and heads have been matched first.

Owns which units are matched by what. The transport is in `transport`. Must not know files' names.

    feed-forward units   by their gate and up rows and their down columns, together: one order for all three
    key/value groups     by their key and value rows and the mean of their query rows and output columns
    query heads          within matched groups, by their query rows and output columns

The order found for a unit is applied to every tensor that has the unit, so a reordered layer computes what it computed
(rotary positions act inside a head, and heads move as a whole). Where heads differ by their number (ALiBi) they stay.
Source: Cao et al., "OpT-DeUS", 2025 (arXiv 2508.08011); grouped queries and rounding to permutations are own work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.expansion.axes import Axis, Dim, Dims, Fused
from engine.expansion.layout import Layout
from engine.learned.kinds import Kind, MadeLayer
from engine.learned.places import Orders, reordered, vectors
from engine.learned.progress import Report
from engine.learned.tensors import TensorFile, read_tensor
from engine.learned.transport import matching

NEURONS = (Dim.FFN, Dim.SHARED_FFN)
Pair = tuple[Tensor, Tensor]
"""The same thing of both layers."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Two layers that are to be averaged."""

    kinds: Sequence[Kind]
    dims: Dims
    first: int
    second: int

    def pairs(self, dim: Dim) -> Iterator[Pair]:
        """(U, f) of both layers for every matrix that has units of `dim`."""
        for kind in self.kinds:
            if self.first not in kind.layers or not kind.is_matrix or not _has(kind.rule.axes, dim):
                continue
            stored = [read_tensor(kind.layers[layer]) for layer in (self.first, self.second)]
            yield from zip(
                *(vectors(tensor, kind.rule.axes, self.dims, dim) for tensor in stored),
                strict=True,
            )


def make_layers(
    made: Sequence[MadeLayer], kinds: Sequence[Kind], layout: Layout, target: TensorFile, report: Report
) -> None:
    """All made layers' tensors, layer after layer."""
    for done, layer in enumerate(made):
        report("align", done, len(made), f"layer {layer.number}: between {layer.base} and {layer.other}")
        orders = find_orders(Neighbours(kinds, layout.dims, layer.base, layer.other), heads=not layout.traits.alibi)
        for kind in kinds:
            header = kind.layers.get(layer.base)
            if header is not None:
                second = aligned(kind, layer.other, orders, layout.dims, kinds)
                target.write(layer.name(header), read_tensor(header).float().lerp(second.float(), layer.share))
    report("align", len(made), len(made), "")


def find_orders(layers: Neighbours, *, heads: bool = True) -> dict[Dim, Tensor]:
    """For every dimension the unit of the second layer that takes each place of the first one's."""
    orders: dict[Dim, Tensor] = {}
    for dim in NEURONS:
        if layers.dims.of(dim):
            orders[dim] = matching(layers.pairs(dim), layers.dims.of(dim))
    if heads:
        orders |= _head_orders(layers)
    return orders


def _head_orders(layers: Neighbours) -> dict[Dim, Tensor]:
    groups = layers.dims.kv_heads
    per_group = layers.dims.heads // groups
    queries = [
        (first.reshape(groups, per_group, -1), second.reshape(groups, per_group, -1))
        for first, second in layers.pairs(Dim.QUERY)
    ]
    means = [(first.float().mean(1), second.float().mean(1)) for first, second in queries]
    of_groups = matching([*layers.pairs(Dim.KEY_VALUE), *means], groups)  # (G,)
    heads = torch.empty(groups, per_group, dtype=torch.long)
    for group, other in enumerate(of_groups.tolist()):
        inside = matching([(first[group], second[other]) for first, second in queries], per_group)
        heads[group] = other * per_group + inside
    return {Dim.KEY_VALUE: of_groups, Dim.QUERY: heads.reshape(-1)}


def aligned(kind: Kind, layer: int, orders: Orders, dims: Dims, kinds: Sequence[Kind]) -> Tensor:
    """A layer's tensor with its units in the order found. Where each head has a tensor of its own, another head's."""
    counted = kind.rule.counted
    if kind.head is not None and counted is not None and counted in orders:
        head = int(orders[counted][kind.head])
        kind = next(one for one in kinds if one.rule == kind.rule and one.head == head)
    return reordered(read_tensor(kind.layers[layer]), kind.rule.axes, dims, orders)


def _has(axes: tuple[Axis | Fused, ...], dim: Dim) -> bool:
    return any(part.dim is dim for axis in axes for part in (axis.parts if isinstance(axis, Fused) else (axis,)))
