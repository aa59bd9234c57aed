"""From a plan to instructions: every tensor of the larger model as a recipe.

Owns the walk over layers, experts and axes, and which factor and which fill a tensor gets. Must not know how a recipe
is carried out, nor how the plan was chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from engine.errors import EngineError
from engine.expansion.assemble import Growths, axis_map
from engine.expansion.axes import Axis, Dim, Fused, Role, Side
from engine.expansion.growth import AxisGrowth, AxisRequest, LayerKind, LayerSource, StreamScales
from engine.expansion.layout import Layout, Match
from engine.expansion.maps import AxisMap, Fill, Run, length
from engine.expansion.operators import operator_named
from engine.expansion.plan import ExpansionPlan
from engine.expansion.recipe import Recipe, Source
from engine.expansion.scales import GAINS, HALF_TYPES, is_power_of_two, role_factor, stream_scales
from engine.expansion.upcycling import upcycled_recipes
from engine.models.headers import Headers, TensorHeader

FRESH_STD = 0.02
"""Free weights: the initialiser range that nearly every config states."""

UNSEEN = 2.0**-10
"""Of that, new query and key rows under a norm over the whole projection: their square is a millionth of the others',
below what the norm's float32 can tell, and yet they are no zeros, which would be each other's gradient for ever."""

_STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
_BIASES = (Role.PRE_BIAS, Role.FINAL_BIAS, Role.WRITE_BIAS)


@dataclass(frozen=True, slots=True)
class Found:
    """A stored tensor and its rule."""

    header: TensorHeader
    match: Match


@dataclass(frozen=True, slots=True)
class Work:
    """What every recipe depends on."""

    layout: Layout
    plan: ExpansionPlan
    growths: Growths
    scales: StreamScales
    fresh_std: float = FRESH_STD


def work_for(layout: Layout, plan: ExpansionPlan, dtype: str, fresh_std: float = FRESH_STD) -> Work:
    """The growth of every axis and the stream's scales; `dtype` is how the source stores its matrices."""
    growths: dict[Dim, AxisGrowth] = {
        dim: _growth(layout, plan, dim) for dim in Dim if dim not in (Dim.VOCAB, Dim.FIXED)
    }
    scales = stream_scales(plan.before.hidden, plan.after.hidden, growths[Dim.HIDDEN], layout.traits, dtype)
    return Work(layout, plan, growths, scales, fresh_std)


def _growth(layout: Layout, plan: ExpansionPlan, dim: Dim) -> AxisGrowth:
    old, new = plan.before.of(dim), plan.after.of(dim)
    name = plan.operator_for(dim)
    if dim in (Dim.EXPERT_FFN, Dim.SHARED_FFN):
        name = name or plan.operator_for(Dim.FFN)
    heads_move = dim is Dim.QUERY and (plan.before.heads, plan.before.kv_heads) != (
        plan.after.heads,
        plan.after.kv_heads,
    )
    becomes_mixture = bool(plan.target_family) and dim in (Dim.EXPERT, Dim.EXPERT_FFN)
    if becomes_mixture or (old == new and not heads_move):
        return AxisGrowth.unchanged(dim, old)
    operator = operator_named(name or "pad")
    if operator.grow is None:
        raise EngineError("expansion.operator", f"The operator {operator.name} does not grow {dim.value}.")
    request = AxisRequest(dim, old, new, plan.before, plan.after, layout.traits, plan.seed, plan.operators)
    growth = operator.grow(request)
    if layout.traits.qk_norm == "full" and dim in (Dim.QUERY, Dim.KEY_VALUE):
        return replace(growth, rescale=_kept_share(growth, old, new) ** -0.5)
    return growth


def _kept_share(growth: AxisGrowth, old: int, new: int) -> float:
    """Share of heads that hold an old one, each equally often: what a norm over all of them needs to know."""
    kept = sum(run.count for run in growth.out if run.fill is Fill.COPY)
    if kept % old:
        raise EngineError(
            "expansion.operator",
            f"{growth.operator} repeats some heads more often than others, under a norm over all of them.",
            cause=f"{old} heads cannot be copied evenly to {new}.",
            next_step=f"Choose {old * (new // old + 1)} heads, or the operator pad.",
        )
    return kept / new


