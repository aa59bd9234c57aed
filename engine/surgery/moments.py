"""Optimizer moments grown with the weights: old coordinates keep theirs, new ones begin at zero.

Owns what a recipe means for the moments of AdamW-like optimizers. Must not know optimizers or the loop: moments come
and go by tensor name, as arrays or as files laid out like weights.

A coordinate w that became w' = c w while the function stayed has the gradient dL/dw' = (dL/dw) / c, hence

    exp_avg' = exp_avg / c          exp_avg_sq' = exp_avg_sq / c^2          (any power p of the gradient: / c^p)

and the next step moves w' by as much as it would have moved w. c is the recipe's scale times the scales of its runs. An
axis whose entries are repeated n times is another matter: where outgoing weights are shared out (scales that sum to 1)
the shares are no change of coordinates and the gradient stays; where units are produced n times each copy gets a share
of the gradient, taken as 1/n. The first copy carries the moments, the others begin at zero, which also parts them.

Exact for zero-padding on RMSNorm nets, added layers and equal tiling without noise; with noise, unequal shares or
means (LayerNorm) the moments are near what they would be, and forgotten within 1 / (1 - beta2) steps anyway.
Sources: halving and quartering for doubled nets is Shen et al., "Staged Training", ICML 2022 (arXiv 2203.06211);
zeros for copies is SPARKLING (arXiv 2602.02472); the rule for scales is derived here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, product
from math import isclose, prod
from pathlib import Path

import numpy as np

from engine.expansion.maps import AxisMap, Fill, Run, merged
from engine.expansion.recipe import Recipe
from engine.models.headers import INDEX_NAME, read_headers
from engine.surgery.numbers import Array
from engine.surgery.reader import TensorReader
from engine.surgery.shards import DEFAULT_SHARD_BYTES, index_bytes, split
from engine.surgery.writer import Writing, write_shards

POWERS: Mapping[str, int] = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "momentum_buffer": 1}
"""Name in a torch optimizer's state -> the power of the gradient that it averages."""


@dataclass(frozen=True, slots=True)
class Moments:
    """One tensor's state."""

    values: Mapping[str, Array]
    """By the names of `POWERS`, each of the tensor's shape."""
    step: float = 0.0
    """Steps behind it; they are kept, since old coordinates keep what those steps averaged."""


def grown_moments(recipes: Iterable[Recipe], before: Mapping[str, Moments]) -> dict[str, Moments]:
    """The larger model's moments by tensor name, float32.

    A tensor that is wholly new, or whose source had no moments, is left out: its optimizer state begins anew.
    """
    result = {}
    for recipe in recipes:
        old = before.get(recipe.sources[0].name) if keeps_moments(recipe) else None
        if old is not None:
            values = {name: grown_moment(recipe, value, POWERS[name]) for name, value in old.values.items()}
            result[recipe.name] = Moments(values, old.step)
    return result


def keeps_moments(recipe: Recipe) -> bool:
    """Whether some coordinates of the tensor are old ones."""
    return not recipe.new and recipe.constant is None and bool(recipe.sources) and not recipe.sources[0].made


def grown_moment(recipe: Recipe, old: Array, power: int) -> Array:
    """One averaged power of the gradient for the tensor that `recipe` makes, float32, of its shape.

    `old` has the shape of the recipe's first source. `keeps_moments` must hold.
    """
    made = moment_recipe(recipe, power)
    grown = np.zeros(made.shape, dtype=np.float32)
    for block in product(*(_copied(axis) for axis in made.maps)):
        factor = made.scale * prod(run.scale for _, run in block)
        places = tuple(slice(begin, begin + run.count) for begin, run in block)
        grown[places] = old[tuple(slice(run.start, run.start + run.count) for _, run in block)] * factor
    return grown


def moment_recipe(recipe: Recipe, power: int) -> Recipe:
    """The tensor's moments as a recipe of its own, from the moments of its source under the source's name."""
    maps = tuple(_moment_map(axis, power) for axis in recipe.maps)
    return Recipe(recipe.name, recipe.shape, "F32", recipe.sources[:1], maps, scale=recipe.scale**-power)


def grow_moment_files(before: Path, after: Path, recipes: Iterable[Recipe], power: int) -> tuple[str, ...]:
    """The same from folder to folder, streamed like weights; returns the names of the tensors written.

    `before` holds safetensors named like the source's tensors, `after` must exist and be empty; a folder without
    tensors writes none. Raises EngineError `safetensors.*`, `surgery.*`, OSError from the disk.
    """
    headers = read_headers(before).tensors
    stored = {tensor.name for tensor in headers}
    made = [
        moment_recipe(recipe, power) for recipe in recipes if keeps_moments(recipe) and recipe.sources[0].name in stored
    ]
    if made:
        shards = split(made, DEFAULT_SHARD_BYTES)
        with TensorReader(headers) as reader:
            write_shards(shards, Writing(after, reader, 0, {}, lambda _: None, lambda _: None))
        if len(shards) > 1:
            (after / INDEX_NAME).write_bytes(index_bytes(shards))
    return tuple(recipe.name for recipe in made)


def _copied(axis: AxisMap) -> list[tuple[int, Run]]:
    """(first new entry, run) of the runs that hold something."""
    begins = accumulate((run.count for run in axis), initial=0)
    return [(begin, run) for begin, run in zip(begins, axis, strict=False) if run.fill is Fill.COPY]


def _moment_map(axis: AxisMap, power: int) -> AxisMap:
    """First copies with what their gradient is multiplied by, zeros elsewhere."""
    copies, shares = _copies(axis)
    shared_out = copies > 1 and isclose(shares, 1.0, rel_tol=1e-6)
    runs = []
    for run in axis:
        if run.fill is Fill.COPY and not run.new and run.source == 0:
            gradient = 1.0 if shared_out else 1 / (copies * run.scale)
            runs.append(Run(Fill.COPY, run.count, run.start, scale=gradient**power))
        else:
            runs.append(Run(Fill.ZERO, run.count, new=True))
    return merged(runs)


def _copies(axis: AxisMap) -> tuple[float, float]:
    """How often the old entries are held on average, and the mean sum of their scales."""
    old = sum(run.count for run in axis if run.fill is Fill.COPY and not run.new)
    held = [run for run in axis if run.fill is Fill.COPY]
    if not old:
        return 1.0, 1.0
    return sum(run.count for run in held) / old, sum(run.count * run.scale for run in held) / old
