"""What [[stages]] must say: each by itself, one after another, and each as a job of its own.

Owns these checks. Everything that is refused for a job is refused for a stage, under the stage's keys. Must not know
models: whether a size is above the model's own is checked where the model is at hand (`engine.advise.spec_growth`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.jobs.spec_conflict import conflict
from engine.jobs.spec_growth import LATER_STAGE_FIELDS, OVERRIDES, SIZES, STOP_OVERRIDES, StageSection
from engine.jobs.spec_section import Task
from engine.units import parse_count

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

WHOLE_TASKS = "full, new_blocks, new_coordinates or qlora_grown"
_ENDS = ("max_steps", "max_tokens")


def check_stages(spec: JobSpec) -> None:
    """Raises EngineError `spec.conflict`, `spec.no_growth`, or what a stage as a job is refused for."""
    _check_job(spec)
    _check_shrinking(spec.stages)
    for number, stage in enumerate(spec.stages, 1):
        _check_stage(spec, number, stage)
        _check_weights(spec, number, stage)
    for number, stage in enumerate(spec.stages, 1):
        _check_as_job(spec, number, stage)
    _check_used(spec)


def _check_job(spec: JobSpec) -> None:
    if spec.task.trains_adapter:
        raise conflict(
            f'[[stages]] grow and train whole weights; task = "{spec.task.value}" trains an adapter.',
            f"Set task to {WHOLE_TASKS}.",
            key="task",
        )
    if spec.expansion.grows:
        raise conflict(
            "[expansion] and [[stages]] both say how to grow.",
            "Name the sizes in the stages; [expansion] then holds seed, type, shard size and proof of all.",
            key="expansion",
        )
    if spec.training.max_tokens and spec.training.max_steps:
        raise conflict(
            "training.max_tokens and training.max_steps both say when a stage ends.",
            "Leave one of them out.",
            key="training.max_tokens",
        )


def _check_stage(spec: JobSpec, number: int, stage: StageSection) -> None:
    task, where = stage.task or spec.task, f"stages[{number}]"
    if task.trains_adapter:
        raise conflict(
            f'{where}.task is "{task.value}", which trains an adapter; a stage trains whole weights.',
            f"Set it to expand, {WHOLE_TASKS}.",
            key=f"{where}.task",
        )
    if task is Task.EXTEND:
        raise conflict(
            f'{where}.task is "extend", which is a job of its own.',
            'Extend first (task = "extend"), then use the folder it leaves as model.source.',
            key=f"{where}.task",
        )
    if task is Task.EXPAND and not stage.grows:
        raise EngineError(
            "spec.no_growth",
            f"{where} neither grows nor trains.",
            next_step="Give it sizes to grow to, or a task that trains.",
            key=where,
        )
    if not task.trains:
        own = next((name for name in LATER_STAGE_FIELDS if getattr(stage, name) is not None), None)
        if own is not None:
            raise conflict(
                f"{where}.{own} is about training, but {where} only grows the model.",
                f"Leave it out, or set {where}.task to {WHOLE_TASKS}.",
                key=f"{where}.{own}",
            )
    if all(getattr(stage, name) for name in _ENDS):
        raise conflict(
            f"{where}.max_tokens and {where}.max_steps both say when the stage ends.",
            "Leave one of them out.",
            key=f"{where}.max_tokens",
        )
    if stage.max_length is not None and not spec.streams and stage.max_length > spec.data.max_length:
        raise conflict(
            f"{where}.max_length = {stage.max_length} is above data.max_length = {spec.data.max_length}, to which the "
            "rows are cut.",
            f"Raise data.max_length to {stage.max_length}.",
            key=f"{where}.max_length",
        )


def _check_weights(spec: JobSpec, number: int, stage: StageSection) -> None:
    if stage.weights is None:
        return
    where, names = f"stages[{number}].weights", [source.name for source in spec.sources]
    unknown = next((name for name in stage.weights if name not in names), None)
    if unknown is not None:
        raise conflict(
            f'{where} names "{unknown}", which no source is called.',
            f"There are: {', '.join(names)}." if names else "Add [[sources]] with name and path.",
            key=where,
        )
    if not any(stage.weights.values()):
        raise conflict(
            f"{where} sum to zero: the stage would have nothing to train on.",
            "Give at least one source a weight above 0.",
            key=where,
        )


def _check_shrinking(stages: Iterable[StageSection]) -> None:
    """A stage grows what the one before it made. A size that follows from a number of parameters is known only with
    the model."""
    largest: dict[str, tuple[float, int]] = {}
    for number, stage in enumerate(stages, 1):
        asked = {name: float(getattr(stage, name)) for name in SIZES if getattr(stage, name)}
        if stage.to and stage.to[-1] not in "xX":
            asked["to"] = float(parse_count(stage.to)) if "e" not in stage.to.lower() else float(stage.to)
        elif stage.to and float(stage.to[:-1] or 0) < 1:
            raise _shrinks(number, "to", stage.to, "that is less than it has")
        for name, size in asked.items():
            before, earlier = largest.get(name, (0.0, 0))
            if size < before:
                raise _shrinks(number, name, getattr(stage, name), f"stages[{earlier}] grew it beyond that")
            largest[name] = (size, number)


def _shrinks(number: int, name: str, size: object, why: str) -> EngineError:
    said = f'"{size}"' if name == "to" else size
    return conflict(
        f"stages[{number}].{name} = {said} would shrink the model: {why}.",
        "Growth takes nothing away: sizes rise from stage to stage, or are left out.",
        key=f"stages[{number}].{name}",
    )


def _check_as_job(spec: JobSpec, number: int, stage: StageSection) -> None:
    """What a job is refused for, in the stage's own keys; what any stage of this job would be refused for in the
    job's."""
    try:
        spec.of_stage(stage)
    except EngineError as error:
        if _is_the_jobs(spec, error):
            raise
        words = [_in_stage(text, number, stage) for text in (error.what, error.cause, error.next_step)]
        what = words[0] if f"stages[{number}]" in words[0] else f"stages[{number}]: {words[0]}"
        key = _in_stage(error.key, number, stage) or f"stages[{number}]"
        raise EngineError(error.code, what, cause=words[1], next_step=words[2], key=key) from error


