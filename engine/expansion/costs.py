"""What a larger model costs to train: memory on one device, and hours when a device is named.

Owns which way of training a plan is estimated with. Must not know how plans are chosen. Added layers are trained alone,
the old ones frozen (LLaMA-Pro); any other growth puts new parameters inside old matrices, so everything is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.estimate.cards import DeviceSpeed
from engine.estimate.estimate import Estimate
from engine.estimate.memory import estimate_memory
from engine.estimate.speed import RunPlan, estimate_hours
from engine.estimate.workload import DeviceKind, Method, OptimizerKind, Workload
from engine.expansion.grown import grown_architecture
from engine.expansion.plan import ExpansionPlan
from engine.models.architecture import Architecture

TRAINING_TOKENS = 1e9
"""The least that published growth needed to show anything. Source: `profiles/approaches.toml`."""


@dataclass(frozen=True, slots=True)
class TrainingQuestion:
    """How the larger model would be trained, and on what."""

    architecture: Architecture
    """Of the source."""
    sequence: int = 1024
    batch: int = 1
    accumulation: int = 16
    tokens: float = TRAINING_TOKENS
    device: DeviceSpeed | None = None
    free_bytes: float = 0.0
    """On the device; 0 when unknown."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Memory and hours of training; None where nothing was asked."""

    method: str = ""
    """ "new blocks" or "full"."""
    memory: Estimate | None = None
    hours: Estimate | None = None

    def fits(self, free_bytes: float) -> bool:
        """Whether the likely memory is free."""
        return self.memory is None or not free_bytes or self.memory.likely <= free_bytes


def training_costs(plan: ExpansionPlan, parameters: int, question: TrainingQuestion | None) -> Costs:
    """Memory and hours of the gentlest training that reaches every new parameter."""
    if question is None:
        return Costs()
    work = workload_of(plan, parameters, question)
    hours = None
    if question.device is not None:
        hours = estimate_hours(work, question.device, RunPlan(tokens=question.tokens))
    return Costs(work.method.value, estimate_memory(work), hours)


def workload_of(plan: ExpansionPlan, parameters: int, question: TrainingQuestion) -> Workload:
    """The training job as the estimates see it."""
    grown = grown_architecture(question.architecture, plan.after, parameters, plan.target_family)
    only_layers = set(plan.operators) == {"layers"}
    on_cpu = question.device is not None and question.device.is_cpu
    return Workload(
        architecture=grown,
        method=Method.NEW_BLOCKS if only_layers else Method.FULL,
        batch=question.batch,
        sequence=min(question.sequence, grown.context_length or question.sequence),
        checkpointing=True,
        accumulation=question.accumulation,
        optimizer=OptimizerKind.ADAMW if only_layers or on_cpu else OptimizerKind.ADAMW_8BIT,
        trained_layers=plan.after.layers - plan.before.layers if only_layers else 0,
        compute_bytes=4 if on_cpu else 2,
        device=DeviceKind.CPU if on_cpu else DeviceKind.GPU,
    )
