"""From a spec's [expansion] to the plan that is carried out: the named sizes completed, or the recommended plan.

Owns that translation for one growth and for a row of them, where a later one starts from a model that does not exist
yet. Must not know runs. Without a model's files its config is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.expansion.checks import CheckedPlan, Wish, plan_for
from engine.expansion.config_splice import config_after
from engine.expansion.grown import grown_architecture
from engine.expansion.layouts.registry import layout_for
from engine.expansion.planner import PlanChoice, Source, choice_of, parse_target, plans_for
from engine.expansion.recipes import matrix_dtype, work_for
from engine.expansion.sizes import stored_inventory
from engine.jobs.spec import ExpansionSection
from engine.models.architecture import Architecture
from engine.models.folder import check_folder
from engine.models.headers import read_headers
from engine.models.weights import DTYPE_NAMES

_STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class Shape:
    """A model that exists, or will: enough to plan its growth."""

    name: str
    source: Source

    @property
    def parameters(self) -> int:
        return self.source.parameters


@dataclass(frozen=True, slots=True)
class PlannedGrowth:
    """One growth, decided."""

    choice: PlanChoice
    before: Shape
    after: Shape

    @property
    def checked(self) -> CheckedPlan:
        """The plan with its notes and warnings."""
        return self.choice.checked


def shape_of(folder: Path) -> Shape:
    """The model in a folder. Raises EngineError `model.*`, `safetensors.*`, `expansion.family`, `expansion.trait`."""
    config, headers = check_folder(folder), read_headers(folder)
    layout = layout_for(config, folder.name)
    inventory = stored_inventory(layout, {tensor.name: tensor.shape for tensor in headers.tensors})
    return Shape(folder.name, Source.of(layout, config, inventory, matrix_dtype(headers)))


def shape_from_config(config: Mapping[str, Any], name: str, dtype: str) -> Shape:
    """A model of which only the config is known; `dtype` as safetensors calls it."""
    return Shape(name, Source.of(layout_for(config, name), config, dtype=dtype))


def plan_growth(section: ExpansionSection, shape: Shape) -> PlannedGrowth:
    """The plan for the sizes of the section, or the recommended one for `to`. Raises EngineError `expansion.*`."""
    source = shape.source
    wish = Wish(
        hidden=section.hidden or None,
        ffn=section.ffn or None,
        layers=section.layers or None,
        heads=section.heads or None,
        kv_heads=section.kv_heads or None,
        experts=section.experts or None,
        operators=section.operators,
        seed=section.seed,
        dtype=section.dtype,
    )
    if section.to:
        target = parse_target(section.to, source.parameters)
        choices = plans_for(source, target, wish=wish)
        choice = next((one for one in choices if one.recommended), choices[0])
    else:
        choice = choice_of(source, plan_for(source.layout, wish, source.config))
    return PlannedGrowth(choice, shape, _grown_shape(choice, shape))


def _grown_shape(choice: PlanChoice, shape: Shape) -> Shape:
    plan, source = choice.plan, shape.source
    dtype = _STORED.get(plan.dtype, source.dtype)
    scales = work_for(source.layout, plan, dtype).scales
    config = config_after(source.config, source.layout, plan, scales, stored_dtype=DTYPE_NAMES.get(source.dtype, ""))
    return shape_from_config(config, shape.name, dtype)


def architecture_after(growth: PlannedGrowth, base: Architecture) -> Architecture:
    """The analyzer's view of the larger model."""
    plan = growth.choice.plan
    return grown_architecture(base, plan.after, growth.choice.parameters, plan.target_family)


def new_layers(growth: PlannedGrowth) -> int:
    """How many layers are wholly new."""
    return sum(1 for layer in growth.choice.plan.layers if layer.new)
