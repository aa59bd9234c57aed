"""What [distillation] must say together with itself and the rest of a job.

Owns these checks; each names the key and the way out. Must not know models: whether tokenizers agree, widths are equal
and the teacher fits is looked at before a start (`scaler_tui.preflight`) and by the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.jobs.spec_conflict import conflict
from engine.jobs.spec_context import ContextSection
from engine.jobs.spec_distillation import SELF, DistillationSection, DistillLoss, Held, Tokenizers

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

_PLAIN = DistillationSection()


def check_distillation(spec: JobSpec) -> None:
    """Of a whole job, stages included. Raises EngineError `spec.conflict`."""
    section = spec.distillation
    if not section.distils:
        _check_without_teacher(section)
        return
    _check_job(spec)
    if section.teacher == SELF:
        _check_self(spec)
    _check_say(section)
    if section.held is Held.CACHED:
        _check_cached(spec)
    elif section.cache:
        raise conflict(
            'distillation.cache is where cached logits are kept, but distillation.held is not "cached".',
            'Set distillation.held = "cached", or leave distillation.cache out.',
            key="distillation.cache",
        )
    if section.tokenizers is Tokenizers.ULD:
        _check_uld(section)
    _check_on_policy(spec)


def _check_without_teacher(section: DistillationSection) -> None:
    changed = _changed(section, DistillationSection.__struct_fields__)
    if changed:
        raise conflict(
            f"distillation.{changed} says how to learn from a teacher, but distillation.teacher names none.",
            'Name one in distillation.teacher (a folder, a hub id, "self"), or leave [distillation] out.',
            key=f"distillation.{changed}",
        )


def _changed(section: DistillationSection, names: tuple[str, ...]) -> str:
    """The first of the fields that is not as it is when left out."""
    return next((name for name in names if getattr(section, name) != getattr(_PLAIN, name)), "")


def _check_job(spec: JobSpec) -> None:
    if not spec.needs_data:
        raise conflict(
            f'distillation.teacher is there to train with, but task = "{spec.task.value}" trains nothing.',
            "Leave [distillation] out; or set task to lora, qlora, full, new_blocks, new_coordinates or qlora_grown.",
            key="distillation.teacher",
        )
    if spec.context != ContextSection():
        raise conflict(
            "distillation.teacher does not go with [context]: a teacher reads rows in its own window.",
            'Extend first (task = "extend"), then distil into that folder; or leave [context] or [distillation] out.',
            key="distillation.teacher",
        )
    section = spec.distributed
    if section.world > 1:
        raise conflict(
            f"distillation.teacher trains on one card, but [distributed] asks for {section.world} processes.",
            "Leave [distributed] out, or [distillation].",
            key="distillation.teacher",
        )


def _check_self(spec: JobSpec) -> None:
    section = spec.distillation
    if section.teacher_revision:
        raise conflict(
            'distillation.teacher_revision is of a teacher from the hub; distillation.teacher is "self".',
            "Leave it out; model.revision says which model this one is.",
            key="distillation.teacher_revision",
        )
    if spec.task.trains_adapter and section.held not in (Held.AUTO, Held.RESIDENT):
        raise conflict(
            f'distillation.held = "{section.held.value}" is for a teacher of its own; "self" is the model that is '
            "there already, with its adapter switched off.",
            "Leave distillation.held out.",
            key="distillation.held",
        )
    if section.tokenizers is Tokenizers.ULD:
        raise conflict(
            'distillation.tokenizers = "uld" is for a teacher with another tokenizer; "self" has the same.',
            "Leave distillation.tokenizers out.",
            key="distillation.tokenizers",
        )


def _check_say(section: DistillationSection) -> None:
    """Settings that would mean nothing."""
    if section.ce_weight == 1.0 and not section.hidden_weight:
        raise conflict(
            "distillation.ce_weight = 1 leaves everything to the labels: the teacher would have no say.",
            "Lower it, for example to 0.5; or leave [distillation] out.",
            key="distillation.ce_weight",
        )
    if section.beta != _PLAIN.beta and section.loss is not DistillLoss.JSD:
        raise conflict(
            f'distillation.beta is for loss = "jsd", but distillation.loss is "{section.loss.value}".',
            'Set distillation.loss = "jsd", or leave distillation.beta out.',
            key="distillation.beta",
        )
    if section.missing_mass != _PLAIN.missing_mass and not section.top_k and section.held is not Held.CACHED:
        raise conflict(
            "distillation.missing_mass is about what lies outside distillation.top_k, which is 0: nothing does.",
            "Set distillation.top_k, for example 64, or leave distillation.missing_mass out.",
            key="distillation.missing_mass",
        )
    if section.hidden_layers and not section.hidden_weight:
        raise conflict(
            "distillation.hidden_layers names what distillation.hidden_weight weighs, and that is 0.",
            "Set distillation.hidden_weight, for example 1.0, or leave distillation.hidden_layers out.",
            key="distillation.hidden_layers",
        )
    if any(layer < 1 for layer in section.hidden_layers):
        raise conflict(
            f"distillation.hidden_layers has {min(section.hidden_layers)}; layers are counted from 1.",
            "Name the student's layers, or leave it out for the last one.",
            key="distillation.hidden_layers",
        )


def _check_cached(spec: JobSpec) -> None:
    section = spec.distillation
    live = 'Set distillation.held = "auto", "resident", "nf4" or "offloaded", which ask the teacher itself'
    if section.hidden_weight:
        raise conflict(
            "distillation.hidden_weight compares hidden states, but only top logits are cached.",
            f"{live}; or set distillation.hidden_weight = 0.",
            key="distillation.hidden_weight",
        )
    if section.on_policy:
        raise conflict(
            "distillation.on_policy learns on answers written during the run: no logits of them can be cached before.",
            f"{live}; or set distillation.on_policy = 0.",
            key="distillation.on_policy",
        )
    if spec.streams:
        raise conflict(
            'distillation.held = "cached" is for rows, which are read again and again; text from [[sources]] is read '
            "once, and its logits would take a hundred times its room.",
            f"{live}.",
            key="distillation.held",
        )


def _check_uld(section: DistillationSection) -> None:
    if section.held is Held.CACHED:
        raise conflict(
            'distillation.tokenizers = "uld" asks about the teacher\'s own tokens; cached logits are of others.',
            'Set distillation.held = "auto", "resident", "nf4" or "offloaded".',
            key="distillation.held",
        )
    for name, why in (
        ("hidden_weight", "hidden states are of other tokens"),
        ("on_policy", "answers are written in the student's tokens only"),
        ("top_k", "all sorted probabilities are compared"),
        ("missing_mass", "all sorted probabilities are compared"),
        ("loss", "its loss is the distance of sorted probabilities"),
    ):
        if _changed(section, (name,)):
            raise conflict(
                f'distillation.{name} does not go with distillation.tokenizers = "uld": {why}.',
                f"Leave distillation.{name} out; or choose a teacher with the student's tokenizer.",
                key=f"distillation.{name}",
            )


def _check_on_policy(spec: JobSpec) -> None:
    section = spec.distillation
    if section.on_policy and spec.streams:
        raise conflict(
            "distillation.on_policy lets the student answer prompts, but text from [[sources]] has none.",
            "Train on rows (data.train), or set distillation.on_policy = 0.",
            key="distillation.on_policy",
        )
    if section.on_policy and spec.data.train_on.value == "all":
        raise conflict(
            'distillation.on_policy lets the student answer prompts, but with data.train_on = "all" rows have none: '
            "every token is learnt.",
            'Set data.train_on = "completions" or "last", or distillation.on_policy = 0.',
            key="distillation.on_policy",
        )
    if section.on_policy and section.ce_weight == 1.0:
        raise conflict(
            "distillation.ce_weight = 1 gives the teacher's logits no weight on the data, but on the student's own "
            "answers they are all there is: the loss would be another one from step to step.",
            "Lower it, for example to 0.5; or set distillation.on_policy = 0.",
            key="distillation.ce_weight",
        )
    idle = _changed(section, ("rollout_tokens", "rollout_temperature"))
    if idle and not section.on_policy:
        raise conflict(
            f"distillation.{idle} is about answers that the student writes, but distillation.on_policy is 0.",
            f"Set distillation.on_policy, for example 0.25, or leave distillation.{idle} out.",
            key=f"distillation.{idle}",
        )
