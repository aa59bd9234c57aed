"""What a run keeps of its teacher between attempts, and what its card says of it.

Owns `teacher.json` of a run directory. Must not know torch, nor how a teacher is asked.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import msgspec

from engine.errors import EngineError, ExitCode
from engine.jobs import card, layout
from engine.jobs import events as ev
from engine.jobs.journal import JournalTail
from engine.jobs.spec import JobSpec
from engine.jobs.spec_distillation import DistillationSection, DistillLoss, Tokenizers

RECORD = "teacher.json"


class TeacherRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Written once it is ready for the first time; a resumed run asks the same teacher, held in the same way."""

    name: str
    sha256: str
    """Of what it computes with."""
    held: str
    """ "resident", "nf4", "offloaded", "cached", "self"."""
    parameters: int
    task_loss: float | None = None
    exact_match: float | None = None
    cached_tokens: int = 0
    cached_bytes: int = 0
    form: str = ""
    """Of a cached one: how it was held while its logits were written, as `held`."""
    vocabulary: int = -1
    """Ids that it shares with the student: with it, what is cached can be found without the teacher. -1: not kept."""
    v: int = 1


def read_record(run_dir: Path) -> TeacherRecord | None:
    """None before the teacher was ready."""
    try:
        return msgspec.json.decode((run_dir / RECORD).read_bytes(), type=TeacherRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def write_record(run_dir: Path, record: TeacherRecord) -> None:
    """Whole or not at all."""
    layout.write_atomic(run_dir / RECORD, msgspec.json.format(msgspec.json.encode(record)))


def check_same_teacher(run_dir: Path, sha256: str) -> None:
    """Raises EngineError `resume.teacher_changed`."""
    record = read_record(run_dir)
    if record is not None and record.sha256 != sha256:
        raise EngineError(
            "resume.teacher_changed",
            f"The teacher {record.name} is not the one that the run began with.",
            cause="Going on would mix what two teachers say in one result.",
            next_step="Put its old files back, or start a new run: scaler-wizard start "
            + shlex.quote(str(run_dir / layout.SPEC)),
            exit_code=ExitCode.RUN_FAILED,
        )


def teacher_figures(run_dir: Path, spec: JobSpec, last_step: int) -> card.TeacherFigures | None:
    """For the card; None in a job without a teacher. Answers of attempts that were done again count once."""
    record = read_record(run_dir) if spec.distillation.distils else None
    if record is None:
        return None
    written: dict[int, ev.Rollout] = {}
    for event in JournalTail(run_dir).stream():
        if isinstance(event, ev.Rollout) and event.step <= last_step:
            written[event.step] = event
    return card.TeacherFigures(
        name=record.name,
        held=record.held,
        parameters=record.parameters,
        loss=loss_words(spec.distillation),
        task_loss=record.task_loss,
        exact_match=record.exact_match,
        cached_tokens=record.cached_tokens,
        cached_bytes=record.cached_bytes,
        rollout_tokens=sum(one.tokens for one in written.values()),
        rollout_seconds=sum(one.seconds for one in written.values()),
    )


def loss_words(section: DistillationSection) -> str:
    """ "forward_kl, temperature 2, 50 % labels"."""
    kind = section.loss.value
    if section.tokenizers is Tokenizers.ULD:
        kind = "uld"
    elif section.loss is DistillLoss.JSD:
        kind = f"jsd, beta {section.beta:g}"
    words = [kind, f"temperature {section.temperature:g}", f"{section.ce_weight:.0%} labels".replace("%", " %")]
    if section.top_k:
        words.append(f"top {section.top_k}, the rest: {section.missing_mass.value}")
    if section.hidden_weight:
        words.append(f"hidden states x {section.hidden_weight:g}")
    if section.on_policy:
        words.append(f"{section.on_policy:.0%} of the steps on own answers".replace("%", " %"))
    return ", ".join(words)
