"""From sizes that were asked for to a complete plan, or to a refusal that names the nearest possible ones.

Owns completing what was left open and checking the whole. Must not know how a target size becomes sizes
(`engine.expansion.planner`) nor files. Warnings are returned, not printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from engine.errors import EngineError
from engine.expansion.axes import Dim, Dims
from engine.expansion.config_keys import refuse_unknown_keys
from engine.expansion.config_mixture import TARGETS, refuse_obstacle
from engine.expansion.growth import AxisRequest, LayerSource
from engine.expansion.layout import Layout
from engine.expansion.operator_choice import changed_axes, choose_operators, is_exact, losses, wished_for
from engine.expansion.operators import LAYERS, LayerRequest, operator_named
from engine.expansion.packed import STAYS_PACKED, quantisation, refusal, why_not
from engine.expansion.plan import ExpansionPlan
from engine.expansion.plan_io import DTYPES
from engine.expansion.portability import portability_notes
from engine.expansion.search import EXPERTS_PER_TOKEN
from engine.expansion.shape_rules import FIELDS, Rules, expert_width_field, unsupported_axis


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for; None leaves a size open, to be kept or completed."""

    hidden: int | None = None
    ffn: int | None = None
    """Of each expert, in a mixture."""
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    experts: int | None = None
    experts_per_token: int | None = None
    operators: tuple[str, ...] = ()
    """Names, or AXIS=NAME."""
    placement: str = ""
    """Where layers go: "interleaved", "start", "end", "upper", "" for the operator's own."""
    seed: int = 17
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class CheckedPlan:
    """A plan that can be carried out, and what should be said about it."""

    plan: ExpansionPlan
    exact: bool
    notes: tuple[str, ...] = ()
    """What was completed, as sentences."""
    warnings: tuple[str, ...] = ()
    """What will be lost or in the way elsewhere, as sentences."""


def plan_for(layout: Layout, wish: Wish, config: Mapping[str, Any] | None = None) -> CheckedPlan:
    """The complete plan for explicit sizes.

    Raises EngineError `expansion.size` for sizes that cannot be (with the nearest that can), `expansion.nothing` when
    nothing grows, `expansion.unsupported` for an axis the family cannot grow, `expansion.trait` for a config key that
    no rule understands, `expansion.operator`, `.placement`,
    `.layers`, `.multiple` for operators that do not fit, `.quantised` for growth that packed weights do not allow.
    """
    _check_numbers(wish)
    refuse_unknown_keys(config or {}, layout, f"This {layout.family} model")
    replicates = wished_for(wish.operators, Dim.KEY_VALUE.value) == "replicate"
    rules = Rules(layout, replicates)
    after, notes = _completed(layout, wish, rules)
    _check_shape(layout, rules, wish, after, config or {})
    upcycling = layout.dims.experts == 0 and after.experts > 0
    operators = choose_operators(wish.operators, changed_axes(layout.dims, after), upcycling=upcycling)
    plan = ExpansionPlan(
        family=layout.family,
        before=layout.dims,
        after=after,
        operators=operators,
        layers=_layers(layout, after, operators, wish),
        seed=wish.seed,
        dtype=wish.dtype,
        target_family=TARGETS[layout.family] if upcycling else "",
    )
    _check_operators(layout, plan)
    method = quantisation(config or {})
    if method:
        if cause := why_not(plan):
            raise refusal(f"This {layout.family} model", method, cause)
        notes.append(STAYS_PACKED)
    warnings = (*losses(plan), *portability_notes(layout, plan))
    return CheckedPlan(plan, is_exact(plan), tuple(notes), warnings)


def _check_numbers(wish: Wish) -> None:
    for name in ("hidden", "ffn", "layers", "heads", "kv_heads", "experts", "experts_per_token"):
        value = getattr(wish, name)
        if value is not None and (type(value) is not int or value < 1):
            raise EngineError(
                "expansion.size", f"{name} is {value}; it must be a whole number above 0.", next_step="Give a number."
            )
    if wish.dtype not in DTYPES:
        raise EngineError(
            "expansion.dtype",
            f"'{wish.dtype[:40]}' is not a type weights can be cast to.",
            next_step=f"Choose one of {', '.join(DTYPES[1:])}, or leave it out to keep each tensor's type.",
        )


# ── completing ───────────────────────────────────────────────────────────────────────────────────────────────────
def _completed(layout: Layout, wish: Wish, rules: Rules) -> tuple[Dims, list[str]]:
    before = layout.dims
    after = replace(before, layers=wish.layers or before.layers)
    if wish.ffn:
        after = replace(after, **{expert_width_field(before): wish.ffn})
    hidden, heads, kv_heads = _attention(layout, wish, rules)
    after = replace(after, hidden=hidden, heads=heads, kv_heads=kv_heads)
    after = _experts(layout, wish, after)
    asked = {name: getattr(wish, name) for name in ("hidden", "heads", "kv_heads")}
    notes = [
        f"{name.replace('_', '/')} {getattr(before, name)} → {getattr(after, name)}, so that the other sizes can be."
        for name, given in asked.items()
        if given is None and getattr(after, name) != getattr(before, name)
    ]
    return after, notes


def _attention(layout: Layout, wish: Wish, rules: Rules) -> tuple[int, int, int]:
    """Hidden, query heads, key/value heads; what was left open follows from what was given."""
    before, traits = layout.dims, layout.traits
    hidden = wish.hidden or before.hidden
    heads = wish.heads
    if heads is None:
        heads = _heads_for(layout, wish, hidden, rules)
    if wish.hidden is None and not traits.head_dim_key:
        hidden = heads * before.head_dim
    kv_heads = wish.kv_heads
    if kv_heads is None:
        follows = traits.key_value_follows or (before.kv_heads == before.heads and heads % before.kv_heads != 0)
        kv_heads = heads if follows else before.kv_heads
    return hidden, heads, kv_heads


