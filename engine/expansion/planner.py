"""From a wanted size to plans side by side, with what each costs and the reason for the recommended one.

Owns the choices and the recommendation. Must not know files or screens. Shapes come from `engine.expansion.search`,
costs from `engine.estimate` on the larger `Architecture`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import EngineError
from engine.estimate.estimate import Estimate
from engine.expansion import search
from engine.expansion.axes import Dims
from engine.expansion.checks import CheckedPlan, Wish, plan_for
from engine.expansion.costs import Costs, TrainingQuestion, training_costs
from engine.expansion.layout import Layout
from engine.expansion.packed import PackedBytes
from engine.expansion.plan import ExpansionPlan
from engine.expansion.portability import is_portable
from engine.expansion.recommendation import recommended
from engine.expansion.shape_rules import Rules, expert_width_field
from engine.expansion.sizes import Inventory, config_inventory, disk_bytes, kv_cache_bytes_per_token, plan_parameters
from engine.units import format_count, parse_count

LARGEST_FACTOR = 64
FARTHEST_DEVIATION = 0.25
"""Choices farther from the target are dropped while three others remain."""
FEWEST_CHOICES = 3

TITLES: Mapping[str, str] = {
    "wider": "Wider",
    "feed-forward": "Wider feed-forward",
    "deeper": "Deeper",
    "mixed": "Wider and deeper",
    "experts": "Experts",
    "explicit": "As asked",
}


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """One plan with its figures."""

    id: str
    """ "wider", "feed-forward", "deeper", "mixed", "experts", or "explicit" for sizes that were given."""
    title: str
    checked: CheckedPlan
    parameters_before: int
    parameters: int
    active_parameters: int
    """That a token passes through: fewer than all in a mixture."""
    target_parameters: int
    kv_cache_bytes_per_token: int
    kv_cache_factor: float
    """Against the source's."""
    disk_bytes: int
    portable: bool
    costs: Costs
    recommended: bool = False
    reason: str = ""
    """Why it is recommended, or what speaks against it, in one sentence."""

    @property
    def plan(self) -> ExpansionPlan:
        """The plan itself."""
        return self.checked.plan

    @property
    def exact(self) -> bool:
        """Whether the function is kept."""
        return self.checked.exact

    @property
    def deviation(self) -> float:
        """Parameters / target - 1, signed; 0 for explicit sizes."""
        return self.parameters / self.target_parameters - 1 if self.target_parameters else 0.0

    @property
    def memory(self) -> Estimate | None:
        """Bytes to train it as `costs.method` says, on one device."""
        return self.costs.memory

    @property
    def hours(self) -> Estimate | None:
        """Hours to train it, when a device was named."""
        return self.costs.hours


@dataclass(frozen=True, slots=True)
class Source:
    """The model to grow, as planning sees it."""

    layout: Layout
    config: Mapping[str, Any]
    inventory: Inventory
    parameters: int
    """As the files or the config have it."""
    dtype: str = "BF16"
    """How most weights are stored; of packed ones, those that are not."""
    packed: PackedBytes | None = None
    """Of a source whose blocks are packed, and are copied so."""

    @classmethod
    def of(
        cls, layout: Layout, config: Mapping[str, Any], inventory: Inventory | None = None, dtype: str = ""
    ) -> Source:
        """A source whose parameters are what its inventory holds; from the config alone without one."""
        held = inventory or config_inventory(layout, config)
        return cls(layout, config, held, held.parameters(layout.dims), dtype or "BF16")


def parse_target(text: str, parameters: int) -> int:
    """ "7B", "6.6e9", "6_600_000_000", "2x" as a number of parameters, for a model that has `parameters`.

    Raises EngineError `expansion.target` for what is no size, no growth, or beyond 64 times the model.
    """
    target = _target(text.strip(), parameters)
    if target <= parameters:
        raise EngineError(
            "expansion.target",
            f"The target {text} is not above the model's own {format_count(parameters)} parameters.",
            cause="Expansion takes nothing away.",
            next_step=f"Ask for more, for example --to 2x ({format_count(2 * parameters)}).",
        )
    if target > LARGEST_FACTOR * parameters:
        raise EngineError(
            "expansion.target",
            f"The target {text} is more than {LARGEST_FACTOR} times the model's {format_count(parameters)} parameters.",
            cause="Published growth is mostly twofold; far beyond that, a larger model is the better start.",
            next_step="Start from a larger model, or ask for less.",
        )
    return target


def _target(text: str, parameters: int) -> int:
    factor = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*[xX×]", text)
    if factor:
        return round(float(factor[1]) * parameters)
    if re.fullmatch(r"[0-9]*\.?[0-9]+[eE]\+?[0-9]{1,3}", text):
        return round(float(text))
    try:
        return parse_count(text)
    except EngineError as error:
        raise EngineError(
            "expansion.target", f"'{text[:40]}' is not a size.", next_step="Write 7B, 6.6e9 or 2x."
        ) from error