def matrix_dtype(headers: Headers) -> str:
    """How a checkpoint stores most of its numbers, as safetensors calls it."""
    totals: dict[str, int] = {}
    for tensor in headers.tensors:
        if tensor.dtype.startswith(("F", "BF")):  # stored masks of small models outnumber their weights
            totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.elements
    return max(totals, key=lambda dtype: totals[dtype]) if totals else "F32"


def build_recipes(
    headers: Headers, layout: Layout, plan: ExpansionPlan, fresh_std: float = FRESH_STD
) -> tuple[Recipe, ...]:
    """One recipe per tensor of the larger model, in the source's order, layers by number.

    Raises EngineError `expansion.tensor` for a stored tensor no rule knows, `expansion.shape` for one of another shape.
    """
    dtype = _STORED.get(plan.dtype, "") or matrix_dtype(headers)
    work = work_for(layout, plan, dtype, fresh_std)
    outside, by_layer = _sorted(headers, layout, plan)
    recipes = [_recipe(work, found, None, (), 0) for found in outside if found.match.layer is None]
    for number, layer in enumerate(plan.layer_sources):
        above = by_layer.get(layer.other if layer.kind is LayerKind.BLEND else layer.base + 1, ())
        for found in by_layer.get(layer.base, ()):
            recipes.extend(_layer_recipes(work, found, layer, above, number))
    if plan.target_family:
        return upcycled_recipes(recipes, layout, plan, fresh_std)
    return tuple(recipes)


def _sorted(headers: Headers, layout: Layout, plan: ExpansionPlan) -> tuple[list[Found], dict[int, tuple[Found, ...]]]:
    outside: list[Found] = []
    by_layer: dict[int, list[Found]] = {}
    for tensor in headers.tensors:
        match = layout.find(tensor.name)
        if match is None:
            if layout.is_ignored(tensor.name):
                continue
            raise EngineError(
                "expansion.tensor",
                f"'{tensor.name[:80]}' is not part of a {layout.family} model as this program knows it.",
                cause="Growing a model with a tensor whose meaning is unknown would be a guess.",
                next_step="Remove what was added to the model, or report the model's name.",
            )
        if match.rule.role is Role.HEAD and layout.traits.tied:
            continue  # stored beside the embedding it is tied to; loaders take the embedding
        if match.layer is None:
            outside.append(Found(tensor, match))
        else:
            by_layer.setdefault(match.layer, []).append(Found(tensor, match))
    _check_ends(outside, layout)
    _check_layers(by_layer, layout, plan)
    return outside, {layer: tuple(found) for layer, found in by_layer.items()}


def _check_ends(outside: Iterable[Found], layout: Layout) -> None:
    """A loader would draw a missing embedding or head at random, and nothing could be said of the result."""
    needed = {Role.EMBEDDING, Role.FINAL_GAIN} | (set() if layout.traits.tied else {Role.HEAD})
    present = {found.match.rule.role for found in outside}
    missing = [rule.pattern for rule in layout.rules if rule.role in needed - present]
    if missing:
        raise EngineError(
            "expansion.tensor",
            f"'{missing[0]}' is not among the stored tensors.",
            cause="The checkpoint was saved without a part that a language model needs, or a file is missing.",
            next_step="Use the complete model with its language-model head.",
        )


def _check_layers(by_layer: Mapping[int, list[Found]], layout: Layout, plan: ExpansionPlan) -> None:
    missing = [layer for layer in range(plan.before.layers) if layer not in by_layer]
    extra = sorted(layer for layer in by_layer if layer >= plan.before.layers)
    if missing or extra:
        raise EngineError(
            "expansion.layers",
            f"The config says {plan.before.layers} layers; the weights have {len(by_layer)}.",
            cause=f"Layer {(missing or extra)[0]} is {'missing' if missing else 'one too many'}.",
            next_step="Download the model again; weights and config.json do not belong together.",
        )


def _layer_recipes(work: Work, found: Found, layer: LayerSource, above: Iterable[Found], number: int) -> list[Recipe]:
    expert = found.match.expert
    if found.match.rule.counted is not None:
        return _head_recipes(work, found, layer, above, number)
    if expert is None or work.plan.before.experts == work.plan.after.experts:
        return [_recipe(work, found, layer, above, number)]
    return _expert_recipes(work, found, layer, above, number)


