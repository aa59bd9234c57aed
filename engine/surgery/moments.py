"""Optimizer moments grown with the weights: old coordinates keep theirs, new ones begin at zero.

Owns what a recipe means for the moments of AdamW-like optimizers. Must not know optimizers, files or the loop: moments
come as arrays by tensor name and go as arrays.

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
from itertools import product
from math import isclose, prod

import numpy as np

from engine.expansion.maps import AxisMap, Fill
from engine.expansion.recipe import Recipe
from engine.surgery.numbers import Array

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
    grown = np.zeros(recipe.shape, dtype=np.float32)
    for block in product(*(_old_spans(axis) for axis in recipe.maps)):
        factor = prod((span.gradient for span in block), start=1 / recipe.scale) ** power
        grown[tuple(span.new for span in block)] = old[tuple(span.old for span in block)] * factor
    return grown


@dataclass(frozen=True, slots=True)
class _Span:
    """Old entries where they are now, and what their gradient is multiplied by."""

    new: slice
    old: slice
    gradient: float


def _old_spans(axis: AxisMap) -> list[_Span]:
    """Where the first copies of old entries are."""
    copies, shares = _copies(axis)
    spans = []
    position = 0
    for run in axis:
        if run.fill is Fill.COPY and not run.new and run.source == 0:
            if copies == 1:
                gradient = 1 / run.scale
            else:
                gradient = 1.0 if isclose(shares, 1.0, rel_tol=1e-6) else 1 / (copies * run.scale)
            old = slice(run.start, run.start + run.count)
            spans.append(_Span(slice(position, position + run.count), old, gradient))
        position += run.count
    return spans


def _copies(axis: AxisMap) -> tuple[float, float]:
    """How often the old entries are held on average, and the mean sum of their scales."""
    old = sum(run.count for run in axis if run.fill is Fill.COPY and not run.new)
    held = [run for run in axis if run.fill is Fill.COPY]
    if not old:
        return 1.0, 1.0
    return sum(run.count for run in held) / old, sum(run.count * run.scale for run in held) / old
