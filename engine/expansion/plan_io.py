"""The expansion plan as a JSON tree, as certificates and staging folders keep it.

Owns writing and the checks on reading. Must not know files. Keys are the plan's own field names; they are only added,
never renamed, and an unknown one is refused: it may change bytes that this program would not reproduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import msgspec

from engine.errors import EngineError
from engine.expansion.axes import Dims
from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.plan import ExpansionPlan

DTYPES = ("", "bfloat16", "float16", "float32")
SEED_BITS = 63


def plan_tree(plan: ExpansionPlan) -> dict[str, Any]:
    """The plan as JSON builtins: every field present, layers without their default values."""
    tree: dict[str, Any] = msgspec.to_builtins(plan)
    tree["layers"] = [_layer_tree(layer) for layer in plan.layers]
    return tree


def plan_from_tree(tree: Mapping[str, Any]) -> ExpansionPlan:
    """The plan in a JSON tree. Raises EngineError `expansion.plan_damaged` when it is none, or contradicts itself."""
    try:
        _refuse_unknown(tree, ExpansionPlan, "plan")
        for name in ("before", "after"):
            _refuse_unknown(tree.get(name), Dims, name)
        for layer in _items(tree.get("layers")):
            _refuse_unknown(layer, LayerSource, "layer")
        plan = msgspec.convert(tree, ExpansionPlan)
    except msgspec.ValidationError as error:
        raise _damaged(str(error)) from error
    _check(plan)
    return plan


def encode_plan(plan: ExpansionPlan) -> bytes:
    """The plan as JSON text; equal plans give equal bytes."""
    return msgspec.json.encode(plan_tree(plan), order="sorted")


def decode_plan(text: bytes | str) -> ExpansionPlan:
    """The plan in JSON text. Raises EngineError `expansion.plan_damaged`."""
    try:
        tree = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise _damaged(str(error)) from error
    if not isinstance(tree, dict):
        raise _damaged("it is not a JSON object")
    return plan_from_tree(tree)


def _layer_tree(layer: LayerSource) -> dict[str, Any]:
    plain = LayerSource(layer.base)
    return {"base": layer.base} | {
        item.name: msgspec.to_builtins(getattr(layer, item.name))
        for item in fields(LayerSource)
        if getattr(layer, item.name) != getattr(plain, item.name)
    }


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _refuse_unknown(tree: object, kind: type, what: str) -> None:
    if not isinstance(tree, Mapping):
        raise msgspec.ValidationError(f"the {what} is not an object")
    known = {item.name for item in fields(kind)}
    unknown = sorted(str(key) for key in tree if key not in known)
    if unknown:
        raise msgspec.ValidationError(f"the {what} has an unknown key '{unknown[0][:40]}'")


def _check(plan: ExpansionPlan) -> None:
    """What types cannot say."""
    for name, dims in (("before", plan.before), ("after", plan.after)):
        for item in fields(Dims):
            value = getattr(dims, item.name)
            if type(value) is not int or value < 0:
                raise _damaged(f"{name}.{item.name} is {value!r}, not a count")
    if plan.layers and len(plan.layers) != plan.after.layers:
        raise _damaged(f"it lists {len(plan.layers)} layers where the larger model has {plan.after.layers}")
    if not plan.layers and plan.after.layers != plan.before.layers:
        raise _damaged("the number of layers changes but the layers are not listed")
    for position, layer in enumerate(plan.layers):
        _check_layer(position, layer, plan.before.layers)
    if plan.dtype not in DTYPES:
        raise _damaged(f"the dtype '{plan.dtype[:40]}' is unknown")
    if not 0 <= plan.seed < 1 << SEED_BITS:
        raise _damaged(f"the seed {plan.seed} is not between 0 and 2^{SEED_BITS}")


def _check_layer(position: int, layer: LayerSource, count: int) -> None:
    if not 0 <= layer.base < count:
        raise _damaged(f"layer {position} is made from layer {layer.base} of {count}")
    if layer.kind in (LayerKind.BLEND, LayerKind.MADE) and not 0 <= layer.other < count:
        raise _damaged(f"layer {position} has layer {layer.other} of {count} as its second neighbour")
    if not 0.0 <= layer.weight <= 1.0:
        raise _damaged(f"layer {position} has a weight of {layer.weight}")


def _damaged(cause: str) -> EngineError:
    return EngineError(
        "expansion.plan_damaged",
        "The expansion plan cannot be read.",
        cause=f"{cause[0].upper()}{cause[1:]}." if cause else "",
        next_step="Plan the expansion again; if a newer program wrote the plan, use that program.",
    )
