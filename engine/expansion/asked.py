"""From a model that was found and what was asked for to one plan with its figures.

Owns reading the source for planning (config, headers, or a known shape alone) and the meaning of an `[expansion]`
section. Must not know what else is in a spec, nor screens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.errors import EngineError
from engine.expansion.checks import Wish, plan_for
from engine.expansion.costs import TrainingQuestion
from engine.expansion.grown import config_of
from engine.expansion.layout import Layout
from engine.expansion.packed import estimated_bytes, quantisation, stored_bytes, unpacked_shapes
from engine.expansion.planner import PlanChoice, Source, choice_of, parse_target, plans_for
from engine.expansion.sizes import dominant_dtype, stored_inventory
from engine.expansion.support import supported_layout
from engine.jobs.spec_growth import SIZES, ExpansionSection, StageSection
from engine.models.architecture import Architecture
from engine.models.headers import TensorHeader, read_headers
from engine.models.source import ModelRef


def source_of(ref: ModelRef, architecture: Architecture | None = None) -> Source:
    """A model as planning sees it: exact where its files are here, else from its config, else from its known shape.

    Raises EngineError `expansion.family`, `.trait`, `.tensor`, `.quantised`, `safetensors.*`.
    """
    config = dict(ref.config) or (config_of(architecture) if architecture is not None else {})
    if ref.path is None or not ref.has_weights:
        source = Source.of(supported_layout(config, ref.name), config)
        return replace(source, packed=estimated_bytes(source.inventory, config)) if quantisation(config) else source
    headers = read_headers(ref.path)
    layout = supported_layout(config, ref.name, (tensor.name for tensor in headers.tensors))
    if quantisation(config):
        return _packed_source(layout, config, headers.tensors, ref.name)
    shapes = {tensor.name: tensor.shape for tensor in headers.tensors}
    stored = dominant_dtype((tensor.dtype, tensor.data_bytes) for tensor in headers.tensors)
    return Source.of(layout, config, stored_inventory(layout, shapes), stored)


def _packed_source(layout: Layout, config: Mapping[str, Any], tensors: tuple[TensorHeader, ...], name: str) -> Source:
    inventory = stored_inventory(layout, unpacked_shapes(layout, tensors, name))
    plain = dominant_dtype((one.dtype, one.data_bytes) for one in tensors if one.dtype in ("F16", "BF16", "F32"))
    return replace(Source.of(layout, config, inventory, plain), packed=stored_bytes(layout, tensors))


def wish_of(section: ExpansionSection | StageSection, *, seed: int = 17, dtype: str = "") -> Wish:
    """The sizes, operators, seed and type of a section; a stage takes seed and type from the shared section."""
    if isinstance(section, ExpansionSection):
        seed, dtype = section.seed, section.dtype
    return Wish(
        hidden=section.hidden or None,
        ffn=section.ffn or None,
        layers=section.layers or None,
        heads=section.heads or None,
        kv_heads=section.kv_heads or None,
        experts=section.experts or None,
        operators=section.operators,
        seed=seed,
        dtype=dtype,
    )


def choices_for(
    source: Source, wish: Wish, to: str = "", question: TrainingQuestion | None = None
) -> tuple[PlanChoice, ...]:
    """Plans for a number of parameters ("7B", "2x"), or the one plan for explicit sizes.

    Raises EngineError `expansion.size` when no size is given at all, else what `plan_for` and `plans_for` raise.
    """
    named = [name for name in SIZES if name != "experts" and getattr(wish, name)]
    if to and named:
        raise EngineError(
            "expansion.size",
            f"Both a number of parameters ({to}) and sizes ({', '.join(named)}) are given.",
            next_step="Give one of them: the planner completes what is left out.",
        )
    if to:
        return plans_for(source, parse_target(to, source.parameters), question, wish)
    if not any(getattr(wish, name) for name in SIZES):
        raise EngineError(
            "expansion.no_size",
            "It is not said how large the model should be.",
            next_step="Give --to 7B (or 2x), or sizes: --hidden, --ffn, --layers, --heads, --kv-heads, --experts.",
        )
    return (choice_of(source, plan_for(source.layout, wish, source.config), question),)


def pick(choices: tuple[PlanChoice, ...], name: str = "") -> PlanChoice:
    """The plan called `name`, or the recommended one. Raises EngineError `expansion.plan`."""
    if not name:
        return next((choice for choice in choices if choice.recommended), choices[0])
    for choice in choices:
        if choice.id == name:
            return choice
    raise EngineError(
        "expansion.plan",
        f"There is no plan called '{name[:40]}' for this size.",
        cause="" if any(choice.id == "explicit" for choice in choices) else "This family cannot grow that way.",
        next_step=f"There are: {', '.join(choice.id for choice in choices)}.",
    )


def plan_of_section(source: Source, section: ExpansionSection, question: TrainingQuestion | None = None) -> PlanChoice:
    """The plan that an `[expansion]` section asks for. Raises EngineError `expansion.*`."""
    return pick(choices_for(source, wish_of(section), section.to, question))