def plans_for(
    source: Source, target_parameters: int, question: TrainingQuestion | None = None, wish: Wish | None = None
) -> tuple[PlanChoice, ...]:
    """Plans near the target, the recommended one marked; ordered wider, feed-forward, deeper, mixed, experts.

    `wish` carries operators, placement, seed, type, and a number of experts that every plan then has; its other sizes
    are ignored. Raises EngineError `expansion.target`
    when no size of the family can grow, and what `plan_for` raises for operators that fit none of the plans.
    """
    base = wish or Wish()
    space = search.Space(source.inventory, Rules(source.layout), experts=base.experts or 0)
    choices: list[PlanChoice] = []
    failures: list[EngineError] = []
    for name, dims in shapes_for(space, target_parameters).items():
        try:
            checked = plan_for(source.layout, _wish_of(base, source.layout.dims, dims), source.config)
        except EngineError as error:
            failures.append(error)
            continue
        choices.append(choice_of(source, checked, question, name=name, target_parameters=target_parameters))
    if not choices:
        raise failures[0] if failures else _no_plan(source)
    return recommended(_near(choices), question)


def shapes_for(space: search.Space, target: int) -> dict[str, Dims]:
    """The shape of each choice that is possible and differs from the others."""
    found = {
        "wider": search.wider(space, target),
        "feed-forward": search.wider_feed_forward(space, target),
        "deeper": search.deeper(space, target),
        "mixed": search.both(space, target),
        "experts": search.experts(space, target) or search.more_experts(space, target),
    }
    shapes: dict[str, Dims] = {}
    for name, dims in found.items():
        if dims is not None and dims != space.inventory.layout.dims and dims not in shapes.values():
            shapes[name] = dims
    return shapes


def choice_of(
    source: Source,
    checked: CheckedPlan,
    question: TrainingQuestion | None = None,
    *,
    name: str = "explicit",
    target_parameters: int = 0,
) -> PlanChoice:
    """A checked plan with its figures."""
    plan = checked.plan
    parameters = plan_parameters(source.inventory, plan)
    before, after = kv_cache_bytes_per_token(plan.before), kv_cache_bytes_per_token(plan.after)
    return PlanChoice(
        id=name,
        title=TITLES[name],
        checked=checked,
        parameters_before=source.parameters,
        parameters=parameters,
        active_parameters=_active(source, plan, parameters),
        target_parameters=target_parameters,
        kv_cache_bytes_per_token=after,
        kv_cache_factor=after / before if before else 1.0,
        disk_bytes=source.packed.after(plan) if source.packed else disk_bytes(parameters, plan.dtype or source.dtype),
        portable=is_portable(source.layout, plan),
        costs=training_costs(plan, parameters, None if source.packed else question),
    )


def _active(source: Source, plan: ExpansionPlan, parameters: int) -> int:
    """All parameters but those of the experts a token passes by."""
    after = plan.after
    idle = after.experts - min(after.experts_per_token, after.experts)
    if not idle:
        return parameters
    fewer = replace(after, experts=after.experts - 1, experts_per_token=min(after.experts_per_token, after.experts - 1))
    one = parameters - plan_parameters(source.inventory, replace(plan, after=fewer))
    return parameters - idle * (one - after.layers * after.hidden)


def _wish_of(base: Wish, before: Dims, dims: Dims) -> Wish:
    """The wish with the sizes of a shape, those that do not change left open."""
    width = expert_width_field(before)
    return replace(
        base,
        hidden=_changed(dims.hidden, before.hidden),
        ffn=_changed(getattr(dims, width), getattr(before, width)),
        layers=_changed(dims.layers, before.layers),
        heads=dims.heads or None,
        kv_heads=dims.kv_heads or None,
        experts=_changed(dims.experts, before.experts),
        experts_per_token=_changed(dims.experts_per_token, before.experts_per_token),
    )


def _changed(new: int, old: int) -> int | None:
    return new if new != old else None


def _near(choices: Sequence[PlanChoice]) -> list[PlanChoice]:
    """The choices near the target, or the three nearest."""
    near = [choice for choice in choices if abs(choice.deviation) <= FARTHEST_DEVIATION]
    if len(near) >= FEWEST_CHOICES:
        return near
    kept = sorted(choices, key=lambda choice: abs(choice.deviation))[:FEWEST_CHOICES]
    return [choice for choice in choices if choice in kept]


def _no_plan(source: Source) -> EngineError:
    reasons = "; ".join(f"{axis}: {reason}" for axis, reason in source.layout.unsupported.items())
    return EngineError(
        "expansion.target",
        f"No size of this {source.layout.family} model can grow towards the target.",
        cause=reasons,
        next_step="scaler-wizard inspect says which sizes can grow.",
    )
