"""What is looked at of a spec's teacher before a start: whether it is here and reads the same tokens, what it keeps.

Owns those refusals and notes. Must not know memory (the estimate counts the teacher), nor start anything.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from engine.units import format_bytes, format_count

if TYPE_CHECKING:
    from engine.hardware.machine import Machine
    from engine.jobs.spec import JobSpec
    from engine.models.architecture import Architecture
    from engine.models.source import ModelRef

KEY = "distillation.teacher"


@dataclass(frozen=True, slots=True)
class Pupil:
    """Who is taught."""

    ref: ModelRef
    base: Architecture
    """As it is before the job."""
    trained: Architecture
    """As it is when it learns: grown where the job grows it."""
    trained_tokens: float
    """Of one pass over the rows; 0 where they were not counted."""
    longest_row: int = 0
    """Tokens that it has at least before it is cut; 0 where rows were not counted."""


def teacher_notes(spec: JobSpec, pupil: Pupil, machine: Machine) -> list[str]:
    """What is to be said before the start; [] without a teacher.

    Raises EngineError `distillation.*`, `model.*`, `hub.*`, `disk.full`, with the key of the spec.
    """
    from engine.advise.taught import teacher_shape
    from engine.jobs.spec_distillation import SELF

    section = spec.distillation
    if not section.distils:
        return []
    shape = teacher_shape(section, pupil.base)
    _check_hidden(spec, pupil.trained, shape)
    notes = []
    if section.teacher != SELF:
        ref = _teacher_files(spec)
        assert ref.path is not None
        notes += [*ref.notes, *_tokenizer_notes(spec, pupil.ref, ref.path), *_window_notes(spec, pupil, shape)]
        if ref.needs_download:
            notes.append(_download_note(ref, shape, pupil, machine))
    if section.held == "cached" and pupil.trained_tokens:
        words = min(shape.vocab_size, pupil.trained.vocab_size)
        notes.append(_cache_note(spec, pupil.trained_tokens, words))
    return notes


def _teacher_files(spec: JobSpec) -> ModelRef:
    """Config and tokenizer of the teacher, or of an adapter's base."""
    from engine.adapters.teaching import check_teaching
    from engine.advise.taught import base_of
    from engine.models.adapter import is_adapter
    from engine.models.resolve import resolve_model

    section = spec.distillation
    folder = Path(section.teacher).expanduser()
    try:
        named = base_of(section.teacher)
        ref = resolve_model(named, revision=section.teacher_revision)
        if ref.path is None and ref.repo_id:
            ref = resolve_model(ref.repo_id, revision=section.teacher_revision or "main")
        if is_adapter(folder) and ref.path is not None and ref.has_weights:
            check_teaching(folder, ref.path)
    except EngineError as error:
        raise EngineError(
            error.code,
            f"The teacher cannot be used: {error.what}",
            cause=error.cause,
            next_step=error.next_step,
            exit_code=error.exit_code,
            key=KEY,
        ) from error
    if ref.path is None or (not ref.has_weights and not ref.repo_id):
        raise EngineError(
            "distillation.no_weights",
            f"'{section.teacher}' has no weights to teach with.",
            cause="Only its shape is known." if ref.path is None else f"{ref.path} has no safetensors files.",
            next_step="Give a folder with weights or a hub id in distillation.teacher.",
            key=KEY,
        )
    return ref


def _tokenizer_notes(spec: JobSpec, student: ModelRef, teacher: Path) -> list[str]:
    from engine.data.vocabulary_map import match_vocabularies
    from engine.jobs.spec_distillation import Tokenizers

    section = spec.distillation
    assert student.path is not None
    match = match_vocabularies(student.path, teacher)
    across = section.tokenizers is Tokenizers.ULD
    if match.same:
        if across:
            return ['Both tokenizers are the same: distillation.tokenizers = "same" would teach more than "uld".']
        return [f"Tokenizers: {note}." for note in match.notes]
    if across:
        return [f"Tokenizers differ ({match.reason}): sorted probabilities are compared where both have read the same."]
    raise EngineError(
        "distillation.other_tokenizer",
        f"The teacher {section.teacher} reads and writes other tokens than {spec.model.source}.",
        cause=f"{match.reason[:1].upper()}{match.reason[1:]}.",
        next_step='Choose a teacher of the same family, or compare across tokenizers: distillation.tokenizers = "uld".',
        key=KEY,
    )


