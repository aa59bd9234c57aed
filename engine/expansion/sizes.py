"""How large a model of given sizes is: parameters, bytes on disk, bytes of KV cache per token.

Owns the arithmetic over a layout's rules. Must not know which sizes are wanted, nor what a parameter costs to train.

    parameters = sum over rules of (layers that store it) x (experts, where one tensor each) x product of its axes
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from engine.expansion.axes import Axis, Dim, Dims, Fused, Role
from engine.expansion.config_layers import mixture_layers
from engine.expansion.layout import Layout, Rule
from engine.expansion.plan import ExpansionPlan

KV_CACHE_BYTES_PER_VALUE = 2
"""Caches are kept in 16 bits."""
_HEADS = (Dim.QUERY, Dim.KEY_VALUE)
_COUNTED: tuple[Dim, ...] = tuple(dim for dim in Dim if dim not in (Dim.FIXED, Dim.VOCAB))
_MIXTURE = (Dim.EXPERT, Dim.EXPERT_FFN, Dim.SHARED_FFN)
_MIXTURE_NAMES = re.compile(r"expert|router|\.gate\.(weight|bias)$")


@dataclass(frozen=True, slots=True)
class Holding:
    """One rule and where the source stores it."""

    rule: Rule
    layers: frozenset[int] | None
    """Source layers that have it; None for a tensor outside the layers."""
    extents: tuple[int, ...]
    """Old entries per axis: what a fixed axis keeps."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything a checkpoint holds, rule by rule."""

    layout: Layout
    holdings: tuple[Holding, ...]

    def parameters(self, dims: Dims, bases: Sequence[int] | None = None) -> int:
        """Parameters of a model of `dims` whose layers are copies of the source's layers `bases` (all, in order).

        A tied head counts once. Stored buffers do not count.
        """
        order = tuple(range(self.layout.dims.layers)) if bases is None else tuple(bases)
        units = _units(dims)
        return sum(_count(holding, units, dims.head_dim, order) for holding in self.holdings)


def _count(holding: Holding, units: Mapping[Dim, int], head_dim: int, order: tuple[int, ...]) -> int:
    copies: int = 1 if holding.layers is None else _copies(holding.layers, order)
    if "{e}" in holding.rule.pattern:
        copies *= units[Dim.EXPERT]
    if holding.rule.counted is not None:
        copies *= units[holding.rule.counted]
    for axis, old in zip(holding.rule.axes, holding.extents, strict=True):
        copies *= _extent(axis, units, head_dim, old)
    return copies


@lru_cache(maxsize=1024)
def _copies(held: frozenset[int], order: tuple[int, ...]) -> int:
    return sum(1 for base in order if base in held)


def axis_extent(axis: Axis | Fused, dims: Dims, old: int) -> int:
    """Entries of an axis in a model of `dims`; `old` where growth does not touch it."""
    return _extent(axis, _units(dims), dims.head_dim, old)


def _units(dims: Dims) -> dict[Dim, int]:
    return {dim: dims.of(dim) for dim in _COUNTED}


def _extent(axis: Axis | Fused, units: Mapping[Dim, int], head_dim: int, old: int) -> int:
    if isinstance(axis, Fused):
        return sum(_extent(part, units, head_dim, old) for part in axis.parts)
    if axis.dim not in units:
        return old
    return units[axis.dim] * (head_dim if axis.per_head and axis.dim in _HEADS else 1)


