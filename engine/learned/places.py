"""Where the units of an axis are stored: which entries belong to which head, neuron or expert unit.

Owns the geometry of plain and fused axes. Must not know files. U units, E entries of each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.expansion.axes import Axis, Dim, Dims, Fused

Places = tuple[tuple[Dim, Tensor], ...]
"""For every part of an axis its dimension and the positions (U, E) of its units' entries."""
Orders = Mapping[Dim, Tensor]
"""For every dimension the unit that takes each unit's place (U,)."""


def places(axis: Axis | Fused, dims: Dims, extent: int) -> Places:
    """The parts of a stored axis of `extent` entries."""
    if isinstance(axis, Axis):
        return ((axis.dim, _table(torch.arange(extent), axis, dims)),)
    if axis.order == "interleaved":
        count = len(axis.parts)
        positions = torch.arange(extent)
        return tuple((part.dim, _table(positions[start::count], part, dims)) for start, part in enumerate(axis.parts))
    if axis.order == "grouped":
        return _grouped(axis, dims, extent)
    result = []
    start = 0
    for part in axis.parts:
        count = dims.of(part.dim) * _entries(part, dims)
        result.append((part.dim, _table(torch.arange(start, start + count), part, dims)))
        start += count
    return tuple(result)


def _entries(axis: Axis, dims: Dims) -> int:
    return dims.head_dim if axis.dim in (Dim.QUERY, Dim.KEY_VALUE) and axis.per_head else 1


def _table(positions: Tensor, axis: Axis, dims: Dims) -> Tensor:
    return positions.reshape(-1, _entries(axis, dims))  # (U, E)


def _grouped(axis: Fused, dims: Dims, extent: int) -> Places:
    """For every key/value head: its query heads, the key, the value."""
    per_group = dims.heads // dims.kv_heads
    entries = _entries(axis.parts[0], dims)
    table = torch.arange(extent).reshape(dims.kv_heads, per_group + 2, entries)
    query = table[:, :per_group].reshape(dims.heads, entries)
    return ((Dim.QUERY, query), (Dim.KEY_VALUE, table[:, per_group]), (Dim.KEY_VALUE, table[:, per_group + 1]))


def vectors(tensor: Tensor, axes: tuple[Axis | Fused, ...], dims: Dims, dim: Dim) -> list[Tensor]:
    """What a stored tensor says about each unit of `dim`: one (U, f) for every part of an axis that has it."""
    found = []
    for number, axis in enumerate(axes):
        for part, table in places(axis, dims, tensor.shape[number]):
            if part is dim:
                moved = tensor.movedim(number, 0)  # (entries, ...)
                found.append(moved[table.reshape(-1)].reshape(len(table), -1))
    return found


def reordered(tensor: Tensor, axes: tuple[Axis | Fused, ...], dims: Dims, orders: Orders) -> Tensor:
    """The tensor with unit `orders[dim][u]` at the place of unit u, on every axis that has the dimension."""
    for number, axis in enumerate(axes):
        index = torch.arange(tensor.shape[number])
        for dim, table in places(axis, dims, tensor.shape[number]):
            if dim in orders:
                index[table] = table[orders[dim]]
        if not torch.equal(index, torch.arange(tensor.shape[number])):
            tensor = tensor.index_select(number, index)
    return tensor
