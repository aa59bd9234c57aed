"""What a job trains and measures on: rows, or text that is read as a stream with what is set aside of it.

Owns bringing the two into one value, and the hash that a resume compares. Must not know the loop. Sources are read by
`engine.corpus`, which is imported only where there are any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import msgspec

from engine.data.load import prepare, prepare_beside
from engine.data.rows import EncodedRow, RowKind
from engine.jobs.spec import DataSection, JobSpec
from engine.models.source import ModelRef
from engine.schedule.steps import tokens_to_read
from engine.train.attempt import Attempt
from engine.train.data_hash import rows_sha256

if TYPE_CHECKING:
    from engine.corpus.corpus import Corpus
    from engine.corpus.report import Progress, SourceReport
    from engine.data.load import PreparedData
    from engine.train.teaching import Teaching
    from engine.train.trainer import TokenTrainer

Trainer = TypeVar("Trainer", bound="TokenTrainer")


@dataclass(frozen=True, slots=True)
class JobData:
    """Of the whole job, all stages."""

    rows: PreparedData
    """With a corpus there are no rows to train on; held out are its documents, unless [data] names other rows."""
    corpus: Corpus | None
    sha256: str
    teaching: Teaching | None = None
    """Where the job has a teacher."""

    def heldout_texts(self) -> dict[str, tuple[str, ...]]:
        """Held-out documents by source."""
        domains = self.corpus.domains if self.corpus is not None else ()
        return {domain.name: tuple(one.text for one in domain.heldout) for domain in domains}

    def taught(self, trainer: Trainer, spec: JobSpec) -> Trainer:
        """`trainer`, which learns from the job's teacher too, if it has one. `spec`: of the stage."""
        if self.teaching is not None:
            self.teaching.teach(trainer, spec)
        return trainer

    def close_teacher(self) -> None:
        """After the last training: the teacher's memory is free for what follows."""
        if self.teaching is not None:
            self.teaching.close()


def prepare_job(attempt: Attempt, ref: ModelRef) -> JobData:
    """Everything that is trained or measured on; what was found in it goes into the journal. Raises EngineError for
    what must not start, PauseRequested."""
    attempt.phase("preparing data")
    assert ref.path is not None
    section = _longest(attempt.spec)
    ready = prepare_beside if attempt.spec.streams else prepare
    rows = ready(section, ref.path, now=datetime.fromtimestamp(attempt.created))
    for warning in rows.report.warnings:
        attempt.warn(warning)
    attempt.obey_before_training()
    if not attempt.spec.streams:
        sha256 = rows_sha256((rows.train, rows.heldout, rows.base_text))
        return JobData(rows, None, sha256, _teaching(attempt, ref, rows))
    with attempt.leader_first():
        corpus = _corpus(attempt, ref, rows)
    if not rows.heldout:
        rows = replace(rows, heldout=tuple(_heldout_rows(corpus, section.max_length)))
    hashed = hashlib.sha256(corpus.fingerprint.encode())
    hashed.update(rows_sha256((rows.heldout, rows.base_text)).encode())
    return JobData(rows, corpus, hashed.hexdigest(), _teaching(attempt, ref, rows))


def _teaching(attempt: Attempt, ref: ModelRef, rows: PreparedData) -> Teaching | None:
    if not attempt.spec.distillation.distils:
        return None
    from engine.train.teaching import open_teaching

    return open_teaching(attempt, ref, rows)


def _longest(spec: JobSpec) -> DataSection:
    """[data] for the longest sequences of any stage; a stage with shorter ones cuts once more."""
    lengths = [stage.data.max_length for stage in spec.staged() if stage.task.trains]
    return msgspec.structs.replace(spec.data, max_length=max(lengths, default=spec.data.max_length))


def _corpus(attempt: Attempt, ref: ModelRef, rows: PreparedData) -> Corpus:
    from engine.corpus.evaluation_texts import evaluation_texts
    from engine.corpus.prepare import prepare_corpus

    def tell(progress: Progress) -> None:
        attempt.phase("preparing data", f"{progress.doing} {progress.source}", progress.tokens, progress.needed_tokens)
        attempt.obey_before_training()

    spec = attempt.spec
    assert ref.path is not None
    decode = rows.tokenizer.decode
    own = (decode(row.input_ids) for row in rows.heldout)
    corpus = prepare_corpus(
        spec.sources,
        spec.stream,
        ref.path,
        tokens_to_read(spec),
        chain(evaluation_texts(spec), own, _questions(spec)),
        tell,
        seed=spec.training.seed,
    )
    for report in corpus.report.sources:
        _tell_source(attempt, report)
    return corpus


def _questions(spec: JobSpec) -> Iterator[str]:
    """Of the benchmarks."""
    if spec.evaluation.tasks and spec.stream.decontaminate:
        from engine.evaluation.tasks import load_tasks, question_texts

        yield from question_texts(load_tasks(spec.evaluation.tasks))


def _tell_source(attempt: Attempt, report: SourceReport) -> None:
    attempt.say(
        f"{report.name}: {report.kept.documents:,} documents, {report.kept.tokens:,} tokens"
        + "".join(
            f"; {count.documents:,} {words}"
            for count, words in (
                (report.duplicates, "duplicates left out"),
                (report.near_duplicates, "near duplicates left out"),
                (report.contaminated, "left out because they share text with an evaluation"),
                (report.heldout, "held out"),
            )
            if count.documents
        )
        + "."
    )
    for fault in report.faults.examples:
        attempt.warn(f"{report.name}: {fault.words}")


def _heldout_rows(corpus: Corpus, longest: int) -> Iterator[EncodedRow]:
    """Held-out documents in pieces that share one token, so that every token but the first is measured once."""
    for number, document in enumerate(one for domain in corpus.domains for one in domain.heldout):
        for part, first in enumerate(range(0, max(len(document.ids) - 1, 1), longest - 1)):
            ids = document.ids[first : first + longest]
            if len(ids) > 1:
                trained = (False, *(True for _ in ids[1:]))
                yield EncodedRow(tuple(ids), trained, number, RowKind.TEXT, full_length=len(ids), part=part)