def _is_the_jobs(spec: JobSpec, error: EngineError) -> bool:
    try:
        spec.of_stage(type(spec.stages[0])())
    except EngineError as other:
        return other.what == error.what
    return False


def _in_stage(text: str, number: int, stage: StageSection) -> str:
    """The names of keys that the stage sets by itself, as they are called there."""
    where = f"stages[{number}]"
    renamed = {f"training.{name}": name for name in OVERRIDES}
    renamed |= {f"stop.{name}": f"stop_{name}" for name in STOP_OVERRIDES}
    renamed |= {f"expansion.{name}": name for name in (*SIZES, "to", "operators")}
    renamed |= {"data.max_length": "max_length", "sources[1].weight": "weights", "task": "task"}
    for key, own in renamed.items():
        if getattr(stage, own) in (None, 0, "", ()):
            continue
        pattern = r"^task$|\btask(?= = )" if key == "task" else rf"(?<![\w.]){re.escape(key)}\b"
        text = re.sub(pattern, f"{where}.{own}", text)
    return text


def _check_used(spec: JobSpec) -> None:
    """What [training] says for all stages must mean something to one of them."""
    jobs = [job for job in spec.staged() if job.task.trains]
    training, plain = spec.training, type(spec.training)()
    for name, needs in _CONDITIONAL.items():
        value = getattr(training, name)
        own = any(getattr(stage, name) is not None for stage in spec.stages)
        if value != getattr(plain, name) and not own and all(getattr(job.training, name) != value for job in jobs):
            raise conflict(
                f"training.{name} is {needs}, and no stage is one.",
                f"Leave training.{name} out, or set it in the stage that it is for.",
                key=f"training.{name}",
            )


_CONDITIONAL = {
    "decay_ratio": 'for schedule = "wsd"',
    "final_rate_ratio": "for rates that fall (cosine, linear, wsd)",
    "trainable": 'for stages with task = "full"',
    "ramp_ratio": "for batches that grow (ramp_from)",
}
