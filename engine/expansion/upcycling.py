"""Recipes of a mixture of experts made from a dense model: its feed-forward tensors once per expert, and routers.

Owns the names on the other side and which part of an expert is drawn anew. Must not know how the dense recipes were
made: they may already carry widths, layers and stream scales of a hybrid plan, and every expert gets them alike.

    mlp.gate_proj  ->  experts.0.w1, experts.1.w1, ...        and  gate (E x hidden, drawn)
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from engine.errors import EngineError
from engine.expansion.axes import Axis, Dim
from engine.expansion.layout import Layout, Match
from engine.expansion.maps import AxisMap, Fill, Run, cut, length, merged
from engine.expansion.operators.experts_upcycle import DROP_UPCYCLE, UPCYCLE
from engine.expansion.plan import ExpansionPlan
from engine.expansion.recipe import Recipe

DROPPED_SHARE = 0.5
BLOCKS = 32
"""Units are drawn anew in whole blocks: scattered single units would make a file's recipe thousands of runs long."""
LAYER = "model.layers.{i}."


@dataclass(frozen=True, slots=True)
class MixtureNames:
    """What the larger model calls its tensors."""

    router: str
    experts: Mapping[str, str]
    """Dense rule's pattern -> pattern with {e}."""


def _names(router: str, experts: str, names: tuple[str, str, str]) -> MixtureNames:
    dense = ("gate_proj", "up_proj", "down_proj")
    patterns = {
        f"{LAYER}mlp.{old}.weight": f"{LAYER}{experts}.{{e}}.{new}.weight"
        for old, new in zip(dense, names, strict=True)
    }
    return MixtureNames(f"{LAYER}{router}.weight", patterns)


NAMES: Mapping[str, MixtureNames] = {
    "mixtral": _names("block_sparse_moe.gate", "block_sparse_moe.experts", ("w1", "w3", "w2")),
    "qwen3_moe": _names("mlp.gate", "mlp.experts", ("gate_proj", "up_proj", "down_proj")),
}


def upcycled_recipes(
    recipes: Iterable[Recipe], layout: Layout, plan: ExpansionPlan, fresh_std: float
) -> tuple[Recipe, ...]:
    """The dense model's recipes as those of `plan.target_family`; `layout` is the dense one.

    Expert 0 is the old network where the operator keeps it; the others and the routers are new.
    Raises EngineError `expansion.upcycle` for a feed-forward tensor that experts cannot have.
    """
    names = NAMES.get(plan.target_family)
    if names is None:
        raise EngineError(
            "expansion.upcycle",
            f"No {layout.family} model can be turned into '{plan.target_family[:40]}'.",
            next_step=f"Mixtures this program makes: {', '.join(sorted(NAMES))}.",
        )
    result: list[Recipe] = []
    for recipe in recipes:
        match = layout.find(recipe.name)
        if match is None or match.layer is None or not _is_feed_forward(match):
            result.append(recipe)
            continue
        pattern = names.experts.get(match.rule.pattern)
        if pattern is None:
            raise EngineError(
                "expansion.upcycle",
                f"'{recipe.name[:80]}' has no place in a mixture of experts.",
                cause=f"Experts of {plan.target_family} have three matrices and no biases.",
                next_step="Grow the feed-forward width instead.",
            )
        if recipe.name.endswith("gate_proj.weight"):
            result.append(_router(names, match.layer, recipe.dtype, plan, fresh_std))
        result.extend(_expert(recipe, match, pattern, expert, plan) for expert in range(plan.after.experts))
    return tuple(result)


def _is_feed_forward(match: Match) -> bool:
    name = match.rule.pattern
    return ".mlp." in name or any(isinstance(axis, Axis) and axis.dim is Dim.FFN for axis in match.rule.axes)


def _router(names: MixtureNames, layer: int, dtype: str, plan: ExpansionPlan, fresh_std: float) -> Recipe:
    shape = (plan.after.experts, plan.after.hidden)
    return Recipe(
        name=names.router.replace("{i}", str(layer)),
        shape=shape,
        dtype=dtype,
        sources=(),
        maps=tuple((Run(Fill.FREE, extent, new=True),) for extent in shape),
        fresh_std=fresh_std,
        new=True,
        operators=(_operator(plan),),
    )


def _expert(recipe: Recipe, match: Match, pattern: str, expert: int, plan: ExpansionPlan) -> Recipe:
    operator = _operator(plan)
    made = replace(
        recipe,
        name=pattern.replace("{i}", str(match.layer)).replace("{e}", str(expert)),
        new=recipe.new or expert > 0,
        operators=(*recipe.operators, operator),
    )
    if operator != DROP_UPCYCLE.name or recipe.constant is not None:
        return made
    maps = tuple(
        _partly_drawn(axis, f"{plan.seed}|{match.layer}|{expert}") if _is_units(stored) else axis
        for axis, stored in zip(recipe.maps, match.rule.axes, strict=True)
    )
    return replace(made, maps=maps)


def _operator(plan: ExpansionPlan) -> str:
    return plan.operator_for(Dim.EXPERT) or UPCYCLE.name


def _is_units(stored: object) -> bool:
    return isinstance(stored, Axis) and stored.dim is Dim.FFN


def _partly_drawn(axis: AxisMap, key: str) -> AxisMap:
    """The map with `DROPPED_SHARE` of its blocks free; equal keys choose equal blocks, in gate, up and down alike."""
    units = length(axis)
    blocks = min(BLOCKS, units)
    digest = hashlib.sha256(key.encode()).digest()
    drawn = set(random.Random(int.from_bytes(digest[:8], "little")).sample(range(blocks), int(blocks * DROPPED_SHARE)))
    runs: list[Run] = []
    for block in range(blocks):
        begin, end = block * units // blocks, (block + 1) * units // blocks
        runs.extend((Run(Fill.FREE, end - begin, new=True),) if block in drawn else cut(axis, begin, end))
    return merged(runs)
