"""What [context] and the switches for long sequences must say together; each refusal names the keys and the way out.

Owns these checks. Must not know models: whether a target is longer than the model's own window, and whether a method
suits it, is checked before a start and by the worker.
"""

from __future__ import annotations

import shlex
from itertools import pairwise
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.jobs.spec_context import SEARCHED, ContextSection
from engine.jobs.spec_section import Task

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

_ADAPTERS = "lora or qlora"


def check_context(spec: JobSpec) -> None:
    """Raises EngineError `spec.conflict`."""
    _check_switches(spec)
    _check_lengths_measured(spec)
    if spec.task is Task.EXTEND:
        _check_extend(spec)
    if spec.context == ContextSection():
        return
    _check_task(spec)
    _check_method(spec.context, spec.model.source)
    _check_window(spec)
    _check_lengths(spec)
    _check_gate(spec)


def _conflict(what: str, way_out: str, cause: str = "") -> EngineError:
    return EngineError("spec.conflict", what, cause=cause, next_step=way_out)


def _check_switches(spec: JobSpec) -> None:
    training = spec.training
    if training.offload_activations and not training.gradient_checkpointing:
        raise _conflict(
            "training.offload_activations needs training.gradient_checkpointing.",
            "Set training.gradient_checkpointing = true, or training.offload_activations = false.",
            "What waits in host RAM is what checkpointed layers keep: their inputs.",
        )
    if training.tokens_per_step and training.gradient_accumulation > 1:
        raise _conflict(
            "training.tokens_per_step and training.gradient_accumulation both say when a step is complete.",
            "Set training.gradient_accumulation = 1, or training.tokens_per_step = 0.",
        )
    if training.tokens_per_step and spec.task.trains_model:
        raise _conflict(
            f'training.tokens_per_step is for adapters; task = "{spec.task.value}" trains whole weights.',
            f"Set training.tokens_per_step = 0 and training.gradient_accumulation, or set task to {_ADAPTERS}.",
        )


def _check_lengths_measured(spec: JobSpec) -> None:
    if spec.evaluation.lengths and not (spec.task.trains_adapter or spec.task is Task.EXTEND):
        raise _conflict(
            f'evaluation.lengths is for adapters and task = "extend", not for task = "{spec.task.value}".',
            "Leave it out ([]) and measure the folder that the job leaves: scaler-wizard eval FOLDER.",
        )


def _check_extend(spec: JobSpec) -> None:
    if not spec.context.extends:
        raise _conflict(
            'task = "extend" is to make the window longer, but context.length says no target.',
            "Set context.length, for example context.length = 32768.",
        )
    if spec.stages:
        raise _conflict(
            'task = "extend" makes the window longer in one step, but there are [[stages]].',
            "Leave out the stages; grow and train in jobs of their own, from the folder that this one leaves.",
        )
    if spec.context.window != "full" or spec.context.curriculum:
        name = "curriculum" if spec.context.window == "full" else "window"
        raise _conflict(
            f'context.{name} is about training; task = "extend" trains nothing.',
            f"Leave it out, or set task to {_ADAPTERS}.",
        )


def _check_task(spec: JobSpec) -> None:
    if spec.expansion.grows or any(stage.grows for stage in spec.stages):
        raise _conflict(
            "[expansion] and [context] both change the model in one job.",
            'Extend first (task = "extend"), then grow the folder it leaves; or grow first, then extend the result.',
            "A proof that growth changed nothing cannot hold for a model whose positions changed as well.",
        )
    if spec.task.trains_adapter or spec.task is Task.EXTEND:
        return
    raise _conflict(
        f'[context] is for adapters; task = "{spec.task.value}" is not one.',
        f'Set task to {_ADAPTERS}; or extend first (task = "extend"), then use the folder it leaves as model.source.',
    )


def _check_method(context: ContextSection, model: str) -> None:
    method = context.method
    if method == "dynamic":
        raise _conflict(
            'context.method = "dynamic" can be neither trained nor exported.',
            'Set context.method = "yarn", "ntk" or "auto".',
            "Its frequencies change with the length at hand, and readers take the new window for the old one.",
        )
    if context.factors and method not in SEARCHED:
        raise _conflict(
            f'context.factors is for {" and ".join(SEARCHED)}, but context.method is "{method}".',
            'Set context.method = "longrope2", or context.factors = "".',
        )
    if method in SEARCHED and context.extends and not context.factors:
        raise _conflict(
            f'context.method = "{method}" needs searched factors, but context.factors is empty.',
            f"Search first: scaler-wizard extend {shlex.quote(model)} --context {context.length} --method {method} "
            '--race --log factors.jsonl; then set context.factors = "factors.jsonl". Or set context.method = "auto".',
        )
    if context.theta and method != "abf":
        raise _conflict(
            f'context.theta is the base of method "abf", but context.method is "{method}".',
            'Set context.method = "abf", or context.theta = 0.',
        )


def _check_window(spec: JobSpec) -> None:
    context, longest = spec.context, spec.data.max_length
    if context.window == "full":
        if context.train_length:
            raise _conflict(
                'context.train_length is for window = "pose" and "mixed"; with "full" sequences have data.max_length.',
                'Set context.train_length = 0, or context.window = "pose".',
            )
        return
    if context.train_length > longest or (context.window == "mixed" and context.train_length == longest):
        raise _conflict(
            f"context.train_length = {context.train_length} leaves no longer sequence: data.max_length is {longest}.",
            "Lower context.train_length, or raise data.max_length.",
        )
    if context.train_length and context.train_length < 2 * context.pose_chunks and context.window == "pose":
        raise _conflict(
            f"{context.train_length} tokens (context.train_length) are too few for {context.pose_chunks} pieces "
            "(context.pose_chunks).",
            "Raise context.train_length, or lower context.pose_chunks.",
        )


def _check_lengths(spec: JobSpec) -> None:
    context, longest = spec.context, spec.data.max_length
    if context.extends and spec.task.trains and longest > context.length:
        raise _conflict(
            f"data.max_length = {longest} is longer than the new window, context.length = {context.length}.",
            "Raise context.length, or lower data.max_length.",
        )
    if not context.curriculum:
        return
    if context.window != "full":
        raise _conflict(
            f'context.curriculum and window = "{context.window}" both say how long sequences are.',
            'Set context.window = "full", or context.curriculum = [].',
        )
    if any(later <= earlier for earlier, later in pairwise(context.curriculum)) or context.curriculum[0] < 8:
        raise _conflict(
            f"context.curriculum = {list(context.curriculum)} must rise from length to length, from 8 tokens on.",
            "Sort it and leave out repetitions.",
        )
    if context.curriculum[-1] > longest:
        raise _conflict(
            f"context.curriculum ends at {context.curriculum[-1]} tokens, data.max_length is {longest}.",
            "Raise data.max_length to the longest of them.",
        )


def _check_gate(spec: JobSpec) -> None:
    if not spec.context.max_short_loss or not spec.task.trains:
        return
    if not spec.evaluation.every_steps:
        raise _conflict(
            "context.max_short_loss is looked at in evaluations, but evaluation.every_steps is 0.",
            "Set evaluation.every_steps, for example 20, or context.max_short_loss = 0.",
        )
    if not spec.data.base_text:
        raise _conflict(
            "context.max_short_loss is measured on data.base_text, but that is empty.",
            'Set data.base_text = "general" or name a file, or set context.max_short_loss = 0.',
        )
