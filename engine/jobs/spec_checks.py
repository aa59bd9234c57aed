"""What the fields of a spec must say together; each refusal names the keys and the way out.

Owns the checks across sections. Must not know models or machines: what depends on them is checked before a start
(`scaler_tui.preflight`) and by the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.jobs.spec_checks_adapters import check_adapters
from engine.jobs.spec_checks_distillation import check_distillation
from engine.jobs.spec_checks_distributed import check_distributed, check_stages_together
from engine.jobs.spec_checks_evaluation import check_evaluation
from engine.jobs.spec_checks_export import check_export
from engine.jobs.spec_checks_stages import WHOLE_TASKS, check_stages
from engine.jobs.spec_checks_stream import check_mix, check_sources
from engine.jobs.spec_checks_training import check_training
from engine.jobs.spec_context_checks import check_context
from engine.jobs.spec_growth import SIZES, ExpansionSection
from engine.jobs.spec_section import Task

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec


def check_together(spec: JobSpec) -> None:
    """Raises EngineError `spec.conflict` or `spec.no_growth`."""
    _check_quantization(spec.task, spec.quantization.kind)
    check_adapters(spec)
    check_context(spec)
    check_sources(spec)
    check_evaluation(spec)
    if spec.stages:
        check_stages(spec)
        check_stages_together(spec)
    elif spec.task is Task.EXPAND and not spec.expansion.grows:
        raise EngineError(
            "spec.no_growth",
            'task = "expand" is to grow the model, but [expansion] names no size.',
            next_step='Give expansion.to = "7B", or sizes: expansion.hidden, ffn, layers, heads, kv_heads, experts.',
        )
    _check_sizes(spec.expansion)
    check_distillation(spec)
    check_export(spec)
    if not spec.stages:
        check_mix(spec)
        check_training(spec)
        check_distributed(spec)
    if spec.task.trains_adapter:
        _check_adapter_task(spec)
    elif spec.task is not Task.MIX:
        _check_whole_model_task(spec)


def _check_quantization(task: Task, kind: str) -> None:
    if task is Task.QLORA and kind == "none":
        raise EngineError(
            "spec.conflict",
            'task = "qlora" needs a quantised base, but quantization.kind is "none".',
            next_step='Set task = "lora", or quantization.kind = "nf4".',
        )
    if task is Task.LORA and kind not in ("auto", "none"):
        raise EngineError(
            "spec.conflict",
            f'task = "lora" keeps the base unquantised, but quantization.kind is "{kind}".',
            next_step='Set task = "qlora", or quantization.kind = "none".',
        )
    if task is Task.QLORA_GROWN and kind == "none":
        raise EngineError(
            "spec.conflict",
            'task = "qlora_grown" keeps the old part in 4 bits, but quantization.kind is "none".',
            next_step='Set task = "new_blocks", which freezes it unquantised, or quantization.kind = "nf4".',
        )
    if task is Task.EXTEND and kind not in ("auto", "none"):
        raise EngineError(
            "spec.conflict",
            f'task = "extend" leaves weights as they are, but quantization.kind is "{kind}".',
            next_step='Set quantization.kind = "none"; to train in 4 bits set task = "qlora".',
        )
    if task in (Task.EXPAND, Task.FULL, Task.NEW_BLOCKS, Task.NEW_COORDINATES) and kind not in ("auto", "none"):
        raise EngineError(
            "spec.conflict",
            f'task = "{task.value}" keeps every weight unquantised, but quantization.kind is "{kind}".',
            cause="Weights packed to 4 bits cannot be trained themselves: 4-bit values have no usable gradient.",
            next_step='Set task = "qlora_grown" (old part in 4 bits), or quantization.kind = "none".',
        )


def _check_sizes(section: ExpansionSection) -> None:
    named = [name for name in SIZES if name != "experts" and getattr(section, name)]
    if section.to and named:
        raise EngineError(
            "spec.conflict",
            f"expansion.to and expansion.{named[0]} are both set.",
            cause="Either the planner finds the sizes for a number of parameters, or they are named.",
            next_step=f'Leave out one: expansion.to = "", or expansion.{named[0]} = 0.',
            key="expansion.to",
        )


def _check_adapter_task(spec: JobSpec) -> None:
    if spec.expansion.grows:
        raise EngineError(
            "spec.conflict",
            f'task = "{spec.task.value}" trains an adapter beside the model as it is, but [expansion] asks for growth.',
            next_step=f'Set task to {WHOLE_TASKS}; or grow first with task = "expand", then train an adapter on that.',
        )
    training = spec.training
    if training.new_learning_rate or training.new_warmup_ratio:
        raise EngineError(
            "spec.conflict",
            f'training.new_learning_rate and new_warmup_ratio mean nothing with task = "{spec.task.value}".',
            cause="They are for parameters that growth added.",
            next_step=f"Leave them out, or set task to {WHOLE_TASKS}.",
        )


def _check_whole_model_task(spec: JobSpec) -> None:
    if spec.output.merge:
        raise EngineError(
            "spec.conflict",
            f'output.merge is for adapters; the result of task = "{spec.task.value}" is a whole model already.',
            next_step="Set output.merge = false.",
        )
    tasks = {stage.task or spec.task for stage in spec.stages} or {spec.task}
    if Task.NEW_COORDINATES in tasks and spec.training.optimizer.value != "adamw":
        raise EngineError(
            "spec.conflict",
            f'task = "new_coordinates" needs training.optimizer = "adamw", not "{spec.training.optimizer.value}".',
            cause="8-bit states share one scale per block, which keeps no old and new coordinates apart.",
            next_step='Set training.optimizer = "adamw".',
        )