def _head_recipes(work: Work, found: Found, layer: LayerSource, above: Iterable[Found], number: int) -> list[Recipe]:
    """What each head stores on its own, once for every head made from this one; free heads go with the first."""
    growth = work.growths[found.match.rule.counted or Dim.QUERY]
    recipes = []
    position = 0
    for run in growth.out:
        for index in range(run.count):
            copied = run.fill is Fill.COPY
            if (run.start + index if copied else 0) == found.match.head:
                made = _recipe(work, found, layer, above, number)
                target = replace(found, match=replace(found.match, head=position + index))
                made = replace(made, name=_name(target, number, None), new=made.new or run.new)
                if not copied:
                    made = replace(made, sources=(), maps=_free(made.shape))
                recipes.append(replace(made, operators=_with(made.operators, growth.operator)))
        position += run.count
    return recipes


def _free(shape: tuple[int, ...]) -> tuple[AxisMap, ...]:
    return tuple((Run(Fill.FREE, size, new=True),) for size in shape)


def _expert_recipes(work: Work, found: Found, layer: LayerSource, above: Iterable[Found], number: int) -> list[Recipe]:
    """An expert stored on its own, once for every new expert made from it."""
    growth = work.growths[Dim.EXPERT]
    axis = growth.into if found.match.rule.role is Role.WRITE else growth.out
    recipes = []
    position = 0
    for run in axis:
        for index in range(run.count):
            if run.fill is Fill.COPY and run.start + index == found.match.expert:
                made = _recipe(work, found, layer, above, number, expert=position + index)
                recipes.append(
                    replace(
                        made,
                        scale=made.scale * run.scale,
                        noise=run.noise,
                        noise_key=run.noise_key,
                        new=made.new or run.new,
                        operators=_with(made.operators, growth.operator),
                    )
                )
        position += run.count
    return recipes


def _recipe(
    work: Work,
    found: Found,
    layer: LayerSource | None,
    above: Iterable[Found],
    number: int,
    expert: int | None = None,
) -> Recipe:
    header, rule, traits = found.header, found.match.rule, work.layout.traits
    maps = tuple(_map(work, axis, rule.role, size) for axis, size in zip(rule.axes, _shape(found), strict=True))
    if layer is not None and layer.closed and not rule.closes and rule.role is Role.WRITE:
        maps = _open_rows(rule.axes, maps)
    factor = _factor(work, rule.role, rule.axes)
    plus_one = traits.plus_one and _is_gain(rule.role)
    recipe = Recipe(
        name=_name(found, number, expert),
        shape=tuple(length(axis) for axis in maps),
        dtype=_dtype(work, rule.role, header.dtype, factor),
        sources=_sources(found, layer, above, number, maps),
        maps=maps,
        scale=factor,
        shift=factor - 1.0 if plus_one else 0.0,
        fresh_std=work.fresh_std * (UNSEEN if rule.role is Role.QK_MATRIX_FULL else 1.0),
        fresh_value=_neutral(rule.role, rule.axes, plus_one=plus_one),
        new=layer is not None and layer.new,
        operators=_operators(work, rule.axes, layer, factor),
    )
    if layer is not None and layer.closed and rule.closes:
        return replace(recipe, sources=(), constant=-1.0 if plus_one else 0.0)
    if layer is not None and layer.kind is LayerKind.FRESH:
        return replace(recipe, sources=(), maps=_free(recipe.shape))
    return recipe


def _shape(found: Found) -> tuple[int, ...]:
    shape, axes = found.header.shape, found.match.rule.axes
    if len(shape) != len(axes):
        raise EngineError(
            "expansion.shape",
            f"'{found.header.name[:80]}' has {len(shape)} axes, expected {len(axes)}.",
            cause="The weights are packed or of another version of the family.",
            next_step="Use the model's plain safetensors weights.",
        )
    return shape


def _map(work: Work, axis: Axis | Fused, role: Role, extent: int) -> AxisMap:
    if role is Role.WRITE and isinstance(axis, Axis) and axis.dim is Dim.EXPERT:
        axis = replace(axis, side=Side.IN)  # what experts stacked in one tensor write, as those with files of their own
    made = axis_map(axis, work.growths, work.plan.before, work.plan.after, extent)
    if role in _BIASES and isinstance(axis, Axis) and axis.dim is Dim.HIDDEN:
        return _zeros_for_free(made)
    return made


