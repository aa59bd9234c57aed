"""The growth in a spec as the estimates need it: which model is trained in the end, and how much of it is new.

Owns following a spec's [expansion] or [[stages]] from the model it starts with. Must not know memory or machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.advise.grown import added_layers, only_adds_layers
from engine.advise.growth_plan import Shape, architecture_after, plan_growth
from engine.estimate.workload import Method
from engine.expansion.asked import source_of
from engine.expansion.certificate import read_certificate
from engine.expansion.packed import refuse_run
from engine.expansion.plan_io import plan_from_tree
from engine.jobs.spec import JobSpec, Task
from engine.models.architecture import Architecture
from engine.models.source import ModelRef


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

    def method(self, task: Task) -> Method:
        """Which parameters learn; frozen 4-bit weights are counted as if they had 16 bits."""
        blocks = task is Task.NEW_BLOCKS or (task is Task.QLORA_GROWN and self.only_layers)
        return Method.NEW_BLOCKS if blocks and self.new_layers else Method.FULL


def growth_of(spec: JobSpec, ref: ModelRef, architecture: Architecture) -> SpecGrowth | None:
    """None for a job that trains an adapter. Raises EngineError `expansion.*` when the model cannot grow like that."""
    if spec.task.trains_adapter:
        return None
    if not spec.grows:
        return _grown_before(ref, architecture)
    source = source_of(ref, architecture)
    refuse_run(source.config, ref.name)
    shape = Shape(ref.name, source)
    layers, only, exact, written = 0, True, True, 0.0
    warnings: list[str] = []
    for stage in spec.staged():
        if not stage.expansion.grows:
            continue
        growth = plan_growth(stage.expansion, shape)
        plan = growth.choice.plan
        architecture, shape = architecture_after(growth, architecture), growth.after
        layers += added_layers(plan)
        only = only and only_adds_layers(plan)
        exact = exact and growth.choice.exact
        written += growth.choice.disk_bytes
        warnings += growth.checked.warnings
    return SpecGrowth(architecture, shape.source.config, layers, only, exact, tuple(dict.fromkeys(warnings)), written)


def _grown_before(ref: ModelRef, architecture: Architecture) -> SpecGrowth:
    """A model that is trained as it is; its certificate, where it has one, says what growth added."""
    certificate = read_certificate(ref.path) if ref.path is not None else None
    if certificate is None:
        return SpecGrowth(architecture, ref.config)
    plan = plan_from_tree(certificate.plan)
    return SpecGrowth(architecture, ref.config, added_layers(plan), only_adds_layers(plan))
