"""The teacher of a job, from its folder to what the trainer asks: loaded in a form that fits, measured once, kept over
all stages.

Owns how a teacher is held. Must not know losses (`engine.distill`) or the loop.

    self       an adapter job's own base with the adapter switched off; no memory of its own
    resident   in the compute type, on the student's device
    nf4        in 4 bits, on the student's device
    offloaded  in host memory; layers visit the card one after another. On a CPU that is the same as resident
    cached     not held at all: its top logits were written to disk before the student was loaded
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING

import msgspec
import torch
from msgspec.structs import replace as change

from engine.distill.cache import (
    CacheOrder,
    Segment,
    cache_home,
    cached_knowledge,
    data_sha256_of,
    segments_of_rows,
)
from engine.distill.cache_files import read_manifest
from engine.distill.hidden import LayerEar
from engine.distill.knowledge import Knowledge
from engine.distill.teacher import ModelTeacher
from engine.distill.uld import UldKnowledge
from engine.evaluation.measure import Measurement
from engine.evaluation.model import LoadedModel
from engine.evaluation.rows import score_rows
from engine.jobs import events as ev
from engine.jobs.spec import JobSpec
from engine.jobs.spec_distillation import Held, Tokenizers
from engine.train.alignment import AlignmentCheck
from engine.train.attempt import Attempt
from engine.train.cutting import cut_rows
from engine.train.found_teacher import FoundTeacher, find_teacher, known_teacher
from engine.train.held_teacher import knowledge_of, knowledge_of_own, load_teacher, says_of, taught_steps
from engine.train.measuring import BEFORE
from engine.train.taught_steps import TaughtSteps, Written
from engine.train.teacher_record import TeacherRecord, read_record, write_record
from engine.train.teacher_room import choose_caching, choose_held
from engine.train.teacher_scores import TeacherScores, keep_scores, kept_scores, scores_key

if TYPE_CHECKING:
    from engine.data.load import PreparedData
    from engine.models.source import ModelRef
    from engine.train.trainer import TokenTrainer

CACHED_TOP_K = 64
OWN = "self"
_SHOWN_CHARACTERS = 2000


class Teaching:
    """One per attempt. Mutable: what is loaded is kept for later stages."""

    def __init__(
        self,
        attempt: Attempt,
        found: FoundTeacher,
        held: Held,
        rows: PreparedData,
        find: Callable[[], FoundTeacher] | None = None,
    ) -> None:
        """`held`: for a run that has not begun; never auto, unless the teacher is the student's own. `find`: where
        `found` is only what the run remembers."""
        self._find = find
        self._attempt, self._found, self._held, self._rows = attempt, found, held, rows
        self._section = attempt.spec.distillation
        self._loaded: LoadedModel | None = None
        self._cached: Knowledge | None = None
        self._told = False
        self._trainer: TokenTrainer | None = None
        self._warned: set[str] = set()

    def teach(self, trainer: TokenTrainer, spec: JobSpec) -> None:
        """Have `trainer` learn from the teacher, which is loaded when the training begins. `spec`: of the stage."""
        trainer.teacher = lambda: self._steps(trainer.loaded, spec)
        self._trainer = trainer

    def close(self) -> None:
        """Let go of the teacher: nothing is trained any more, and what follows has its memory."""
        if self._trainer is not None:
            self._trainer.teacher = self._trainer.taught = None
        self._trainer = self._loaded = self._cached = None
        _release()

    def _steps(self, student: LoadedModel, spec: JobSpec) -> TaughtSteps:
        knows = self._knowledge(student)
        self._tell_ready()
        self._attempt.phase("training")
        look = AlignmentCheck(knows[0], self._attempt).look if isinstance(knows[0], UldKnowledge) else _nothing
        return taught_steps(spec, self._found, student, knows, tell=self._tell_written, warn=self._warn_once, look=look)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            self._attempt.warn(message)

    # ── what it knows ─────────────────────────────────────────────────────────────────────────────────────────────
    def _knowledge(self, student: LoadedModel) -> tuple[Knowledge, LayerEar | None]:
        """And what hears the student's layers, where hidden states are compared."""
        if self._section.held is Held.CACHED:
            assert self._cached is not None
            return self._cached, None
        if self._found.is_own:
            knows = knowledge_of_own(self._section, self._found, student)
            self._keep(OWN, student)
            return knows
        return knowledge_of(self._section, self._found, student, self._teacher())

    @property
    def _is_across(self) -> bool:
        """Between two tokenizers."""
        return self._section.tokenizers is Tokenizers.ULD

    # ── in memory ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _teacher(self) -> LoadedModel:
        """Loaded once; in the form of the attempt before, where there was one."""
        if self._loaded is None:
            kept = read_record(self._attempt.run_dir)
            held = Held(kept.held) if kept is not None else self._held
            self._loaded = self._load(held)
            self._keep(held.value, self._loaded)
        return self._loaded

    def _load(self, held: Held) -> LoadedModel:
        """Frozen and in evaluation mode. Raises EngineError `train.model_not_loaded`."""
        attempt = self._attempt
        if held is Held.OFFLOADED and not attempt.device.is_cuda:
            attempt.say("The teacher computes on the processor, where offloaded is the same as resident.")
        attempt.phase("loading model", f"the teacher, {held.value}")
        return load_teacher(self._found, held, attempt.device, self._section, self._rows.tokenizer)

    # ── on disk ───────────────────────────────────────────────────────────────────────────────────────────────────
    def cache(self, form: Held) -> None:
        """Its top logits on all rows of all stages, found or made; the teacher, held in that form, is gone afterwards.
        Raises EngineError `disk.full` and the like, PauseRequested."""
        attempt, section = self._attempt, self._section

        def tell(done: int, total: int, words: str) -> None:
            attempt.phase("caching logits", words, done, total)
            attempt.obey_before_training()

        home = cache_home(section.cache)
        teacher = partial(self._for_caching, form)
        self._cached, facts = cached_knowledge(
            self._order(form), self._segments, home, teacher, section.temperature, tell
        )
        key, kept = scores_key(self._rows.heldout, attempt.spec.evaluation), read_record(attempt.run_dir)
        if kept is None:
            scores = kept_scores(facts.folder, key)
            record = self._record(Held.CACHED.value, form.value)
            kept = change(record, task_loss=scores.task_loss, exact_match=scores.exact_match)
        keep_scores(facts.folder, key, TeacherScores(kept.task_loss, kept.exact_match))
        write_record(attempt.run_dir, change(kept, cached_tokens=facts.tokens, cached_bytes=facts.size_bytes))
        self._cache_seconds = facts.seconds

    def has_cached(self, form: Held) -> bool:
        """Whether its logits, made in that form, are complete on disk."""
        order = self._order(form)
        manifest = read_manifest(cache_home(self._section.cache) / order.folder_name)
        return manifest is not None and manifest.order.same_as(order)

    def cached_form(self, chosen: Held) -> Held:
        """In which form its logits are there already; `chosen` where they are in none. That they are of a teacher in 4
        bits, where it could have been whole, is said."""
        others = (Held.OFFLOADED, Held.NF4)  # what it says from host memory it says from the device
        form = next((form for form in (chosen, *others) if self.has_cached(form)), chosen)
        if form is Held.NF4 is not chosen:
            self._attempt.warn(
                "The teacher's logits on disk are those of a teacher in 4 bits, from an earlier run; this machine "
                "could ask it in its own number type.",
                f"To have them anew, remove {cache_home(self._section.cache) / self._order(form).folder_name}.",
            )
        return form

    def _order(self, form: Held) -> CacheOrder:
        attempt, found = self._attempt, self._found
        return CacheOrder(
            data_sha256=data_sha256_of(self._segments),
            teacher=found.name,
            teacher_sha256=found.sha256,
            form="nf4" if form is Held.NF4 else str(attempt.device.compute_dtype).removeprefix("torch."),
            k=min(self._section.top_k or CACHED_TOP_K, found.vocabulary),
            vocabulary=found.vocabulary,
        )

    @cached_property
    def _segments(self) -> list[Segment]:
        """Of all rows of all stages."""
        stages = [stage for stage in self._attempt.spec.staged() if stage.task.trains]
        return segments_of_rows(
            row for stage in stages for row in cut_rows(self._rows.train, stage.data.max_length).rows
        )

    @contextlib.contextmanager
    def _for_caching(self, form: Held) -> Iterator[Knowledge]:
        """The teacher alone in memory, measured while it is there."""
        if self._find is not None:
            self._found = self._find()
        loaded = self._load(form)
        try:
            self._keep(Held.CACHED.value, loaded, form.value)
            yield ModelTeacher(loaded, says_of(self._section, self._found, 0))
        finally:
            del loaded
            _release()

    # ── what is kept and told ─────────────────────────────────────────────────────────────────────────────────────
    def _keep(self, held: str, loaded: LoadedModel, form: str = "") -> None:
        """Measure it on the held-out rows, once per run."""
        attempt = self._attempt
        if read_record(attempt.run_dir) is not None:
            return
        loss, exact = self._scores(loaded)
        write_record(attempt.run_dir, change(self._record(held, form), task_loss=loss, exact_match=exact))

    def _record(self, held: str, form: str) -> TeacherRecord:
        found = self._found
        return TeacherRecord(
            name=found.name,
            sha256=found.sha256,
            held=held,
            parameters=found.parameters,
            form=form,
            vocabulary=found.vocabulary,
        )

    def _scores(self, loaded: LoadedModel) -> tuple[float | None, float | None]:
        """Loss and exact match on the held-out rows; an own teacher is what was measured before the training."""
        attempt, heldout = self._attempt, self._rows.heldout
        if self._found.is_own:
            before = msgspec.json.decode((attempt.run_dir / BEFORE).read_bytes(), type=Measurement)
            return before.scores.task_loss, before.scores.exact_match
        if not heldout or self._is_across:
            return None, None  # rows in the student's tokens say nothing of a teacher with others
        scored = score_rows(
            loaded, heldout, lambda *what: attempt.phase("measuring before", "the teacher on held-out rows", *what)
        )
        verdicts = [verdict for verdict in scored.answered if verdict is not None]
        verdicts = verdicts[: attempt.spec.evaluation.exact_match_rows]
        return scored.loss, sum(verdicts) / len(verdicts) if verdicts else None

    def _tell_ready(self) -> None:
        record = read_record(self._attempt.run_dir)
        if record is None or self._told:
            return
        self._told = True
        self._attempt.journal.write(
            ev.Teacher(
                t=time.time(),
                name=record.name,
                held=record.held,
                parameters=record.parameters,
                cached_tokens=record.cached_tokens,
                cached_bytes=record.cached_bytes,
                seconds=self._cache_seconds,
            )
        )

    _cache_seconds = 0.0

    def _tell_written(self, written: Written) -> None:
        first, decode = written.answers[0], self._rows.tokenizer.decode
        self._attempt.journal.write(
            ev.Rollout(
                t=time.time(),
                step=written.step,
                answers=len(written.answers),
                tokens=written.tokens,
                seconds=written.seconds,
                prompt=decode(first.prompt, skip_special_tokens=True)[-_SHOWN_CHARACTERS:],
                text=decode(first.answer, skip_special_tokens=True)[:_SHOWN_CHARACTERS],
            )
        )


def open_teaching(attempt: Attempt, ref: ModelRef, rows: PreparedData) -> Teaching:
    """The job's teacher, its logits on disk where they are to be. Raises EngineError, PauseRequested."""
    kept, held = read_record(attempt.run_dir), attempt.spec.distillation.held
    known = known_teacher(kept) if kept is not None and held is Held.CACHED else None
    if kept is not None and known is not None:
        find = partial(find_teacher, attempt, ref, rows)
        teaching = Teaching(attempt, known, held, rows, find)
        if teaching.has_cached(Held(kept.form)):  # the teacher itself is not needed any more
            teaching.cache(Held(kept.form))
            return teaching
    found = find_teacher(attempt, ref, rows)
    if held is Held.AUTO and not found.is_own and kept is None:
        held = choose_held(attempt, ref)
    teaching = Teaching(attempt, found, held, rows)
    if held is Held.CACHED:
        teaching.cache(Held(kept.form) if kept is not None else teaching.cached_form(choose_caching(attempt, ref)))
    return teaching


def _nothing() -> None:
    """Where a teacher reads the student's tokens, every position is known."""


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