def _heads_for(layout: Layout, wish: Wish, hidden: int, rules: Rules) -> int:
    before, traits = layout.dims, layout.traits
    if wish.kv_heads and wish.kv_heads > before.kv_heads and not rules.replicates:
        return wish.kv_heads * (before.heads // before.kv_heads)
    if not before.heads:
        return 0
    if not traits.head_dim_key:
        return max(hidden // before.head_dim, before.heads)
    if not rules.problem(replace(before, hidden=max(hidden, before.hidden))):
        return before.heads
    wanted = max(hidden // before.head_dim, before.heads)
    options = [
        heads
        for heads in range(before.heads, 2 * wanted + 1)
        if not rules.problem(
            replace(before, hidden=max(hidden, before.hidden), heads=heads, kv_heads=_kv(before, heads))
        )
    ]
    return min(options, key=lambda heads: (abs(heads - wanted), heads), default=before.heads)


def _kv(before: Dims, heads: int) -> int:
    return heads if before.kv_heads == before.heads and heads % before.kv_heads else before.kv_heads


def _experts(layout: Layout, wish: Wish, after: Dims) -> Dims:
    before = layout.dims
    if wish.experts is None or (wish.experts == before.experts and wish.experts_per_token is None):
        return after
    if before.experts:
        per_token = wish.experts_per_token or max(before.experts_per_token * wish.experts // before.experts, 1)
        return replace(after, experts=wish.experts, experts_per_token=per_token)
    per_token = wish.experts_per_token or min(EXPERTS_PER_TOKEN, wish.experts)
    return replace(after, experts=wish.experts, experts_per_token=per_token, expert_ffn=after.ffn)


# ── checking ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _check_shape(layout: Layout, rules: Rules, wish: Wish, after: Dims, config: Mapping[str, Any]) -> None:
    axis, reason = unsupported_axis(layout, after)
    if axis:
        raise EngineError(
            "expansion.unsupported",
            f"The {axis.replace('_', '/')} of a {layout.family} model cannot grow.",
            cause=_sentence(reason),
            next_step="Grow another size: scaler-wizard inspect says which can.",
        )
    if after.experts and not layout.dims.experts:
        refuse_obstacle(config, layout)
    problem = rules.problem(after)
    if problem:
        raise EngineError(
            "expansion.size",
            f"A {layout.family} model cannot have these sizes: {_shape_words(after)}.",
            cause=problem,
            next_step=_nearest_words(rules, wish, after),
        )
    if all(getattr(after, item.name) == getattr(layout.dims, item.name) for item in fields(Dims)):
        raise EngineError(
            "expansion.nothing",
            "Nothing would grow: the sizes are those of the model.",
            next_step="Ask for a larger size, for example --to 2x, --layers or --ffn.",
        )


def _nearest_words(rules: Rules, wish: Wish, after: Dims) -> str:
    """Single changes that make the shape possible; what was not asked for may move freely."""
    options = []
    for field, flag in (("heads", "--heads"), ("kv_heads", "--kv-heads"), ("hidden", "--hidden"), ("ffn", "--ffn")):
        near = rules.nearest(after, field)
        if near:
            options.append(f"{flag} {' or '.join(str(value) for value in near)}")
    before = rules.layout.dims
    smaller = [name for name in FIELDS if getattr(after, name) < getattr(before, name)]
    if smaller:
        least = (f"--{name.replace('_', '-')} {getattr(before, name)}" for name in smaller)
        return f"Ask for at least {', '.join(least)}."
    if options:
        return f"Nearest that is possible, the rest as asked: {'; or '.join(options)}."
    if wish.hidden and after.head_dim:
        heads = max(round(after.hidden / after.head_dim), before.heads)
        return f"Leave heads open, or ask for --hidden {heads * after.head_dim} --heads {heads}."
    return "Change one size at a time, starting from the model's own: scaler-wizard inspect shows them."


def _check_operators(layout: Layout, plan: ExpansionPlan) -> None:
    """Lets every width operator answer once: it refuses sizes it cannot make."""
    for axis, name in plan.operators.items():
        operator = operator_named(name)
        if axis == LAYERS or operator.grow is None:
            continue
        dim = Dim(axis)
        old, new = plan.before.of(dim), plan.after.of(dim)
        operator.grow(AxisRequest(dim, old, new, plan.before, plan.after, layout.traits, plan.seed, plan.operators))


def _layers(layout: Layout, after: Dims, operators: Mapping[str, str], wish: Wish) -> tuple[LayerSource, ...]:
    name = operators.get(LAYERS)
    if not name:
        return ()
    operator = operator_named(name)
    if operator.layers is None:
        raise EngineError("expansion.operator", f"The operator {name} does not add layers.", next_step="Use identity.")
    request = LayerRequest(layout.dims.layers, after.layers, layout.traits, wish.seed, wish.placement)
    return operator.layers(request)


def _shape_words(dims: Dims) -> str:
    words = f"hidden {dims.hidden:,}, FFN {dims.ffn or dims.expert_ffn:,}, {dims.layers} layers, {dims.heads} heads"
    words += f", {dims.kv_heads} key/value heads"
    return words + (f", {dims.experts} experts" if dims.experts else "")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
