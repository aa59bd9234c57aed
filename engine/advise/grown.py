"""A growth that was chosen: the plan, the model it leads to, and how that is trained.

Owns the choice's type and which ways of training a plan allows. Must not know how plans are found or figures made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.estimate.workload import Method
from engine.jobs.spec_growth import SIZES, ExpansionSection
from engine.jobs.spec_section import Task

if TYPE_CHECKING:
    from engine.expansion.plan import ExpansionPlan
    from engine.expansion.planner import PlanChoice
    from engine.models.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Grown:
    """What the user decided about an expansion."""

    choice: PlanChoice
    architecture: Architecture
    """Of the larger model."""
    task: Task

    @property
    def added_layers(self) -> int:
        """Layers that are wholly new."""
        return added_layers(self.choice.plan)

    @property
    def method(self) -> Method:
        """The training as the estimates know it; frozen 4-bit weights are counted as if they had 16 bits."""
        return method_of(self.task, self.choice.plan)


def added_layers(plan: ExpansionPlan) -> int:
    """Layers that are wholly new."""
    return sum(layer.new for layer in plan.layers)


def only_adds_layers(plan: ExpansionPlan) -> bool:
    """Whether every old tensor stays as it is, so that it can be frozen."""
    return set(plan.operators) == {"layers"}


def method_of(task: Task, plan: ExpansionPlan) -> Method:
    """Which parameters learn."""
    frozen = task in (Task.NEW_BLOCKS, Task.QLORA_GROWN) and only_adds_layers(plan)
    return Method.NEW_BLOCKS if frozen else Method.FULL


def tasks_for(plan: ExpansionPlan) -> tuple[Task, ...]:
    """Ways to train what a plan makes, the gentlest first."""
    if only_adds_layers(plan):
        return (Task.NEW_BLOCKS, Task.QLORA_GROWN, Task.FULL, Task.EXPAND)
    return (Task.FULL, Task.NEW_COORDINATES, Task.QLORA_GROWN, Task.EXPAND)


def expansion_section(plan: ExpansionPlan) -> ExpansionSection:
    """The `[expansion]` section that leads to exactly this plan: explicit sizes and an operator for every axis."""
    before, after = plan.before, plan.after
    upcycled = before.experts == 0 and after.experts > 0
    old, new = (before.ffn, after.ffn)
    if before.experts and not upcycled:
        old, new = before.expert_ffn, after.expert_ffn
    sizes = {name: getattr(after, name) for name in SIZES if name != "ffn"}
    changed = {name: value for name, value in sizes.items() if value != getattr(before, name)}
    if new != old:
        changed["ffn"] = new
    named = tuple(f"{axis}={name}" for axis, name in plan.operators.items() if name != "upcycle")
    return ExpansionSection(**changed, operators=named, seed=plan.seed, dtype=plan.dtype)
