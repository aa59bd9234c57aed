"""One attempt at a run, from the spec to the card, in the order a person would tell it.

Owns the phases of training an adapter; jobs on whole weights are `engine.train.grown_job`'s. Must not know processes,
exit codes or signals beyond the wish to pause: those are the worker's (`engine.train.worker`). Heavy imports happen
inside the phases that need them, so that bad data is refused before the first of them.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.jobs import card, checkpoints
from engine.jobs import events as ev
from engine.jobs.spec import Task
from engine.models.source import ModelRef
from engine.train import checkpointing, report
from engine.train.attempt import Attempt, Outcome, find_model
from engine.train.course import read_setbacks
from engine.train.documents_log import DocumentsLog
from engine.train.endings import rules_of
from engine.train.job_data import JobData, prepare_job
from engine.train.measuring import Sides, measured_after, measured_before, write_samples, yardstick_of
from engine.train.tally import Tally
from engine.train.window import Window, find_window, readers_of

__all__ = ["Attempt", "Outcome", "run"]

if TYPE_CHECKING:
    from engine.distributed.parallel import Parallel
    from engine.evaluation.measure import Yardstick
    from engine.evaluation.model import LoadedModel
    from engine.evaluation.retention import Watch
    from engine.train.limits import Limits
    from engine.train.long_parts import LongParts
    from engine.train.loop import RunCallback
    from engine.train.ranked_loop import Leading
    from engine.train.stage_data import StageData
    from engine.train.trainer import TokenTrainer


def run(attempt: Attempt) -> Outcome:
    """Everything. Raises EngineError, PauseRequested, or whatever a library raises."""
    from engine.train import exporting

    if exporting.is_only_left(attempt):
        return exporting.go_on(attempt)
    return exporting.after(attempt, _run(attempt))


def _run(attempt: Attempt) -> Outcome:
    """All but the exports: what they need of memory is free again."""
    if attempt.spec.task is Task.EXTEND:
        from engine.train import extend_job

        return extend_job.run(attempt)
    if attempt.spec.task is Task.MIX:
        from engine.train import mix_job

        return mix_job.run(attempt)
    if not attempt.spec.task.trains_adapter:
        from engine.train import grown_job

        return grown_job.run(attempt)
    with attempt.leader_first():
        ref = find_model(attempt)
    if attempt.company is not None:
        from engine.train.ranked import settle

        settle(attempt, ref)
    data = prepare_job(attempt, ref)
    with attempt.leader_first():
        window = find_window(attempt, ref)
    attempt.obey_before_training()
    job = _Job(attempt, ref, data, window)
    return job.follow() if attempt.follows else job.run()


class _Job:
    """The phases after the data is known; each method is one of them."""

    def __init__(self, attempt: Attempt, ref: ModelRef, data: JobData, window: Window | None) -> None:
        self.attempt = attempt
        self.spec = attempt.spec
        self.window = window
        self.ref = window.ref if window is not None else ref
        self.job_data, self.data = data, data.rows
        self.data_sha256 = data.sha256
        self.documents: DocumentsLog | None = None
        self.notes: list[str] = []
        self.parallel: Parallel | None = None
        if window is not None:
            self.notes += window.notes
            for sentence in window.notes:
                attempt.say(sentence)

    def note(self, *sentences: str) -> None:
        """What is not as it should be, for the journal and the card."""
        for sentence in sentences:
            self.attempt.warn(sentence)
            self.notes.append(sentence)

    def run(self) -> Outcome:
        from engine.train.watching import open_watch

        attempt = self.attempt
        tally = self._begin()
        watch = open_watch(attempt, self.ref, self.job_data)
        parts, data = self._load()
        yardstick = yardstick_of(self.spec, self.data)
        attempt.obey_before_training()
        before = measured_before(attempt, parts.loaded, yardstick, parts.as_before)
        watch.before(parts.loaded, parts.as_before)
        lengths = parts.lengths_before()
        limits = self._limits(parts, watch)
        attempt.obey_before_training()
        callback = self._train(parts, data, yardstick, tally, limits)
        if callback.ending == "paused":
            return Outcome("paused", tally.step, callback.ending_reason, "Resume it when you like.")
        try:
            return self._results(parts, Sides(yardstick, before, lengths, watch), callback)
        except Exception as error:
            if not checkpointing.is_full_disk(error, while_saving=True):
                raise
            what = "There is no room left to write the results; the last checkpoint is kept."
            attempt.warn(what, "Free some space, then resume the run: nothing is trained again.")
            return Outcome("paused", tally.step, what, "Free some space, then resume the run.")

    def _begin(self) -> Tally:
        """As the checkpoint left it, if there is one."""
        resume, run_dir = self.attempt.resume, self.attempt.run_dir
        tally = Tally.of(resume.progress) if resume is not None else Tally()
        if resume is not None:
            current = self.progress(tally)
            self.note(*checkpointing.check_same_run(resume, run_dir, data_sha256=self.data_sha256, current=current))
        if self.spec.stream.record_documents:
            self.documents = DocumentsLog(run_dir, tally.step)
        return tally

    def follow(self) -> Outcome:
        """A rank that does not lead: its part of the training, and of what the leader measures. It leaves with the
        leader, never by itself."""
        from engine.train.ranked_loop import follow_training

        parts, data = self._load()
        parallel = self.parallel
        assert parallel is not None
        follow_training(self.attempt.run_dir, self._trainer(parts, data), parallel, self.attempt.resume)
        parallel.company.follow(parallel.answers())
        return Outcome("finished", 0)

    def _limits(self, parts: LongParts, watch: Watch) -> Limits:
        """What must not be lost, short text and whatever the watch limits."""
        from engine.train.limits import Limits, WatchLimit

        gate = parts.gate(self.data)
        limits = Limits(self.attempt.run_dir, [*([gate] if gate is not None else []), WatchLimit(watch, parts.loaded)])
        if self.window is not None and not limits.good_step:
            watch.starts_elsewhere()
        return limits

    def _results(self, parts: LongParts, sides: Sides, callback: RunCallback) -> Outcome:
        """Adapter, measurements and card; a stopped run gets the adapter only, one that a limit ended the last that
        kept every limit."""
        tally = callback.tally
        if callback.closed:
            return self._closed(parts, callback)
        if callback.ending == "stopped" and not tally.complete:
            self._save_adapter(parts.loaded)
            return Outcome("stopped", tally.step, callback.ending_reason or "Stopped as asked; the adapter is saved.")
        after = sides.watch.after(parts.loaded, tally.step) if sides.watch.limits else None
        adapter = self._save_adapter(parts.loaded, held=after.held if after is not None else "")
        self._finish(parts, sides, tally, adapter)
        what = f"Not promoted: {after.held}. It lies in {adapter.path}." if after is not None and after.held else ""
        return Outcome("finished", tally.step, what)

    def _closed(self, parts: LongParts, callback: RunCallback) -> Outcome:
        """A limit was broken: back to the adapter that kept all of them; where there is none, nothing is promoted."""
        limits = callback.context.limits
        assert limits is not None
        if limits.good_step:
            _load_adapter(parts.loaded, limits.folder)
            self._save_adapter(parts.loaded)
            return Outcome("stopped", limits.good_step, callback.ending_reason)
        adapter = self._save_adapter(parts.loaded, held=callback.ending_reason)
        what = f"{callback.ending_reason} Not promoted: the adapter lies in {adapter.path}."
        return Outcome("stopped", callback.tally.step, what)

    def progress(self, tally: Tally) -> checkpointing.Progress:
        """What goes into a checkpoint beside the Trainer's state."""
        return self.attempt.progress(tally, self.data_sha256)

    # ── phases ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _load(self) -> tuple[LongParts, StageData]:
        attempt, spec = self.attempt, self.spec
        attempt.phase("loading model", "importing libraries")
        from engine.train import model as models
        from engine.train.environment import quiet_libraries, seed_everything
        from engine.train.long_parts import long_parts
        from engine.train.ranked import base_device, parallel_of

        quiet_libraries()
        models.check_hardware(spec, attempt.device)
        kind = spec.quantization_kind
        attempt.phase("loading model", f"in 4 bit ({kind})" if kind != "none" else "")
        assert self.ref.path is not None
        request = models.base_request(spec, self.ref.path, attempt.device)
        base = models.load_base(replace(request, device=base_device(attempt)))
        parameters = int(base.num_parameters())
        seed_everything(spec.training.seed)  # the adapter's start is drawn from here
        model = models.add_adapter(base, spec.adapter, extras=models.extras_of(spec))
        loaded = models.ready(model, base, self.data.tokenizer, attempt.device)
        if attempt.company is not None:
            self.parallel = parallel_of(attempt, model, base)
        parts = long_parts(attempt, base, loaded, self.window)
        parts.check()
        data = self._stage_data(loaded)
        lessons = getattr(data.dataset, "lessons", data.dataset)
        attempt.journal.write(
            ev.Plan(
                t=time.time(),
                total_steps=data.steps,
                rows=data.rows,
                tokens_per_epoch=lessons.tokens,
                trained_tokens_per_epoch=lessons.trained_tokens,
                parameters=parameters,
                trainable_parameters=models.trainable_parameters(model),
            )
        )
        return parts, data

    def _stage_data(self, loaded: LoadedModel) -> StageData:
        from engine.train.stage_data import StageStart, stage_data

        setbacks = read_setbacks(self.attempt.run_dir)
        start = StageStart(loaded.pad_id, self.window, setbacks=setbacks, ranked=self.parallel is not None)
        data = stage_data(self.spec, self.job_data, start)
        self.note(*data.words)
        return data

    def _trainer(self, parts: LongParts, data: StageData) -> TokenTrainer:
        from engine.train.step_batches import PlannedSteps
        from engine.train.trainer import TokenTrainer, training_arguments

        output, loaded = checkpointing.trainer_output(self.attempt.run_dir), parts.loaded
        planned = data.steps if isinstance(data.dataset, PlannedSteps) else 0
        arguments = training_arguments(self.spec, output, loaded, planned_steps=planned)
        training, original = self.spec.training, parts.original
        trainer = TokenTrainer(loaded, data.dataset, arguments, training, original=original, parallel=self.parallel)
        return self.job_data.taught(trainer, self.spec)

    def _train(
        self, parts: LongParts, data: StageData, yardstick: Yardstick, tally: Tally, limits: Limits
    ) -> RunCallback:
        from engine.evaluation.answers import answer_all
        from engine.evaluation.rows import score_rows
        from engine.train.loop import LoopContext, RunCallback

        attempt, loaded = self.attempt, parts.loaded

        def sample(step: int) -> None:
            answers = answer_all(loaded, yardstick.questions, yardstick.max_new_tokens)
            write_samples(attempt, step, yardstick, answers)

        trainer = self._trainer(parts, data)
        leading = None if self.parallel is None else self._leading(trainer)
        context = LoopContext(
            run_dir=attempt.run_dir,
            spec=self.spec,
            journal=attempt.journal,
            signals=attempt.signals,
            device=loaded.device,
            model=loaded.model,
            evaluate=(lambda: score_rows(loaded, self.data.heldout).loss) if self.data.heldout else None,
            sample=sample,
            progress=self.progress,
            worked_seconds=attempt.worked_seconds,
            rules=rules_of(self.spec),
            stream=data.stream,
            documents=self.documents,
            limits=limits,
            leading=leading,
        )
        callback = RunCallback(context, trainer, tally)
        resume = attempt.resume
        if resume is not None and tally.complete:
            # Trained to the end already; a later phase was interrupted.
            if leading is not None and leading.shards:
                leading.load_trained()
            else:
                _load_adapter(loaded, resume.path)
            return callback
        trainer.add_callback(callback)
        attempt.phase("training")
        attempt.signals.defer()
        try:
            with leading.training() if leading is not None else contextlib.nullcontext():
                trainer.train(resume_from_checkpoint=str(resume.path) if resume is not None else None)
        except Exception as error:
            if not checkpointing.is_full_disk(error, while_saving=callback.saving):
                raise
            cause = error.cause if isinstance(error, EngineError) else str(error).splitlines()[0]
            callback.no_room("There is no room left to write a checkpoint.", cause)
        checkpointing.discard_staging(attempt.run_dir)
        self.job_data.close_teacher()
        if callback.ending == "paused" and not callback.tally.complete:
            self._say_paused(callback)
        if callback.ending != "paused":
            attempt.signals.undefer()
        return callback

    def _leading(self, trainer: TokenTrainer) -> Leading | None:
        from engine.train.ranked_loop import leading_of

        return leading_of(self.attempt.run_dir, trainer, self.attempt.resume)

    def _say_paused(self, callback: RunCallback) -> None:
        if "room" not in callback.ending_reason:
            return
        step = checkpoints.newest_step(self.attempt.run_dir)
        kept = f"The checkpoint of step {step} is kept." if step else "There was no checkpoint yet."
        self.attempt.warn(f"{callback.ending_reason} {kept}", "Free some space, then resume the run.")

    def _save_adapter(self, loaded: LoadedModel, *, held: str = "") -> card.Adapter:
        """`held`: why it is not promoted."""
        from engine.train.model import trainable_parameters
        from engine.train.output import folder_bytes, save_adapter
        from engine.train.watching import hold

        self.attempt.phase("saving", "adapter")
        extended = self.window is not None and self.window.plan is not None
        values = None if self.parallel is None else self.parallel.whole()
        path = save_adapter(self.attempt.run_dir, loaded.model, self.ref, extended=extended, values=values)
        path = hold(self.attempt.run_dir, path) if held else path
        return card.Adapter(
            path=path.relative_to(self.attempt.run_dir).as_posix(),
            size_bytes=folder_bytes(path),
            parameters=trainable_parameters(loaded.model),
        )

    def _finish(self, parts: LongParts, sides: Sides, tally: Tally, adapter: card.Adapter) -> None:
        from engine.jobs.card_io import write_card
        from engine.train.watching import Followed

        attempt, loaded = self.attempt, parts.loaded
        after = measured_after(attempt, loaded, sides.yardstick, tally.step)
        followed = Followed(sides.watch.parent, sides.watch.after(loaded, tally.step))
        lengths = parts.lengths_after(sides.lengths, tally.step)
        merged = self._merge(loaded, tally) if self.spec.output.merge and not followed.after.held else None
        if tally.early_stopped:
            why = "the held-out loss no longer fell; the adapter is that of the last step"
            self.notes.append(f"Stopped early at step {tally.step}: {why}.")
        if tally.ended:
            self.notes.append(f"Ended at step {tally.step}: {tally.ended}")
        attempt.phase("writing card")
        facts = report.Facts(
            run_dir=attempt.run_dir,
            spec=self.spec,
            spec_hash=attempt.spec_hash,
            data_sha256=self.data_sha256,
            created=attempt.created,
            device=attempt.device.name,
            versions=attempt.versions,
            steps=tally.step,
            tokens=tally.tokens,
            trained_tokens=tally.trained_tokens,
            training_seconds=tally.training_seconds,
            before=sides.before,
            after=after,
            questions=tuple(sides.yardstick.questions),
            adapter=adapter,
            merged=merged,
            notes=tuple(self.notes),
            lengths_before=sides.lengths.report if sides.lengths is not None else None,
            lengths_after=lengths,
            readers=readers_of(self.window) if self.window is not None else (),
        )
        write_card(attempt.run_dir, followed.on(report.build_card(facts)))
        attempt.journal.write(ev.CardReady(t=time.time()))

    def _merge(self, loaded: LoadedModel, tally: Tally) -> card.MergeCheck:
        from engine.train.merge import MergeJob, Told, compared_rows, merge, merged_certificate, take_reference

        self.attempt.phase("merging")
        rows = compared_rows(self.data, loaded.vocab_size)
        run_dir = self.attempt.run_dir
        certificate = merged_certificate(run_dir, self.spec, self.window, tally)
        job = MergeJob(run_dir, self.spec, self.ref, rows, self.attempt.device, certificate)
        return merge(job, take_reference(loaded, rows), self.data.tokenizer, Told(self.attempt))


def _load_adapter(loaded: LoadedModel, folder: Path) -> None:
    loaded.model.load_adapter(str(folder), loaded.model.active_adapter, is_trainable=True)
