"""What of a model can grow: `scaler-wizard inspect`'s `expansion`, axis by axis, with the reason where nothing can.

Owns the words. Must not know plans or files beyond names of tensors. Everything comes from the layout, so that what is
promised here is what `plan_for` and the recipes accept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import EngineError
from engine.expansion.config_keys import refuse_unknown_keys
from engine.expansion.config_mixture import TARGETS, mixture_obstacle
from engine.expansion.layout import Layout
from engine.expansion.layouts import layout_for
from engine.expansion.operators import DEFAULTS, LAYERS, OPERATORS
from engine.expansion.packed import (
    ONLY_DEPTH,
    STAYS_PACKED,
    depth_only,
    quantisation,
    refuse_quantised,
    weight_of,
)
from engine.expansion.shape_rules import FIELDS
from engine.models.headers import read_headers
from engine.models.source import ModelRef

AXES = ("hidden", "ffn", "heads", "kv_heads", "depth", "experts")


@dataclass(frozen=True, slots=True)
class AxisSupport:
    """One axis of one model."""

    supported: bool
    exact: bool
    """Whether the operator used when nothing is said keeps the function."""
    constraint: str = ""
    """Which sizes are possible, in words."""
    reason: str = ""
    """Why it is not supported, or what exactness hangs on."""


@dataclass(frozen=True, slots=True)
class ExpansionSupport:
    """Every axis; attribute names are the keys of `inspect --json`."""

    hidden: AxisSupport
    ffn: AxisSupport
    heads: AxisSupport
    kv_heads: AxisSupport
    depth: AxisSupport
    experts: AxisSupport

    @property
    def refused(self) -> str:
        """The reason when nothing can grow; ""."""
        axes = [getattr(self, axis) for axis in AXES]
        reasons = {axis.reason for axis in axes}
        return axes[0].reason if not any(axis.supported for axis in axes) and len(reasons) == 1 else ""


def expansion_support(config: Mapping[str, Any], name: str, tensors: Iterable[str] | None = None) -> ExpansionSupport:
    """What can grow of the model with this config and, where files were read, these tensor names."""
    try:
        layout = supported_layout(config, name, tensors)
    except EngineError as error:
        reason = " ".join(part for part in (error.what, error.cause) if part)
        none = AxisSupport(False, False, reason=reason)
        return ExpansionSupport(none, none, none, none, none, none)
    axes = {axis: _axis(layout, axis, config) for axis in AXES}
    if quantisation(config) and axes["depth"].supported:
        axes["depth"] = replace(axes["depth"], constraint=ONLY_DEPTH, reason=STAYS_PACKED)
    return ExpansionSupport(**axes)


def support_of(ref: ModelRef) -> ExpansionSupport:
    """What can grow of a model that was found: by its config, and by the names of its tensors where files are here."""
    tensors = None
    if ref.path is not None and ref.has_weights:
        tensors = tuple(tensor.name for tensor in read_headers(ref.path).tensors)
    return expansion_support(ref.config, ref.name, tensors)


def supported_layout(config: Mapping[str, Any], name: str, tensors: Iterable[str] | None = None) -> Layout:
    """The model's layout, when everything about it is understood; of packed weights, with depth alone to grow.

    Raises EngineError `expansion.family`, `expansion.trait`, `expansion.quantised`, `expansion.tensor`, `model.*`.
    """
    refuse_quantised(config, name)
    layout = layout_for(config, name)
    refuse_unknown_keys(config, layout, name)
    packed = bool(quantisation(config))
    names = dict.fromkeys(tensors or ())
    for tensor in names:
        known = weight_of(tensor, names)[0] if packed else tensor
        if layout.find(known) is None and not layout.is_ignored(tensor):
            raise EngineError(
                "expansion.tensor",
                f"{name} cannot be expanded.",
                cause=f"It stores '{tensor[:80]}', and no rule says what that is in a {layout.family} model.",
                next_step="Remove what was added to the model, or train it as it is.",
            )
    return depth_only(layout) if packed else layout


def _axis(layout: Layout, axis: str, config: Mapping[str, Any]) -> AxisSupport:
    field = next(name for name, key in FIELDS.items() if key == axis)
    reason = layout.unsupported.get(axis) or layout.unsupported.get(field)
    if reason:
        return AxisSupport(
            False, False, reason=f"{reason[:1].upper()}{reason[1:]}{'' if reason.endswith('.') else '.'}"
        )
    match axis:
        case "hidden":
            return AxisSupport(True, True, _hidden(layout))
        case "ffn":
            return _ffn(layout)
        case "heads":
            return _heads(layout)
        case "kv_heads":
            return _key_value_heads(layout)
        case "depth":
            return _depth(layout)
        case _:
            return _experts(layout, config)


def _hidden(layout: Layout) -> str:
    dims, traits = layout.dims, layout.traits
    if dims.heads and not traits.head_dim_key:
        return f"together with heads: multiples of the head size {dims.head_dim}, which must stay"
    if traits.heads_divide_hidden:
        return "multiples of the number of heads, which may grow with it; multiples of 256 suit other programs"
    return "any; multiples of 256 suit other programs"


def _ffn(layout: Layout) -> AxisSupport:
    if not (layout.dims.ffn or layout.dims.expert_ffn):
        return AxisSupport(False, False, reason="The model has no feed-forward network of its own.")
    what = "of every expert: " if layout.dims.experts else ""
    return AxisSupport(True, True, f"{what}any; multiples of 256 suit other programs")


def _heads(layout: Layout) -> AxisSupport:
    dims, traits = layout.dims, layout.traits
    if not dims.heads:
        return AxisSupport(False, False, reason="The model has no attention heads.")
    if not traits.head_dim_key:
        return AxisSupport(True, True, f"together with hidden: hidden / {dims.head_dim}")
    words = "any number, each with its own key and value" if traits.key_value_follows else _groups(dims.kv_heads)
    return AxisSupport(True, True, words + (", a divisor of hidden" if traits.heads_divide_hidden else ""))


def _groups(groups: int) -> str:
    return "any number" if groups == 1 else f"multiples of the {groups} key/value heads"


def _key_value_heads(layout: Layout) -> AxisSupport:
    dims, traits = layout.dims, layout.traits
    if not dims.kv_heads or (traits.key_value_follows and not traits.head_dim_key):
        return AxisSupport(True, True, "as many as heads") if dims.heads else _heads(layout)
    if traits.key_value_follows:
        return AxisSupport(True, True, "as many as heads")
    group = dims.heads // dims.kv_heads
    return AxisSupport(
        True, True, f"new ones with {group} query head{'s' if group > 1 else ''} each, or each one replicated"
    )


def _depth(layout: Layout) -> AxisSupport:
    period = layout.traits.layer_period
    exact = OPERATORS[DEFAULTS[LAYERS]].exact == "always"
    words = "any number"
    if period > 1:
        words += f"; whole periods of {period} suit programs that derive a layer's kind from its number"
    return AxisSupport(True, exact, words)


def _experts(layout: Layout, config: Mapping[str, Any]) -> AxisSupport:
    dims = layout.dims
    if dims.experts:
        return AxisSupport(True, True, f"whole multiples of {dims.experts}, experts per token multiplied alike")
    obstacle = mixture_obstacle(config, layout)
    if obstacle:
        return AxisSupport(False, False, reason=f"{obstacle[:1].upper()}{obstacle[1:]}.")
    why = "Exact because the router's weights sum to 1 over the chosen experts."
    return AxisSupport(True, True, f"2 or more, as a {TARGETS[layout.family]} model", why)
