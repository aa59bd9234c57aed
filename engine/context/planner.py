"""Method, target and options in, a checked plan out; a request that cannot be carried out is refused with a way out.

Owns what a plan may ask for and how a method takes an already scaled model further. Must not know files or torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.context.lints import notes_of
from engine.context.method import Method, Options
from engine.context.methods import METHODS
from engine.context.plan import ContextPlan, PlannedRotary
from engine.context.present import taken_further
from engine.context.reading import SCALED_LAYERS, Reading, read_positions
from engine.context.refusals import (
    already_scaled,
    check_attention_factor,
    check_factor,
    check_target,
    fixed_factor,
    unknown_method,
)
from engine.context.scaling import Rotary, unscaled
from engine.context.support import refuse_type
from engine.errors import EngineError


def read_rotaries(config: Mapping[str, Any]) -> tuple[Rotary, ...]:
    """The rotary embeddings of a config, one per layer type that has its own.

    Raises EngineError `context.*` for models without rotary positions, `model.config_value` for values that cannot be.
    """
    return read_positions(config).rotaries


def read_window(config: Mapping[str, Any]) -> int:
    """L: tokens that the config promises, present scaling included. Raises as `read_rotaries`."""
    return read_positions(config).window


def plan_context(
    config: Mapping[str, Any], target: int, method: str, options: Options | None = None, name: str = "config.json"
) -> ContextPlan:
    """The plan that takes the model of `config` to `target` tokens. `name` is how messages call the config.

    Raises EngineError `context.*`: no rotary positions, an unknown method, a target within the window, a factor beyond
    64 or a length beyond float32 angles, a present scaling that the method cannot take further, options out of range.
    """
    chosen = METHODS.get(method)
    if chosen is None:
        raise unknown_method(method)
    reading = read_positions(config, name)
    refuse_type(reading.model_type, chosen.kind)
    check_target(reading.window, target)
    asked = options or Options()
    check_factor(asked.factor)
    check_attention_factor(asked.attention_factor)
    planned, applied = [], asked
    for rotary in reading.rotaries:
        if rotary.layer_type not in SCALED_LAYERS:
            planned.append(PlannedRotary(rotary, rotary.present or unscaled(rotary), changed=False))
            continue
        start, ratio = starting_point(rotary, chosen, reading.window, target)
        if asked.factor is not None and not chosen.free_factor and not math.isclose(asked.factor, ratio):
            raise fixed_factor(chosen, asked.factor, ratio, target)
        if rotary.present_kind in chosen.extends:
            applied = taken_further(rotary, ratio, asked)
        planned.append(PlannedRotary(start, chosen.scale(start, ratio, applied), changed=True))
    plan = ContextPlan(method, reading.window, target, tuple(planned), applied)
    return replace(plan, notes=notes_of(plan, chosen, reading))


def starting_point(rotary: Rotary, method: Method, window: int, target: int) -> tuple[Rotary, float]:
    """The rotary a method starts from and the ratio it is to reach.

    Unscaled: target over window. A type taken further: its present factor times the growth, for YaRN target over the
    original length, which is the same where the config is consistent. A scaling that is added to: the growth of the
    present window. Raises EngineError `context.already_scaled`.
    """
    kind = rotary.present_kind
    if kind == "default":
        return rotary, target / rotary.length
    if kind in method.stands_on:
        return replace(rotary, length=window), target / window
    if kind not in method.extends:
        raise already_scaled(rotary, method)
    if kind == "yarn":
        return rotary, target / rotary.length
    return rotary, float(dict(rotary.present_settings)["factor"]) * target / window


def ratio_of(plan: ContextPlan, planned: PlannedRotary) -> float:
    """The ratio that a plan's method was given for one of its rotaries."""
    rotary, method = planned.rotary, METHODS[plan.method]
    if rotary.present_kind in method.stands_on:
        return plan.target / plan.original
    return starting_point(rotary, method, plan.original, plan.target)[1]


def applicable(config: Mapping[str, Any], target: int) -> tuple[tuple[Method, str], ...]:
    """Every method, with "" where it can be planned for this model and target, else the reason why not.

    A method that needs a search is applicable where it could be planned with its result. Raises EngineError `context.*`
    where no method can: the model or the target itself is refused.
    """
    reading = read_positions(config)
    check_target(reading.window, target)
    return tuple((method, _obstacle(config, target, method, reading)) for method in METHODS.values())


def _obstacle(config: Mapping[str, Any], target: int, method: Method, reading: Reading) -> str:
    if method.needs_search:
        scaled = next(rotary for rotary in reading.rotaries if rotary.layer_type in SCALED_LAYERS)
        if scaled.present_kind != "default":
            return already_scaled(scaled, method).what
    try:
        if method.needs_search:
            refuse_type(reading.model_type, method.kind)
            return ""
        plan_context(config, target, method.id)
    except EngineError as error:
        return error.what
    return ""
