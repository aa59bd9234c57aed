"""A tensor's axis maps, put together from how its axes grow.

Owns heads (units of head size), fused axes and their offsets. Must not know roles or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from engine.errors import EngineError
from engine.expansion.axes import Axis, Dim, Dims, Fused, Side
from engine.expansion.growth import AxisGrowth
from engine.expansion.maps import AxisMap, Fill, Run, cut, identity, merged, shifted, widened

Growths = Mapping[Dim, AxisGrowth]
_HEADS = (Dim.QUERY, Dim.KEY_VALUE)


def axis_map(axis: Axis | Fused, growths: Growths, before: Dims, after: Dims, extent: int) -> AxisMap:
    """The map of one stored axis of `extent` old entries. Raises EngineError `expansion.shape` for another extent."""
    wanted = old_extent(axis, before)
    if wanted and wanted != extent:
        raise EngineError(
            "expansion.shape",
            f"An axis has {extent} entries where the config's sizes give {wanted}.",
            cause="The weights and config.json do not belong together.",
            next_step="Download the model again.",
        )
    if isinstance(axis, Fused):
        return _fused(axis, growths, before, after)
    if axis.dim in (Dim.VOCAB, Dim.FIXED):
        return identity(extent)
    return widened(_units(axis, growths), _entries_per_unit(axis, before))


def old_extent(axis: Axis | Fused, dims: Dims) -> int:
    """Entries of a stored axis for a model of `dims`; 0 where only the file knows."""
    if isinstance(axis, Fused):
        return sum(old_extent(part, dims) for part in axis.parts)
    if axis.dim in (Dim.VOCAB, Dim.FIXED):
        return 0
    return dims.of(axis.dim) * _entries_per_unit(axis, dims)


def _entries_per_unit(axis: Axis, dims: Dims) -> int:
    return dims.head_dim if axis.dim in _HEADS and axis.per_head else 1


def _units(axis: Axis, growths: Growths) -> AxisMap:
    growth = growths[axis.dim]
    return {Side.OUT: growth.out, Side.IN: growth.into, Side.ALONG: growth.along}[axis.side]


def _fused(axis: Fused, growths: Growths, before: Dims, after: Dims) -> AxisMap:
    if axis.order == "interleaved":
        first = axis.parts[0]
        return widened(_units(first, growths), len(axis.parts))
    if axis.order == "grouped":
        return _grouped(axis, growths, before, after)
    runs: list[Run] = []
    offset = 0
    for part in axis.parts:
        runs.extend(shifted(widened(_units(part, growths), _entries_per_unit(part, before)), offset))
        offset += old_extent(part, before)
    return merged(runs)


def _grouped(axis: Fused, growths: Growths, before: Dims, after: Dims) -> AxisMap:
    """For every key/value head: its query heads, the key head, the value head, one head size of rows each."""
    query, key_value = (_units(part, growths) for part in axis.parts[:2])
    old_per_group, new_per_group = before.heads // before.kv_heads, after.heads // after.kv_heads
    entries = _entries_per_unit(axis.parts[0], before)
    stride = old_per_group + 2
    runs: list[Run] = []
    for group in range(after.kv_heads):
        for run in cut(query, group * new_per_group, (group + 1) * new_per_group):
            runs.extend(_placed(run, lambda head: _slot(head // old_per_group, stride, head % old_per_group)))
        head_of_group = cut(key_value, group, group + 1)
        for place in (old_per_group, old_per_group + 1):
            for run in head_of_group:
                runs.extend(_placed(run, partial(_slot, stride=stride, place=place)))
    return merged(widened(tuple(runs), entries))


def _slot(group: int, stride: int, place: int) -> int:
    return group * stride + place


def _placed(run: Run, place: Callable[[int], int]) -> list[Run]:
    """A run of heads as runs of one, each at its stored place."""
    if run.fill is not Fill.COPY:
        return [run]
    return [replace(run, count=1, start=place(run.start + index)) for index in range(run.count)]
