"""Who teaches: the spec's teacher as folders on this machine, held against the student before anything is loaded.

Owns finding it and the refusals that need no weights. Must not know how it is asked or held.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.adapters.teaching import check_teaching
from engine.data.rows import EncodedRow, RowKind
from engine.data.vocabulary_map import check_ids, match_vocabularies
from engine.errors import EngineError, ExitCode
from engine.jobs.spec import JobSpec
from engine.jobs.spec_distillation import SELF, Held, Tokenizers
from engine.models.adapter import base_of_adapter, is_adapter
from engine.models.folder import check_folder
from engine.models.headers import read_headers
from engine.models.resolve import download_weights, resolve_model
from engine.models.source import ModelRef
from engine.train.attempt import Attempt
from engine.train.teacher_record import TeacherRecord, check_same_teacher

if TYPE_CHECKING:
    from engine.data.load import PreparedData


@dataclass(frozen=True, slots=True)
class FoundTeacher:
    """Whose weights are here."""

    name: str
    folder: Path
    """Of the model, or of the adapter's base."""
    adapter: Path | None
    is_own: bool
    """The student itself without its adapter: there is nothing to load."""
    vocabulary: int
    """Ids from 0 that mean the same to both; 0 where the tokenizers differ."""
    sha256: str
    parameters: int
    window: int
    """Tokens that its config promises; 0 when it does not say, and where rows are cut for it anyway."""


def find_teacher(attempt: Attempt, ref: ModelRef, rows: PreparedData) -> FoundTeacher:
    """The spec's teacher, downloaded where it is not here yet. Raises EngineError `distill.*`, `distillation.*`,
    `resume.teacher_changed`, `model.*`, `adapter.*`, `hub.*`."""
    from engine.distill.cache import teacher_sha256

    section = attempt.spec.distillation
    if attempt.company is not None:
        raise EngineError(
            "distill.one_process",
            "A teacher trains on one card; this job has several processes.",
            next_step="Leave [distributed] out, or [distillation].",
            exit_code=ExitCode.RUN_FAILED,
        )
    assert ref.path is not None
    _look_at_prompts(attempt, rows.train)
    folder, adapter = (ref.path, None) if section.teacher == SELF else _folders(attempt)
    found = read_teacher(attempt.spec, ref.path, folder, adapter, (rows.train, rows.heldout), attempt.say)
    sha256 = teacher_sha256(folder, *((adapter,) if adapter is not None else ()))
    check_same_teacher(attempt.run_dir, sha256)
    return replace(found, sha256=sha256)


def read_teacher(
    spec: JobSpec,
    student: Path,
    folder: Path,
    adapter: Path | None,
    rows: tuple[tuple[EncodedRow, ...], tuple[EncodedRow, ...]],
    say: Callable[[str], None],
) -> FoundTeacher:
    """The teacher in `folder`, `adapter` on it, held against the student and (rows it learns, held-out rows); without
    the hash of its files. Raises EngineError `distill.*`, `distillation.*`, `adapter.*`."""
    if adapter is not None:
        check_teaching(adapter, folder)
    section, (learnt, heldout) = spec.distillation, rows
    own = section.teacher == SELF
    shared = _rows_of_vocabulary(student)
    if section.tokenizers is Tokenizers.ULD:
        shared = 0
    elif not own:
        same = _shared(section.teacher, student, folder, (*learnt, *heldout), say)
        shared = min(same, shared, _rows_of_vocabulary(folder))
    window = 0
    if not own and section.tokenizers is not Tokenizers.ULD:
        window = _window(spec, folder, learnt)
    return FoundTeacher(
        name=section.teacher,
        folder=folder,
        adapter=adapter,
        is_own=own and spec.task.trains_adapter,
        vocabulary=shared,
        sha256="",
        parameters=sum(tensor.elements for tensor in read_headers(folder).tensors),
        window=window,
    )


def known_teacher(record: TeacherRecord) -> FoundTeacher | None:
    """The teacher of a run whose logits are on disk, as it was when they were found or made; its weights may be gone.
    None where the record does not say enough."""
    if record.held != Held.CACHED or record.vocabulary < 0:
        return None
    return FoundTeacher(record.name, Path(), None, False, record.vocabulary, record.sha256, record.parameters, 0)


def _folders(attempt: Attempt) -> tuple[Path, Path | None]:
    """Of the model, and of the adapter on it."""
    section = attempt.spec.distillation
    path = Path(section.teacher).expanduser()
    if is_adapter(path):
        return base_of_adapter(path), path
    attempt.phase("loading model", "finding the teacher")
    ref = resolve_model(section.teacher, revision=section.teacher_revision)
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 1 or done >= total:
            last = time.monotonic()
            attempt.phase("loading model", f"downloading the teacher {ref.repo_id}", done, total)

    found = download_weights(ref, progress)
    assert found.path is not None
    return found.path, None


def _shared(name: str, student: Path, teacher: Path, rows: tuple[EncodedRow, ...], say: Callable[[str], None]) -> int:
    """Ids that mean the same to both. Raises EngineError `distill.other_tokenizer`, `distillation.token_unknown`."""
    match = match_vocabularies(student, teacher)
    if not match.same:
        raise EngineError(
            "distill.other_tokenizer",
            f"The teacher {name} reads text as other tokens than the student.",
            cause=match.reason,
            next_step='Choose a teacher of the student\'s family, or set distillation.tokenizers = "uld".',
            exit_code=ExitCode.RUN_FAILED,
        )
    for note in match.notes:
        say(note)
    check_ids(max((max(row.input_ids) for row in rows), default=0), match)
    return match.shared


def _rows_of_vocabulary(folder: Path) -> int:
    return int(_config(folder)["vocab_size"])


def _config(folder: Path) -> dict[str, Any]:
    """Of the language model."""
    config: dict[str, Any] = dict(check_folder(folder))
    nested = config.get("text_config")
    return config | (nested if isinstance(nested, dict) else {})


def _window(spec: JobSpec, folder: Path, rows: tuple[EncodedRow, ...]) -> int:
    """Tokens; raises EngineError where a row is longer. Sources fill sequences up to data.max_length."""
    window = int(_config(folder).get("max_position_embeddings") or 0)
    most = max(stage.data.max_length for stage in spec.staged() if stage.task.trains)
    longest = most if spec.streams else min(most, max((len(row.input_ids) for row in rows), default=0))
    if 0 < window < longest:
        raise EngineError(
            "distill.window",
            f"A row has {longest:,} tokens; the teacher {spec.distillation.teacher} reads {window:,}.",
            cause="Beyond its window a teacher says nothing that could be learnt.",
            next_step=f"Lower data.max_length to {window}, or choose a teacher with a longer window.",
            exit_code=ExitCode.RUN_FAILED,
        )
    return window


def _look_at_prompts(attempt: Attempt, rows: tuple[EncodedRow, ...]) -> None:
    """Says how many rows the student cannot answer; raises EngineError where it is all."""
    if not attempt.spec.distillation.on_policy:
        return
    text = sum(row.kind is RowKind.TEXT for row in rows)
    if text == len(rows):
        raise EngineError(
            "distill.no_prompts",
            "distillation.on_policy has the student answer prompts, but all rows of the data are plain text.",
            next_step="Set distillation.on_policy = 0, or train on chat rows.",
            exit_code=ExitCode.RUN_FAILED,
        )
    if text:
        attempt.warn(
            f"{text:,} of {len(rows):,} rows are plain text, which has no prompt to answer: steps on the student's own "
            "answers leave them out."
        )