def _open_rows(axes: Iterable[Axis | Fused], maps: Iterable[AxisMap]) -> tuple[AxisMap, ...]:
    """What a branch closed by its post-norm's gain writes to new coordinates: anything. Zeros under a zero gain would
    never learn, for each is the other's gradient."""
    return tuple(
        tuple(replace(run, fill=Fill.FREE) if run.fill is Fill.ZERO else run for run in made)
        if isinstance(axis, Axis) and axis.dim is Dim.HIDDEN
        else made
        for axis, made in zip(axes, maps, strict=True)
    )


def _zeros_for_free(axis: AxisMap) -> AxisMap:
    return tuple(replace(run, fill=Fill.ZERO) if run.fill is Fill.FREE else run for run in axis)


def _factor(work: Work, role: Role, axes: Iterable[Axis | Fused]) -> float:
    factor = role_factor(role, work.scales, work.layout.traits)
    plain = [axis for axis in axes if isinstance(axis, Axis)]
    rescale = next((work.growths[axis.dim].rescale for axis in plain if axis.dim in (Dim.QUERY, Dim.KEY_VALUE)), 1.0)
    if role is Role.QK_MATRIX_FULL:
        raw = work.layout.traits.placement == "post" and any(axis.dim is Dim.HIDDEN for axis in plain)
        return factor * rescale / (work.scales.stream if raw else 1.0)
    if role is Role.QK_GAIN_FULL:
        return factor / rescale
    return factor


def _is_gain(role: Role) -> bool:
    return role in (Role.PRE_GAIN, Role.POST_GAIN, Role.FINAL_GAIN, Role.QK_GAIN_FULL, Role.HEAD_GAIN)


def _neutral(role: Role, axes: tuple[Axis | Fused, ...], *, plus_one: bool) -> float | None:
    """What free places of a vector hold: 1 for gains (0 under 1 + w), 0 for biases; matrices draw."""
    if _is_gain(role):
        return 0.0 if plus_one else 1.0
    return 0.0 if len(axes) == 1 else None


def _dtype(work: Work, role: Role, stored: str, factor: float) -> str:
    if work.plan.dtype:
        return _STORED[work.plan.dtype]
    if role in GAINS and stored in HALF_TYPES and not is_power_of_two(factor):
        return "F32"
    return stored


def _sources(
    found: Found, layer: LayerSource | None, above: Iterable[Found], number: int, maps: tuple[AxisMap, ...]
) -> tuple[Source, ...]:
    name = found.header.name
    if layer is not None and layer.kind is LayerKind.MADE:
        return (Source(f"made.{number}.{name}", made=True),)
    if layer is not None and layer.kind is LayerKind.BLEND:
        other = _counterpart(found, above) or _with_layer(found, layer.other)
        return (Source(name, weight=1 - layer.weight), Source(other, weight=layer.weight))
    if any(run.source for axis in maps for run in axis):
        return (Source(name), Source(_counterpart(found, above) or name))
    return (Source(name),)


def _counterpart(found: Found, others: Iterable[Found]) -> str:
    """The same tensor of another layer, as its file calls it; "" where that has none of its shape."""
    wanted = (found.match.rule, found.match.expert, found.match.head)
    names = [
        item.header.name
        for item in others
        if (item.match.rule, item.match.expert, item.match.head) == wanted and item.header.shape == found.header.shape
    ]
    return names[0] if names else ""


def _name(found: Found, number: int, expert: int | None) -> str:
    if found.match.layer is None:
        return found.header.name
    return _with_layer(found, number, expert)


def _with_layer(found: Found, layer: int, expert: int | None = None) -> str:
    number = found.match.expert if expert is None else expert
    named = found.match.rule.pattern.replace("{i}", str(layer)).replace("{e}", str(number))
    return named.replace("{h}", str(found.match.head))


def _operators(work: Work, axes: Iterable[Axis | Fused], layer: LayerSource | None, factor: float) -> tuple[str, ...]:
    names: tuple[str, ...] = ()
    for axis in axes:
        for part in axis.parts if isinstance(axis, Fused) else (axis,):
            if part.dim in work.growths:
                names = _with(names, work.growths[part.dim].operator)
    if factor != 1.0:
        names = _with(names, "rescale")
    if layer is not None and layer.new:
        names = _with(names, work.plan.operators.get("layers", layer.kind.value))
    return names


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return names if not name or name in names else (*names, name)
