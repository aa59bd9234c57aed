"""Shapes near a number of parameters: wider, deeper, both, wider feed-forward networks, more experts.

Owns the search. Must not know costs, machines, or which shape is best for whom. It trades closeness to the target
against keeping the model's proportions and its KV cache, and proposes only shapes that the family's rules allow.

    score = 10 x |parameters / target - 1| + |log h - log f| + 1/2 |log h - log q| + 1/2 log(KV cache) + oblong

with h, f, q the growth factors of hidden, feed-forward width and query heads; oblong is 1/10 where hidden was heads x
head size and is not any more, 1/2 where llama.cpp could not read that. Feed-forward width is the last to be chosen:
parameters are linear in it. Source: own weights; the first term dominates from a deviation of a few percent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log

from engine.expansion.axes import Dims
from engine.expansion.config_mixture import TARGETS
from engine.expansion.growth import LayerSource
from engine.expansion.plan import ExpansionPlan
from engine.expansion.portability import needs_square
from engine.expansion.shape_rules import Rules, expert_width_field
from engine.expansion.sizes import Inventory, kv_cache_bytes_per_token, upcycled_parameters

ALIGNMENT = 256
FEWEST_STEPS = 3
"""A width is divided into at least so many steps: smaller models get finer ones than `ALIGNMENT`."""
MOST_EXPERTS = 256
EXPERTS_PER_TOKEN = 2
"""Of a dense model turned into a mixture, when nothing is said."""
DEVIATION_WEIGHT = 10.0


@dataclass(frozen=True, slots=True)
class Space:
    """A model, what it may become, and how many parameters that has."""

    inventory: Inventory
    rules: Rules
    offset: int = 0
    """Parameters of the model that the inventory does not explain; they stay as they are."""
    experts: int = 0
    """A number of experts that was asked for: every shape has it. 0: as the model has."""

    @property
    def before(self) -> Dims:
        """The shape that others are made from: the model's own, with the experts that were asked for."""
        dims = self.inventory.layout.dims
        if not self.experts:
            return dims
        if not dims.experts:
            return replace(dims, experts=self.experts, experts_per_token=min(EXPERTS_PER_TOKEN, self.experts))
        per_token = max(dims.experts_per_token * self.experts // dims.experts, 1)
        return replace(dims, experts=self.experts, experts_per_token=per_token)

    @property
    def width(self) -> str:
        """The size that a feed-forward width is."""
        return expert_width_field(self.inventory.layout.dims)

    def parameters(self, dims: Dims) -> int:
        """Parameters of a shape whose added layers are spread evenly over the old ones."""
        if dims.experts and not self.inventory.layout.dims.experts:
            return mixture_parameters(self, dims)
        bases = [layer * self.before.layers // dims.layers for layer in range(dims.layers)]
        return self.offset + self.inventory.parameters(dims, bases)

    def allows(self, *axes: str) -> bool:
        """Whether the family can grow all of `axes` ("hidden", "depth", ...)."""
        unsupported = self.inventory.layout.unsupported
        return not any(axis in unsupported for axis in axes)


def alignment(units: int) -> int:
    """The step in which a width of `units` grows: 256, or less for small or oddly sized models."""
    step = ALIGNMENT
    while step > 1 and (units % step or units // step < FEWEST_STEPS):
        step //= 2
    return step


def layer_step(space: Space) -> int:
    """Layers of one period of the per-layer pattern; 1 where the model is too shallow to show that it repeats."""
    period = max(space.inventory.layout.traits.layer_period, 1)
    return period if space.before.layers >= 2 * period else 1


def wider(space: Space, target: int, layers: int = 0) -> Dims | None:
    """Hidden, feed-forward and heads, with `layers` layers (the model's own when 0)."""
    if not space.allows("hidden", "ffn"):
        return None
    start = replace(space.before, layers=layers or space.before.layers)
    return _best(space, target, _widths(space, start, target))


def wider_feed_forward(space: Space, target: int) -> Dims | None:
    """The feed-forward networks alone."""
    found = _with_feed_forward(space, space.before, target) if space.allows("ffn") else None
    return None if found == space.before else found


def deeper(space: Space, target: int) -> Dims | None:
    """Whole periods of layers alone, at least one."""
    if not space.allows("depth"):
        return None
    before, step = space.before, layer_step(space)
    first, second = (space.parameters(replace(before, layers=before.layers + n * step)) for n in (1, 2))
    count = max(round((target - first) / max(second - first, 1)) + 1, 1)
    return replace(before, layers=before.layers + count * step)


def both(space: Space, target: int) -> Dims | None:
    """Layers by the cube root of the growth, widths for the rest: parameters are as depth times width squared."""
    before, step = space.before, layer_step(space)
    if not space.allows("depth", "hidden", "ffn"):
        return None
    wanted = before.layers * ((target / space.parameters(before)) ** (1 / 3) - 1)
    middle = max(round(wanted / step), 1)
    shapes = [wider(space, target, before.layers + n * step) for n in {max(middle - 1, 1), middle, middle + 1}]
    return _best(space, target, (shape for shape in shapes if shape is not None))


def experts(space: Space, target: int, per_token: int = EXPERTS_PER_TOKEN) -> Dims | None:
    """A dense model as a mixture of copies of its feed-forward networks; None where there is no such family."""
    before = space.before
    if before.experts and not space.inventory.layout.dims.experts:
        return before
    if space.inventory.layout.family not in TARGETS or before.experts or not space.allows("experts"):
        return None
    options = [
        replace(before, experts=count, experts_per_token=min(per_token, count), expert_ffn=before.ffn)
        for count in range(per_token + 1, MOST_EXPERTS + 1)  # as many as are chosen would be no choice
    ]
    first, second = (mixture_parameters(space, option) for option in options[:2])
    index = round((target - first) / max(second - first, 1))
    return options[min(max(index, 0), len(options) - 1)]


def more_experts(space: Space, target: int) -> Dims | None:
    """A mixture whose experts, and experts per token, are a whole multiple of what they were."""
    before = space.before
    if not before.experts or not space.allows("experts"):
        return None
    if space.experts:
        return before
    options = [
        replace(before, experts=before.experts * n, experts_per_token=before.experts_per_token * n)
        for n in range(2, MOST_EXPERTS // before.experts + 1)
    ]
    return min(options, key=lambda option: abs(space.parameters(option) - target), default=None)


def mixture_parameters(space: Space, dims: Dims) -> int:
    """Parameters after upcycling to `dims`."""
    old = space.inventory.layout.dims
    bases = tuple(LayerSource(layer * old.layers // dims.layers) for layer in range(dims.layers))
    plan = ExpansionPlan(space.inventory.layout.family, old, dims, layers=bases)
    return space.offset + upcycled_parameters(space.inventory, plan)


def deviation(space: Space, dims: Dims, target: int) -> float:
    """|parameters / target - 1|."""
    return abs(space.parameters(dims) / target - 1)


# ── widths ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _widths(space: Space, start: Dims, target: int) -> Iterator[Dims]:
    """Every allowed hidden width whose smallest model is not far beyond the target, with heads and feed-forward."""
    before = space.before
    step = alignment(before.hidden)
    hidden = before.hidden
    while True:
        hidden += step
        options = [replace(start, hidden=hidden, heads=h, kv_heads=kv) for h, kv in _heads(space, hidden)]
        options = [option for option in options if not space.rules.problem(option)]
        if space.parameters(replace(start, hidden=hidden)) > 1.15 * target:
            break
        for option in options:
            found = _with_feed_forward(space, option, target)
            if found is not None:
                yield found


def _heads(space: Space, hidden: int) -> Iterator[tuple[int, int]]:
    """Numbers of query and key/value heads worth trying beside a hidden width."""
    before, traits = space.before, space.inventory.layout.traits
    if not traits.head_dim_key:
        heads = {hidden // before.head_dim}
    else:
        exact = before.heads * hidden / before.hidden
        unit = before.kv_heads if before.heads > before.kv_heads else 1
        near = int(exact // unit) * unit
        heads = {before.heads, near, near + unit, hidden // before.head_dim}
    for count in sorted(heads):
        if count < before.heads or (count > before.heads and not space.allows("heads")):
            continue
        follows = traits.key_value_follows or (before.kv_heads == before.heads and count % before.kv_heads)
        yield count, count if follows else before.kv_heads


def _with_feed_forward(space: Space, dims: Dims, target: int) -> Dims | None:
    """The shape with the feed-forward width that comes nearest to the target, not below the model's own."""
    field = space.width
    old = getattr(space.before, field)
    if not old:
        return None
    step = alignment(old)
    least = space.parameters(dims)
    slope = space.parameters(replace(dims, **{field: old + step})) - least
    steps = max(round((target - least) / slope), 0) if slope > 0 else 0
    return replace(dims, **{field: old + steps * step})


def _best(space: Space, target: int, shapes: Iterator[Dims]) -> Dims | None:
    return min(shapes, key=lambda dims: score(space, dims, target), default=None)


def score(space: Space, dims: Dims, target: int) -> float:
    """See the module's formula; lower is better."""
    before, field = space.before, space.width
    hidden = log(dims.hidden / before.hidden)
    feed_forward = log(getattr(dims, field) / getattr(before, field)) if getattr(before, field) else hidden
    heads = log(dims.heads / before.heads) if before.heads else hidden
    oblong = before.hidden == before.heads * before.head_dim and dims.hidden != dims.heads * dims.head_dim
    cache = kv_cache_bytes_per_token(dims) / max(kv_cache_bytes_per_token(before), 1)
    return (
        DEVIATION_WEIGHT * deviation(space, dims, target)
        + abs(hidden - feed_forward)
        + 0.5 * abs(hidden - heads)
        + 0.5 * log(max(cache, 1.0))
        + oblong * (0.5 if needs_square(space.inventory.layout) else 0.1)
    )
