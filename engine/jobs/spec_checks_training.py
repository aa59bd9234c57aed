"""What the fields about steps, learning rate, batch and early ends must say together.

Owns these checks; each names the key and the way out. Must not know stages: of a job with stages, every stage is
checked as a job of its own (`engine.jobs.spec_checks_stages`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.jobs.spec_conflict import conflict
from engine.jobs.spec_section import Schedule, Task
from engine.jobs.spec_stop import StopSection

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec, TrainingSection

DECAY_RATIO, RAMP_RATIO = 0.2, 0.1
"""As they are when left out."""


def check_training(spec: JobSpec) -> None:
    """Of a job without stages, or of one stage. Raises EngineError `spec.conflict`."""
    _check_end(spec)
    _check_rate(spec.training)
    _check_ramp(spec)
    _check_trainable(spec)
    check_stop(spec)


def inherited(training: TrainingSection, task: Task, own: frozenset[str] | set[str]) -> dict[str, object]:
    """Values of [training] that mean nothing to a stage, set back; what the stage says by itself (`own`) stays."""
    found: dict[str, object] = {}
    if training.schedule is not Schedule.WSD:
        found["decay_ratio"] = DECAY_RATIO
    if training.schedule is Schedule.CONSTANT:
        found["final_rate_ratio"] = 0.0
    if task is not Task.FULL:
        found["trainable"] = ()
    if not training.ramp_from:
        found["ramp_ratio"] = RAMP_RATIO
    if not task.trains:
        found |= {"max_tokens": 0, "ramp_from": 0, "ramp_ratio": RAMP_RATIO}
    return {name: value for name, value in found.items() if name not in own}


def _check_end(spec: JobSpec) -> None:
    training = spec.training
    if training.max_tokens and not spec.streams:
        raise conflict(
            "training.max_tokens counts tokens of [[sources]], but there are none.",
            "Set training.max_steps or epochs, or add [[sources]] with name and path.",
            key="training.max_tokens",
        )
    if training.max_tokens and training.max_steps:
        raise conflict(
            "training.max_tokens and training.max_steps both say when to end.",
            "Leave one of them out.",
            key="training.max_tokens",
        )


def _check_rate(training: TrainingSection) -> None:
    schedule = training.schedule
    if training.decay_ratio != DECAY_RATIO and schedule is not Schedule.WSD:
        raise conflict(
            f'training.decay_ratio is for schedule = "wsd", but training.schedule is "{schedule.value}".',
            'Set training.schedule = "wsd", or leave training.decay_ratio out.',
            key="training.decay_ratio",
        )
    if training.final_rate_ratio and schedule is Schedule.CONSTANT:
        raise conflict(
            'training.final_rate_ratio is what the rate falls to, but schedule = "constant" never falls.',
            "Set training.schedule to cosine, linear or wsd, or training.final_rate_ratio = 0.",
            key="training.final_rate_ratio",
        )
    if schedule is Schedule.WSD and training.warmup_ratio + training.decay_ratio > 1:
        raise conflict(
            f"training.decay_ratio = {training.decay_ratio:g} and warmup_ratio = {training.warmup_ratio:g} sum to more "
            "than all the steps.",
            "Lower one of them; what they leave is trained at the peak.",
            key="training.decay_ratio",
        )


def _check_ramp(spec: JobSpec) -> None:
    training, full = spec.training, spec.training.batch_size * spec.training.gradient_accumulation
    if training.ramp_from and not spec.streams:
        raise conflict(
            "training.ramp_from lets the batch grow on text from [[sources]], but there are none.",
            "Leave training.ramp_from out, or add [[sources]] with name and path.",
            key="training.ramp_from",
        )
    if training.ramp_ratio != RAMP_RATIO and not training.ramp_from:
        raise conflict(
            "training.ramp_ratio says how long the batch grows, but training.ramp_from says not from where.",
            "Set training.ramp_from, the sequences of the first steps, or leave training.ramp_ratio out.",
            key="training.ramp_ratio",
        )
    if training.ramp_from > full:
        raise conflict(
            f"training.ramp_from = {training.ramp_from} is above the full batch of {full} sequences (batch_size x "
            "gradient_accumulation).",
            f"Lower training.ramp_from below {full}, or raise training.gradient_accumulation.",
            key="training.ramp_from",
        )


def _check_trainable(spec: JobSpec) -> None:
    patterns = spec.training.trainable
    if patterns and spec.task is not Task.FULL:
        raise conflict(
            f'training.trainable is for task = "full"; with task = "{spec.task.value}" the task says what learns.',
            'Set task = "full", or leave training.trainable out.',
            key="training.trainable",
        )
    if not all(pattern.strip() for pattern in patterns):
        raise conflict(
            "training.trainable has an empty pattern, which no parameter is called.",
            'Write patterns such as "*.mlp.*", or [] for every parameter.',
            key="training.trainable",
        )


def check_stop(spec: JobSpec) -> None:
    """The rules of [stop]. Raises EngineError `spec.conflict`."""
    stop, plain = spec.stop, StopSection()
    _check_evaluated(spec)
    if stop.plateau_gain != plain.plateau_gain and not stop.plateau_evaluations:
        raise conflict(
            "stop.plateau_gain is the least gain of a plateau, but stop.plateau_evaluations says not of how many.",
            "Set stop.plateau_evaluations, for example 5, or leave stop.plateau_gain out.",
            key="stop.plateau_gain",
        )
    if stop.usd and not (spec.cost.usd_per_hour or spec.cost.usd_per_kwh):
        raise conflict(
            "stop.usd ends a run that has cost so much, but nothing says what it costs.",
            "Set cost.usd_per_hour (rent) or cost.usd_per_kwh (electricity), or stop.hours instead.",
            key="stop.usd",
        )
    if 0 < stop.spike_factor <= 1:
        raise conflict(
            f"stop.spike_factor = {stop.spike_factor:g} would take every loss for a spike.",
            "Set it above 1, for example 2, or 0 to look only for losses that are no numbers.",
            key="stop.spike_factor",
        )
    if stop.spike_window != plain.spike_window and not stop.spike_factor:
        raise conflict(
            "stop.spike_window is what stop.spike_factor is measured against, and that is 0.",
            "Set stop.spike_factor, for example 2, or leave stop.spike_window out.",
            key="stop.spike_window",
        )


def _check_evaluated(spec: JobSpec) -> None:
    """Rules about the held-out loss need evaluations of one."""
    rule = "loss" if spec.stop.loss else "plateau_evaluations" if spec.stop.plateau_evaluations else ""
    if not rule:
        return
    if not spec.evaluation.every_steps:
        raise conflict(
            f"stop.{rule} looks at the held-out loss, but evaluation.every_steps is 0: it is measured only at the end.",
            "Set evaluation.every_steps, for example 50.",
            key=f"stop.{rule}",
        )
    if spec.streams and not spec.stream.heldout_share:
        raise conflict(
            f"stop.{rule} looks at the held-out loss, but stream.heldout_share = 0 sets no text aside.",
            "Set stream.heldout_share, for example 0.005.",
            key=f"stop.{rule}",
        )
    if not spec.streams and not spec.data.heldout and not spec.data.heldout_fraction:
        raise conflict(
            f"stop.{rule} looks at the held-out loss, but there are no held-out rows.",
            "Name some in data.heldout, or set data.heldout_fraction.",
            key=f"stop.{rule}",
        )
