"""The larger model's `config.json`, from the smaller one's and the plan.

Owns which keys change and how. Must not know tensors or files. What a loader would derive from other sizes (head size,
a feed-forward width of four times hidden) is written out, because the derivation no longer holds; what it would not
read any more is not left behind to mislead. Everything else is carried over as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from engine.errors import EngineError
from engine.expansion.axes import Dims
from engine.expansion.config_layers import splice_layers
from engine.expansion.config_mixture import as_mixture
from engine.expansion.growth import StreamScales
from engine.expansion.layout import Layout
from engine.expansion.plan import ExpansionPlan

DTYPE_KEYS = ("dtype", "torch_dtype")


def config_after(
    config: Mapping[str, Any],
    layout: Layout,
    plan: ExpansionPlan,
    scales: StreamScales,
    *,
    stored_dtype: str = "",
) -> dict[str, Any]:
    """The config of the model that `plan` makes of the one with `config`.

    `stored_dtype` ("bfloat16") is written where the config names none: rescaled gains may be stored in float32, and a
    loader that looks at the first tensor would take that for the whole model's type.
    Raises EngineError `expansion.config` when a change cannot be expressed in the family's config.
    """
    tree = copy.deepcopy(dict(config))
    if not changes_shape(plan) and scales.epsilon_factor == 1.0:
        return _with_dtype(tree, plan.dtype, "")
    if plan.target_family:
        as_mixture(tree, layout, plan)
    else:
        write_sizes(tree, layout, plan)
    _write_epsilon(tree, layout, scales.epsilon_factor)
    splice_layers(tree, layout, plan)
    return _with_dtype(tree, plan.dtype, stored_dtype)


def changes_shape(plan: ExpansionPlan) -> bool:
    """Whether sizes, layers or family differ from the source's."""
    return plan.before != plan.after or bool(plan.layers) or bool(plan.target_family)


def write_sizes(tree: dict[str, Any], layout: Layout, plan: ExpansionPlan) -> None:
    """Every size under the family's keys, also those that did not change and were left to a default."""
    _check_head_size(layout, plan.after)
    for item in fields(Dims):
        value = getattr(plan.after, item.name)
        changed = value != getattr(plan.before, item.name)
        keys = layout.config_keys.get(item.name, ())
        if item.name == "head_dim":
            keys = (keys or ("head_dim",)) if layout.traits.head_dim_key else tuple(key for key in keys if key in tree)
        elif changed and not keys:
            raise _inexpressible(layout, f"no config key holds its {item.name}", f"Leave {item.name} as it is.")
        if keys and (value or changed):
            for key in [key for key in keys if key in tree] or keys[:1]:
                tree[key] = value


def _check_head_size(layout: Layout, after: Dims) -> None:
    if layout.traits.head_dim_key or not after.heads or after.hidden == after.heads * after.head_dim:
        return
    hidden = after.heads * after.head_dim
    raise _inexpressible(
        layout,
        f"its head size is always hidden / heads, and {after.hidden:,} / {after.heads} is not {after.head_dim}",
        f"Use hidden {hidden:,} with {after.heads} heads.",
    )


def _write_epsilon(tree: dict[str, Any], layout: Layout, factor: float) -> None:
    """Epsilon keys times `factor`; a key that was left to its default is written."""
    if factor == 1.0 or not layout.epsilon_keys:
        return
    for key in [key for key in layout.epsilon_keys if tree.get(key) is not None] or layout.epsilon_keys[:1]:
        value = tree.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            value = layout.epsilon
        tree[key] = value * factor


def _with_dtype(tree: dict[str, Any], wanted: str, stored: str) -> dict[str, Any]:
    present = [key for key in DTYPE_KEYS if tree.get(key) is not None]
    if wanted:
        for key in present or DTYPE_KEYS[:1]:
            tree[key] = wanted
    elif stored and not present:
        tree[DTYPE_KEYS[0]] = stored
    return tree


def _inexpressible(layout: Layout, cause: str, next_step: str) -> EngineError:
    return EngineError(
        "expansion.config",
        f"The config of a {layout.family} model cannot describe this growth.",
        cause=f"{cause[0].upper()}{cause[1:]}.",
        next_step=next_step,
    )
