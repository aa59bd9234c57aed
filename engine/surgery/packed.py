"""Depth growth of bitsandbytes models whose copied blocks stay packed.

Owns how a packed block is closed. Must not know plans beyond their layers, nor which plans are possible
(`engine.expansion.packed`). A packed number stands for code x scale, so a block writes exactly nothing when its scales
are zero:

    4 bit              code[byte half] x absmax[block]                                     absmax <- 0
    4 bit, twice       absmax = nested_code[byte] x nested_absmax[block] + nested_offset   both <- 0
    8 bit              byte x SCB[row] / 127                                               SCB <- 0

Everything else is copied as it is. Other changes would have to round the packed numbers once more and are refused, as
are other formats: GPTQ and AWQ keep packed zero points and half-precision scales that their kernels repack on loading.
Source: derived from bitsandbytes' dequantisation (functional.py, `dequantize_4bit`, `dequantize_blockwise`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from engine.errors import EngineError
from engine.expansion.growth import LayerSource
from engine.expansion.layout import Layout, Match
from engine.expansion.maps import identity
from engine.expansion.packed import weight_of
from engine.expansion.plan import ExpansionPlan
from engine.expansion.recipe import Recipe, Source
from engine.models.headers import Headers, TensorHeader
from engine.surgery.reader import TensorReader

_SCALES = ("nested_absmax", "SCB")


@dataclass(frozen=True, slots=True)
class PackedGrowth:
    """What growing a packed model takes."""

    recipes: tuple[Recipe, ...]
    literals: Mapping[str, bytes]
    """Rewritten quantisation states."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A stored tensor: the weight it belongs to and what of it it is ("" for the weight itself)."""

    header: TensorHeader
    match: Match
    what: str


def packed_growth(headers: Headers, layout: Layout, plan: ExpansionPlan, reader: TensorReader | None) -> PackedGrowth:
    """Recipes for every stored tensor, packed or not. Without a reader the rewritten states are left out of the
    literals: their names, sizes and recipes are the same. Raises EngineError `expansion.tensor`."""
    names = {tensor.name for tensor in headers.tensors}
    outside: list[Recipe] = []
    by_layer: dict[int, list[_Part]] = {}
    for header in headers.tensors:
        part = _part(header, layout, names)
        if part is None:
            continue
        if part.match.layer is None:
            outside.append(_copy(header, header.name))
        else:
            by_layer.setdefault(part.match.layer, []).append(part)
    recipes: list[Recipe] = []
    literals: dict[str, bytes] = {}
    closing = -1.0 if layout.traits.norm.endswith("+1") else 0.0
    for number, layer in enumerate(plan.layer_sources):
        for part in by_layer.get(layer.base, ()):
            recipe = _layer_recipe(part, layer, number, closing)
            recipes.append(recipe)
            if _is_state(part) and layer.closed and part.match.rule.closes and reader is not None:
                literals[recipe.name] = without_offset(reader.read_all(part.header))
    return PackedGrowth((*outside, *recipes), literals)


def without_offset(state: bytes) -> bytes:
    """A quantisation state (JSON) whose nested offset is zero; as long as before, because JSON allows blanks."""
    tree: Any = msgspec.json.decode(state)
    if not isinstance(tree, dict) or not tree.get("nested_offset"):
        return state
    text = msgspec.json.encode(tree | {"nested_offset": 0.0})
    return text.ljust(len(state))


def _part(header: TensorHeader, layout: Layout, names: Collection[str]) -> _Part | None:
    weight, what = weight_of(header.name, names)
    match = layout.find(weight)
    if match is not None:
        return _Part(header, match, what)
    if layout.is_ignored(header.name):
        return None
    raise EngineError(
        "expansion.tensor",
        f"'{header.name[:80]}' is not part of a packed {layout.family} model as this program knows it.",
        cause="Growing a model with a tensor whose meaning is unknown would be a guess.",
        next_step="Grow the original 16-bit model and quantise the result.",
    )


def _layer_recipe(part: _Part, layer: LayerSource, number: int, closing: float) -> Recipe:
    recipe = _copy(part.header, _renumbered(part.header.name, part.match, number))
    recipe = replace(recipe, new=layer.new, operators=("identity",) if layer.new else ())
    if not (layer.closed and part.match.rule.closes):
        return recipe
    if part.what in _SCALES or (part.what == "absmax" and part.header.dtype == "F32"):
        return replace(recipe, sources=(), constant=0.0)
    if _is_state(part):
        return replace(recipe, sources=())
    if not part.what and part.header.dtype in ("F16", "BF16", "F32"):
        return replace(recipe, sources=(), constant=closing)
    return recipe


def _is_state(part: _Part) -> bool:
    return part.what.startswith("quant_state.")


def _copy(header: TensorHeader, name: str) -> Recipe:
    maps = tuple(identity(extent) for extent in header.shape)
    return Recipe(name, header.shape, header.dtype, (Source(header.name),), maps)


def _renumbered(name: str, match: Match, number: int) -> str:
    before, _, after = match.rule.pattern.partition("{i}")
    head = name[: len(before)]
    rest = name[len(before) :].removeprefix(str(match.layer))
    if not after or head != before:
        raise EngineError("expansion.tensor", f"'{name[:80]}' has no layer number where its rule expects one.")
    return f"{before}{number}{rest}"
