"""[context] of a spec against the model it names: whether it can be carried out, and from which window to which.

Owns these refusals, made before a start and again by the worker. Must not know torch, nor run directories.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.context.certificate import CERTIFICATE_NAME, read_certificate
from engine.context.factors import read_factors
from engine.context.method import Options
from engine.context.planner import plan_context, read_rotaries, read_window
from engine.context.portability import portability
from engine.errors import EngineError, ExitCode
from engine.extension.losses import lost_words, unasked_choice
from engine.jobs.spec import JobSpec, Task
from engine.jobs.spec_context import AUTO
from engine.models.config import CONFIG_NAME, read_json_object


@dataclass(frozen=True, slots=True)
class Reach:
    """Two windows, tokens."""

    original: int
    """Before the job; before the last extension, where the model came extended."""
    target: int
    notes: tuple[str, ...] = ()
    """What the user should know of the method, and which programs lose it."""


def options_of(spec: JobSpec) -> Options:
    """What the spec sets of its method. Raises EngineError `context.factors`."""
    options = Options(theta=spec.context.theta or None)
    if spec.context.factors:
        options = read_factors(Path(spec.context.factors)).applied(options)
    return options


def reach_of(spec: JobSpec, folder: Path) -> Reach:
    """From where to where the job goes with the model in `folder`.

    Raises EngineError `context.*` for models, targets and methods that do not go together, `train.window` for windows
    and lengths that do not.
    """
    context = spec.context
    if not context.extends:
        reach = Reach(*extended_before(folder))
    else:
        config = read_json_object(folder / CONFIG_NAME, code="model.config_damaged", what="a model config")
        if context.method == AUTO:
            _, words = unasked_choice(config, context.length)
            reach = Reach(read_window(config), context.length, (words,) if words else ())
        else:
            plan = plan_context(config, context.length, context.method, options_of(spec), spec.model.source)
            reach = Reach(plan.original, plan.target, (*plan.notes, *lost_words(portability(config, plan))))
    check_reach(spec, reach)
    return reach


def extended_before(folder: Path) -> tuple[int, int]:
    """(window before, present window) of a model that came extended; equal where it did not.

    Before its last extension, as its certificate says; without one before all that its config tells of (YaRN, llama3).
    """
    config = read_json_object(folder / CONFIG_NAME, code="model.config_damaged", what="a model config")
    target = read_window(config)
    original = _certified(folder)
    if original is None:
        rotaries = read_rotaries(config)
        original = min((rotary.length for rotary in rotaries if rotary.present is not None), default=target)
    return original, target


def _certified(folder: Path) -> int | None:
    try:
        certificate = read_certificate(folder)
    except msgspec.MsgspecError as error:
        raise EngineError(
            "context.certificate",
            f"{folder / CERTIFICATE_NAME} cannot be read.",
            cause=str(error),
            next_step="Extend the model again, or remove that file.",
        ) from error
    return certificate.plan.original if certificate is not None else None


def check_reach(spec: JobSpec, reach: Reach) -> None:
    """Windows and lengths against the model. Raises EngineError `train.window`."""
    context, longest = spec.context, spec.data.max_length
    if spec.task is Task.EXTEND:
        return
    if longest > reach.target:
        raise _wrong(
            f"data.max_length = {longest:,} is longer than the window of {reach.target:,} tokens.",
            f"Set data.max_length = {reach.target}, or context.length to a longer window.",
        )
    if context.window != "full" and reach.target <= reach.original:
        raise _wrong(
            f'context.window = "{context.window}" is for a window that was or is made longer; this model has its '
            f"original one of {reach.original:,} tokens.",
            'Set context.length, or context.window = "full".',
        )
    short = context.train_length or reach.original
    if context.window == "mixed" and short > reach.original:
        raise _wrong(
            f"context.train_length = {short:,} is longer than the original window of {reach.original:,} tokens, whose "
            "positions short sequences are trained with.",
            f"Set context.train_length = {reach.original}, or 0 for just that.",
        )
    if context.window == "mixed" and longest <= short:
        raise _wrong(
            f"data.max_length = {longest:,} leaves nothing longer than the short sequences of {short:,} tokens.",
            f"Raise data.max_length, up to {reach.target}.",
        )


def _wrong(what: str, next_step: str) -> EngineError:
    return EngineError("train.window", what, next_step=next_step, exit_code=ExitCode.BAD_INPUT)
