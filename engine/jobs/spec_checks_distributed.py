"""What [distributed] must say together with the rest of a job.

Owns these checks; each names the key and the way out. Must not know cards: how many there are is looked at before a
start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.jobs.spec_conflict import conflict
from engine.jobs.spec_context import ContextSection
from engine.jobs.spec_section import Task

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

_COPIED = (Task.NEW_BLOCKS, Task.NEW_COORDINATES, Task.QLORA_GROWN)
"""Their matrices are partly frozen or partly new, entry by entry, and are not divided."""


def check_distributed(spec: JobSpec) -> None:
    """Of a job without stages, or of one stage. Raises EngineError `spec.conflict`."""
    section = spec.distributed
    if section.cpu_offload and (section.world == 1 or section.strategy != "fsdp2"):
        raise conflict(
            'distributed.cpu_offload needs strategy = "fsdp2" and more than one process.',
            'Set distributed.strategy = "fsdp2" and distributed.processes, or distributed.cpu_offload = false.',
            "What waits in host RAM are shards.",
            key="distributed.cpu_offload",
        )
    if section.world == 1:
        return
    if not spec.task.trains:
        raise conflict(
            f'distributed.{_field(spec)} asks for {section.world} processes; task = "{spec.task.value}" has one.',
            "Leave [distributed] out.",
            key=f"distributed.{_field(spec)}",
        )
    _check_share(spec)
    if section.strategy == "fsdp2":
        _check_sharded(spec)
        _check_limits(spec)


def check_stages_together(spec: JobSpec) -> None:
    """Of a job with stages. Raises EngineError `spec.conflict`."""
    if spec.distributed.world > 1 and spec.distributed.strategy == "fsdp2":
        raise conflict(
            'distributed.strategy = "fsdp2" trains jobs of one stage.',
            'Set distributed.strategy = "ddp"; or run the stages as jobs one after the other.',
            "Between stages the optimizer's moments go along as whole tensors.",
            key="distributed.strategy",
        )


def _check_share(spec: JobSpec) -> None:
    """Every process needs a sequence of every step."""
    training, world = spec.training, spec.distributed.world
    if training.tokens_per_step:
        sequences, named = max(training.tokens_per_step // spec.data.max_length, 1), "training.tokens_per_step"
    else:
        sequences, named = training.batch_size * training.gradient_accumulation, "batch_size x gradient_accumulation"
    if training.ramp_from and training.ramp_from < sequences:
        sequences, named = training.ramp_from, "training.ramp_from"
    if world > sequences:
        raise conflict(
            f"distributed.{_field(spec)} makes {world} processes, but a step has {sequences} "
            f"sequence{'s' if sequences > 1 else ''} ({named}): some would have nothing to do.",
            f"Use at most {sequences}, or make steps larger.",
            key=f"distributed.{_field(spec)}",
        )


def _check_sharded(spec: JobSpec) -> None:
    if spec.task in _COPIED:
        raise conflict(
            f'distributed.strategy = "fsdp2" divides matrices; task = "{spec.task.value}" keeps parts of them apart.',
            'Set distributed.strategy = "ddp" or "auto".',
            key="distributed.strategy",
        )
    if spec.grows:
        raise conflict(
            'distributed.strategy = "fsdp2" does not go with growth in the same job: grown parts train under "ddp".',
            'Set distributed.strategy = "ddp" or "auto"; or grow first (task = "expand"), then train that folder.',
            key="distributed.strategy",
        )
    if spec.training.optimizer.value != "adamw":
        raise conflict(
            f'distributed.strategy = "fsdp2" needs optimizer = "adamw", not "{spec.training.optimizer.value}".',
            'Set training.optimizer = "adamw"; its states are divided too, which saves more.',
            "8-bit states of bitsandbytes cannot be divided.",
            key="distributed.strategy",
        )

    if spec.context != ContextSection():
        raise conflict(
            'distributed.strategy = "fsdp2" does not go with [context].',
            'Set distributed.strategy = "ddp" or "auto"; or extend first (task = "extend"), then train that folder.',
            "Windows are trained and measured with the whole model at hand.",
            key="distributed.strategy",
        )


def _check_limits(spec: JobSpec) -> None:
    """A limit that ends the run goes back to an earlier checkpoint, which shards cannot."""
    for number, limit in enumerate(spec.retention, 1):
        if limit.action == "stop":
            raise conflict(
                f'retention[{number}].action = "stop" goes back to an earlier checkpoint, which '
                'distributed.strategy = "fsdp2" cannot.',
                'Set action = "hold", or distributed.strategy = "ddp".',
                key=f"retention[{number}].action",
            )


def _field(spec: JobSpec) -> str:
    return "processes" if spec.distributed.processes > 1 else "nodes"
