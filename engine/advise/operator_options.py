"""The operators that could grow each axis of a plan: possible or not and why, exact or not, what each loses.

Owns trying them on the plan's own sizes. Must not know screens; an impossible operator stays visible with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import EngineError
from engine.expansion.axes import Dims
from engine.expansion.checks import CheckedPlan, Wish, plan_for
from engine.expansion.layout import Layout
from engine.expansion.operators import DEFAULTS, OPERATORS
from engine.expansion.plan import ExpansionPlan

AXIS_WORDS = {
    "hidden": "hidden width",
    "ffn": "feed-forward width",
    "expert_ffn": "width of an expert",
    "shared_ffn": "width of the shared expert",
    "heads": "query heads",
    "kv_heads": "key/value heads",
    "experts": "experts",
    "layers": "layers",
}


@dataclass(frozen=True, slots=True)
class OperatorOption:
    """One operator for one axis of one plan."""

    axis: str
    name: str
    title: str
    exact: bool
    loses: str
    """ "" when nothing is lost."""
    source: str
    chosen: bool
    default: bool
    reason: str
    """Why it cannot be taken for these sizes; "" when it can."""


def sizes_wish(plan: ExpansionPlan, operators: Mapping[str, str]) -> Wish:
    """A wish for exactly the plan's sizes, each axis grown by the operator named for it."""
    after = plan.after
    upcycled = plan.before.experts == 0 and after.experts > 0
    return Wish(
        hidden=after.hidden,
        ffn=(after.ffn if upcycled else after.expert_ffn if plan.before.experts else after.ffn) or None,
        layers=after.layers,
        heads=after.heads or None,
        kv_heads=after.kv_heads or None,
        experts=after.experts or None,
        experts_per_token=(after.experts_per_token or None) if _more_experts(plan.before, after) else None,
        operators=tuple(f"{axis}={name}" for axis, name in operators.items() if name in OPERATORS),
        seed=plan.seed,
        dtype=plan.dtype,
    )


def with_operators(
    layout: Layout, config: Mapping[str, Any], plan: ExpansionPlan, operators: Mapping[str, str]
) -> CheckedPlan:
    """The plan with other operators, its sizes kept. Raises EngineError `expansion.*` when one cannot do it."""
    return plan_for(layout, sizes_wish(plan, operators), config)


def operator_options(layout: Layout, config: Mapping[str, Any], plan: ExpansionPlan) -> tuple[OperatorOption, ...]:
    """Every operator of every axis that the plan grows, axis by axis."""
    options = []
    defaults = {**DEFAULTS, "experts": "upcycle"} if plan.target_family else DEFAULTS
    for axis, chosen in plan.operators.items():
        for operator in OPERATORS.values():
            if axis not in operator.axes:
                continue
            reason = _obstacle(layout, config, plan, {**plan.operators, axis: operator.name})
            options.append(
                OperatorOption(
                    axis=axis,
                    name=operator.name,
                    title=operator.title,
                    exact=operator.exact_for(axis, plan.before, plan.after),
                    loses=operator.loses,
                    source=operator.source,
                    chosen=operator.name == chosen,
                    default=operator.name == defaults.get(axis),
                    reason=reason,
                )
            )
    return tuple(options)


def _obstacle(layout: Layout, config: Mapping[str, Any], plan: ExpansionPlan, operators: Mapping[str, str]) -> str:
    """Why the plan's sizes cannot be grown like this; "" when they can."""
    try:
        with_operators(layout, config, plan, operators)
    except EngineError as error:
        return error.cause or error.what
    return ""


def _more_experts(before: Dims, after: Dims) -> bool:
    return after.experts != before.experts
