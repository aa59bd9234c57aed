"""Recipes turned round: each tensor of the source, read back from the larger model.

Owns the inversion of maps. Must not know files. The parent is a sub-block of what grew from it:

    new = scale * old[runs] + shift     =>     old = (new[first copies] - shift) / scale

Exact to the bit where nothing was scaled, and for scales that are powers of two in types whose exponents have room.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from engine.expansion.maps import AxisMap, Fill, Run, is_identity, merged
from engine.expansion.recipe import Recipe, Source
from engine.expansion.scales import is_power_of_two
from engine.models.headers import TensorHeader


@dataclass(frozen=True, slots=True)
class Recovered:
    """How one source tensor is read back."""

    recipe: Recipe
    exact: bool
    """To the bit; otherwise within one unit in the last place."""


def inverse_recipes(recipes: Iterable[Recipe]) -> Mapping[str, list[Recipe]]:
    """The larger model's recipes by the source tensor they hold: originals before copies."""
    holders: dict[str, list[Recipe]] = {}
    for recipe in sorted(recipes, key=lambda recipe: recipe.new):
        if recipe.sources and not recipe.sources[0].made and recipe.noise == 0.0 and recipe.constant is None:
            holders.setdefault(recipe.sources[0].name, []).append(recipe)
    return holders


def recover(tensor: TensorHeader, holders: Iterable[Recipe]) -> Recovered | None:
    """The best way back to `tensor`; None when no tensor of the larger model holds all of it."""
    best: Recovered | None = None
    for holder in holders:
        found = _invert(tensor, holder)
        if found is not None and found.exact:
            return found
        best = best or found
    return best


def _invert(tensor: TensorHeader, holder: Recipe) -> Recovered | None:
    selects = any(run.source for axis in holder.maps for run in axis)
    if (len(holder.sources) > 1 and not selects) or len(holder.maps) != len(tensor.shape) or holder.scale == 0.0:
        return None
    maps: list[AxisMap] = []
    scales = [holder.scale]
    for axis, extent in zip(holder.maps, tensor.shape, strict=True):
        inverted = _invert_axis(axis, extent)
        if inverted is None:
            return None
        maps.append(inverted)
        scales += [run.scale for run in inverted]
    recipe = Recipe(
        name=tensor.name,
        shape=tensor.shape,
        dtype=tensor.dtype,
        sources=(Source(holder.name),),
        maps=tuple(maps),
        scale=1 / holder.scale,
        shift=-holder.shift / holder.scale,
    )
    exact = holder.shift == 0.0 and all(scale == 1.0 or _loses_nothing(scale, tensor.dtype) for scale in scales)
    return Recovered(recipe, exact and _holds(holder.dtype, tensor.dtype))


def _loses_nothing(scale: float, dtype: str) -> bool:
    """float16 has too few exponents: a small number halved is no longer the same number."""
    return is_power_of_two(scale) and dtype != "F16"


def _holds(stored: str, original: str) -> bool:
    """Whether a type keeps every value of another."""
    return stored == original or (stored == "F64") or (stored == "F32" and original in ("BF16", "F16"))


def _invert_axis(axis: AxisMap, extent: int) -> AxisMap | None:
    """Where the old entries are now; first copies before others, unscaled before scaled."""
    if is_identity(axis, extent):
        return axis
    candidates: list[tuple[int, int, int, bool, float]] = []
    position = 0
    for run in axis:
        if run.fill is Fill.COPY and run.source == 0 and run.noise == 0.0 and run.scale != 0.0:
            candidates.append((run.start, run.count, position, run.new, run.scale))
        position += run.count
    edges = sorted({0, extent, *(start for start, *_ in candidates), *(one[0] + one[1] for one in candidates)})
    by_start = sorted(candidates)
    runs: list[Run] = []
    first = 0
    for begin, end in pairwise(edges):
        while first < len(by_start) and by_start[first][0] + by_start[first][1] <= begin:
            first += 1
        covering = []
        for start, count, new_start, new, scale in by_start[first:]:
            if start > begin:
                break
            if start + count >= end:
                covering.append((scale != 1.0, new, new_start + begin - start, scale))
        if not covering:
            return None
        _, _, place, scale = min(covering)
        runs.append(Run(Fill.COPY, end - begin, start=place, scale=1 / scale))
    return merged(runs)
