"""The growth in a spec as the estimates need it: which model is trained in the end, and how much of it is new.

Owns following a spec's [expansion] or [[stages]] from the model it starts with. Must not know memory or machines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.advise.grown import added_layers, only_adds_layers
from engine.advise.growth_plan import PlannedGrowth, Shape, architecture_after, plan_growth
from engine.errors import EngineError
from engine.estimate.workload import Method
from engine.expansion.asked import source_of
from engine.expansion.certificate import read_certificate
from engine.expansion.packed import refuse_run
from engine.expansion.plan_io import plan_from_tree
from engine.jobs.spec import JobSpec, Task
from engine.jobs.spec_growth import SIZES
from engine.models.architecture import Architecture
from engine.models.source import ModelRef

_FLAG = re.compile(r"--(to|hidden|ffn|layers|heads|kv-heads|experts) ([\w.]+)")


@dataclass(frozen=True, slots=True)
class SpecGrowth:
    """What growth makes of a spec's model."""

    architecture: Architecture
    """Of the model after the last growth; the source's own where nothing grows in this job."""
    config: Mapping[str, Any]
    new_layers: int = 0
    only_layers: bool = False
    """Whether every old tensor stays as it is."""
    exact: bool = True
    warnings: tuple[str, ...] = ()
    """What the operators do not keep, and what is in the way elsewhere."""
    written_bytes: float = 0.0
    """Of the grown models."""
    operators: tuple[str, ...] = ()
    """Of the newest growth in this job."""

    def method(self, task: Task) -> Method:
        """Which parameters learn; frozen 4-bit weights are counted as if they had 16 bits."""
        blocks = task is Task.NEW_BLOCKS or (task is Task.QLORA_GROWN and self.only_layers)
        return Method.NEW_BLOCKS if blocks and self.new_layers else Method.FULL


def growth_of(spec: JobSpec, ref: ModelRef, architecture: Architecture) -> SpecGrowth | None:
    """What is trained in the end. None for a job that trains an adapter. Raises EngineError `expansion.*`, with the key
    of the spec, when the model cannot grow like that."""
    return growths_of(spec, ref, architecture)[-1]


def growths_of(spec: JobSpec, ref: ModelRef, architecture: Architecture) -> tuple[SpecGrowth | None, ...]:
    """Of every stage of `spec.staged()`: the model that it trains or makes, with all that grew until then; None where
    an adapter is trained. Raises EngineError `expansion.*` that names the stage, with the key of the spec."""
    if spec.task.trains_adapter or spec.task in (Task.EXTEND, Task.MIX):
        return (None,) * len(spec.staged())
    if not spec.grows:
        return (_grown_before(ref, architecture),) * len(spec.staged())
    source = source_of(ref, architecture)
    refuse_run(source.config, ref.name)
    now, shape = _grown_before(ref, architecture), Shape(ref.name, source)
    found: list[SpecGrowth] = []
    for number, stage in enumerate(spec.staged(), 1):
        if stage.expansion.grows:
            try:
                growth = plan_growth(stage.expansion, shape)
            except EngineError as error:
                raise _of_stage(error, spec, number, shape) from error
            now, shape = _grown(now, growth), growth.after
        found.append(now)
    return tuple(found)


def _grown(before: SpecGrowth, growth: PlannedGrowth) -> SpecGrowth:
    """What an earlier job added counts as old from the first growth of this one on."""
    plan, again = growth.choice.plan, bool(before.operators)
    return SpecGrowth(
        architecture_after(growth, before.architecture),
        growth.after.source.config,
        added_layers(plan) + (before.new_layers if again else 0),
        only_adds_layers(plan) and (before.only_layers or not again),
        growth.choice.exact and before.exact,
        tuple(dict.fromkeys((*before.warnings, *growth.checked.warnings))),
        growth.choice.disk_bytes + before.written_bytes,
        tuple(dict.fromkeys(plan.operators.values())),
    )


def _of_stage(error: EngineError, spec: JobSpec, number: int, shape: Shape) -> EngineError:
    """The refusal with the table of the spec that asks for it, and with a size that shrinks named as such."""
    section = spec.stages[number - 1] if spec.stages else spec.expansion
    where = f"stages[{number}]" if spec.stages else "expansion"
    dims = shape.source.layout.dims
    for name in SIZES:
        asked, has = getattr(section, name), getattr(dims, name, 0)
        if asked and has and asked < has:
            return EngineError(
                "expansion.size",
                f"{where}.{name} = {asked} would shrink the model: it has {has:,} before this "
                f"{'stage' if spec.stages else 'growth'}.",
                cause="Growth takes nothing away.",
                next_step=f"Set {where}.{name} above {has}, or leave it out.",
                key=f"{where}.{name}",
            )
    named = [name for name in (*SIZES, "to", "operators") if getattr(section, name)]
    operator = next((one for one in section.operators if one in f"{error.what} {error.cause}"), "")
    key = "operators" if operator else next((one for one in named if one in error.what), named[0])
    return EngineError(
        error.code,
        f"{where}: {error.what}",
        cause=error.cause,
        next_step=_FLAG.sub(_as_key, error.next_step),
        exit_code=error.exit_code,
        key=f"{where}.{key}",
    )


def _as_key(flag: re.Match[str]) -> str:
    """A flag of the command line as the spec has it."""
    name, value = flag.group(1).replace("-", "_"), flag.group(2)
    return f'{name} = "{value}"' if name == "to" else f"{name} = {value}"


def _grown_before(ref: ModelRef, architecture: Architecture) -> SpecGrowth:
    """A model that is trained as it is; its certificate, where it has one, says what growth added."""
    certificate = read_certificate(ref.path) if ref.path is not None else None
    if certificate is None:
        return SpecGrowth(architecture, ref.config)
    plan = plan_from_tree(certificate.plan)
    return SpecGrowth(architecture, ref.config, added_layers(plan), only_adds_layers(plan))