def _window_notes(spec: JobSpec, pupil: Pupil, teacher: Architecture) -> list[str]:
    """Raises EngineError where a row is longer than what the teacher can read."""
    from engine.jobs.spec_distillation import Tokenizers

    section, window = spec.distillation, teacher.context_length
    longest = max(stage.data.max_length for stage in spec.staged() if stage.task.trains)
    if section.tokenizers is Tokenizers.ULD or not window or longest <= window:
        return []  # across tokenizers, a row's end is left out of what is compared
    if spec.streams or min(pupil.longest_row, longest) > window:
        raise EngineError(
            "distillation.window",
            f"Rows have up to {longest:,} tokens; the teacher {section.teacher} reads {window:,}.",
            cause="Beyond its window a teacher says nothing that could be learnt.",
            next_step=f"Lower data.max_length to {window}, or choose a teacher with a longer window.",
            key=KEY,
        )
    return [
        f"The teacher reads {window:,} tokens: a row that is longer, up to data.max_length, ends the run at its start."
    ]


def _check_hidden(spec: JobSpec, student: Architecture, teacher: Architecture) -> None:
    section = spec.distillation
    if not section.hidden_weight:
        return
    if student.hidden_size != teacher.hidden_size:
        raise EngineError(
            "distillation.other_width",
            f"Hidden states cannot be compared: the student's are {student.hidden_size:,} wide, the teacher's "
            f"{teacher.hidden_size:,}.",
            next_step="Set distillation.hidden_weight = 0, or choose a teacher of equal width.",
            key="distillation.hidden_weight",
        )
    beyond = [layer for layer in section.hidden_layers if layer > student.layers]
    if beyond:
        raise EngineError(
            "distillation.no_such_layer",
            f"distillation.hidden_layers has {beyond[0]}, but the student has {student.layers} layers.",
            next_step=f"Name layers from 1 to {student.layers}, or leave it out for the last one.",
            key="distillation.hidden_layers",
        )


def _download_note(ref: ModelRef, shape: Architecture, pupil: Pupil, machine: Machine) -> str:
    """Says what will be fetched. Raises EngineError where the model cache has no room for it and for the student."""
    needed = shape.weight_bytes or 2 * shape.parameters
    before = (pupil.base.weight_bytes or 2 * pupil.base.parameters) if pupil.ref.needs_download else 0
    cache = next((disk for disk in machine.disks if disk.purpose == "models"), None)
    if cache is not None and cache.free_bytes < needed + before:
        missing = format_bytes(needed + before - cache.free_bytes)
        raise EngineError(
            "disk.full",
            f"{cache.path} has {format_bytes(cache.free_bytes)} free; the teacher {ref.repo_id} takes "
            f"{format_bytes(needed)}: {missing} are missing.",
            next_step="Free some space, or set HF_HOME to a folder on a larger disk.",
            exit_code=ExitCode.DOES_NOT_FIT,
            key=KEY,
        )
    return f"The teacher {ref.repo_id} is downloaded first: {format_bytes(needed)}."


def _cache_note(spec: JobSpec, tokens: float, vocabulary: int) -> str:
    """How large the logits will be, and what is free. They may be there already: a full disk is no refusal yet."""
    from engine.estimate.surroundings import CACHED_LOGITS, cached_token_bytes
    from engine.paths import teachers_dir

    section = spec.distillation
    kept = min(section.top_k or CACHED_LOGITS, vocabulary)
    needed = cached_token_bytes(kept) * tokens
    home = teachers_dir(section.cache)
    there = next(folder for folder in (home, *home.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    size = f"{format_bytes(needed)} for {format_count(tokens)} trained tokens, {kept} of the likeliest each"
    short = f"; {format_bytes(needed - free)} are missing unless they are there already" if needed > free else ""
    return f"The teacher's logits take {size}, in {home}: {format_bytes(free)} are free{short}."