def stored_inventory(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> Inventory:
    """What the checkpoint with these tensor shapes holds; exact. Tensors that no rule knows are left out."""
    layers: dict[str, set[int]] = {}
    found: dict[str, tuple[Rule, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        match = layout.find(name)
        if match is None or len(match.rule.axes) != len(shape):
            continue
        pattern = match.rule.pattern
        found.setdefault(pattern, (match.rule, shape))
        if match.layer is not None:
            layers.setdefault(pattern, set()).add(match.layer)
    return Inventory(
        layout,
        tuple(
            Holding(rule, frozenset(layers[pattern]) if pattern in layers else None, shape)
            for pattern, (rule, shape) in found.items()
            if not _twice(rule, layout)
        ),
    )


def config_inventory(layout: Layout, config: Mapping[str, Any]) -> Inventory:
    """What a checkpoint with this config holds, when no file can be looked at."""
    dims = layout.dims
    sparse = frozenset(i for i, mixed in enumerate(mixture_layers(config, layout)) if mixed)
    every = frozenset(range(dims.layers))
    holdings = []
    for rule in layout.rules:
        if rule.alias or _twice(rule, layout):
            continue
        held = every
        if dims.experts and _of_mixture(rule):
            held = sparse
        elif dims.experts and _has(rule, (Dim.FFN,)):
            held = every - sparse
        extents = tuple(axis_extent(axis, dims, _fixed(axis, dims, config, rule)) for axis in rule.axes)
        holdings.append(Holding(rule, held if "{i}" in rule.pattern else None, extents))
    return Inventory(layout, tuple(holdings))


def _twice(rule: Rule, layout: Layout) -> bool:
    """A tied head that a file stores, or might, beside the embedding: the same parameters again."""
    if not layout.traits.tied or len(rule.axes) != 2 or not isinstance(rule.axes[0], Axis):
        return False
    first = next(one for one in layout.rules if _has(one, (Dim.VOCAB,)) and len(one.axes) == 2)
    return rule.axes[0].dim is Dim.VOCAB and rule.pattern not in (
        first.pattern,
        first.pattern.removeprefix(layout.optional_prefix),
    )


def _of_mixture(rule: Rule) -> bool:
    return _has(rule, _MIXTURE) or "{e}" in rule.pattern or _MIXTURE_NAMES.search(rule.pattern) is not None


def _has(rule: Rule, dims: tuple[Dim, ...]) -> bool:
    axes = [part for axis in rule.axes for part in (axis.parts if isinstance(axis, Fused) else (axis,))]
    return any(axis.dim in dims for axis in axes)


def _fixed(axis: Axis | Fused, dims: Dims, config: Mapping[str, Any], rule: Rule) -> int:
    """Entries of an axis that growth does not touch, as far as a config says."""
    if isinstance(axis, Fused) or axis.dim is not Dim.FIXED:
        return dims.vocab
    if any(name in rule.pattern for name in ("shared_expert_gate", "act_fn", "correction_bias")):
        return 1
    if rule.role is Role.POSITIONS:
        return _positions(config)
    return dims.head_dim


def _positions(config: Mapping[str, Any]) -> int:
    """Rows of a learned position table; two families keep rows for padding before the first position."""
    offset = 2 if config.get("model_type") in ("opt", "biogpt") else 0
    for key in ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len"):
        if isinstance(config.get(key), int):
            return int(config[key]) + offset
    return 0


def plan_bases(plan: ExpansionPlan) -> tuple[int, ...]:
    """Source layer of each layer of the larger model."""
    return tuple(layer.base for layer in plan.layer_sources)


def plan_parameters(inventory: Inventory, plan: ExpansionPlan) -> int:
    """Parameters after the plan, for plans that keep the family; see `upcycled_parameters` for those that do not."""
    if plan.target_family:
        return upcycled_parameters(inventory, plan)
    return inventory.parameters(plan.after, plan_bases(plan))


def upcycled_parameters(inventory: Inventory, plan: ExpansionPlan) -> int:
    """The dense model grown to `plan.after`, its feed-forward networks once per expert, and a router per layer.

    Rules with a feed-forward axis are the experts' matrices; the router has experts x hidden weights.
    """
    after, bases = plan.after, plan_bases(plan)
    width = after.expert_ffn or after.ffn
    total = 0
    for holding in inventory.holdings:
        one = Inventory(inventory.layout, (holding,)).parameters(after.with_units(Dim.FFN, width), bases)
        total += one * (after.experts if _has(holding.rule, (Dim.FFN,)) else 1)
    return total + len(bases) * after.experts * after.hidden


def kv_cache_bytes_per_token(dims: Dims) -> int:
    """2 x key/value heads x head size x layers x 2 B: keys and values of one token in 16 bits, no window considered."""
    return 2 * dims.kv_heads * dims.head_dim * dims.layers * KV_CACHE_BYTES_PER_VALUE


DTYPE_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def disk_bytes(parameters: int, dtype: str) -> int:
    """Bytes of the weights in one type ("BF16", "bfloat16"); headers and float32 gains are below a thousandth of it."""
    return parameters * DTYPE_BYTES.get(dtype, 2)


def dominant_dtype(dtypes: Iterable[tuple[str, int]]) -> str:
    """The stored type that most bytes are in, from (dtype, bytes) pairs; "" when there are none."""
    totals: dict[str, int] = {}
    for dtype, count in dtypes:
        totals[dtype] = totals.get(dtype, 0) + count
    return max(totals, key=lambda name: totals[name]) if totals else ""
