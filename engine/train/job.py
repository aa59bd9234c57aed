"""One attempt at a run, from the spec to the card, in the order a person would tell it.

Owns the phases of training an adapter; jobs on whole weights are `engine.train.grown_job`'s. Must not know processes,
exit codes or signals beyond the wish to pause: those are the worker's (`engine.train.worker`). Heavy imports happen
inside the phases that need them, so that bad data is refused before the first of them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.jobs import card, checkpoints
from engine.jobs import events as ev
from engine.jobs.spec import Task
from engine.models.source import ModelRef
from engine.train import checkpointing, report
from engine.train.attempt import Attempt, Outcome, find_model, prepare_data
from engine.train.data_hash import rows_sha256
from engine.train.measuring import measured_after, measured_before, write_samples, yardstick_of
from engine.train.questions import total_steps
from engine.train.tally import Tally
from engine.train.window import Window, find_window, readers_of

__all__ = ["Attempt", "Outcome", "run"]

if TYPE_CHECKING:
    from engine.data.load import PreparedData
    from engine.evaluation.measure import Measurement, Yardstick
    from engine.evaluation.model import LoadedModel
    from engine.train.batches import SequenceDataset
    from engine.train.length_reports import Before
    from engine.train.long_parts import LongParts
    from engine.train.loop import RunCallback
    from engine.train.short_gate import ShortGate
    from engine.train.step_batches import StepDataset
    from engine.train.trainer import TokenTrainer


def run(attempt: Attempt) -> Outcome:
    """Everything. Raises EngineError, PauseRequested, or whatever a library raises."""
    if attempt.spec.task is Task.EXTEND:
        from engine.train import extend_job

        return extend_job.run(attempt)
    if not attempt.spec.task.trains_adapter:
        from engine.train import grown_job

        return grown_job.run(attempt)
    ref = find_model(attempt)
    data = prepare_data(attempt, ref)
    window = find_window(attempt, ref)
    attempt.obey_before_training()
    return _Job(attempt, ref, data, window).run()


class _Job:
    """The phases after the data is known; each method is one of them."""

    def __init__(self, attempt: Attempt, ref: ModelRef, data: PreparedData, window: Window | None) -> None:
        self.attempt = attempt
        self.spec = attempt.spec
        self.window = window
        self.ref = window.ref if window is not None else ref
        self.data = data
        self.data_sha256 = rows_sha256((data.train, data.heldout, data.base_text))
        self.notes: list[str] = []
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
        attempt = self.attempt
        tally = Tally()
        if attempt.resume is not None:
            tally = Tally.of(attempt.resume.progress)
            current = self.progress(tally)
            self.note(
                *checkpointing.check_same_run(
                    attempt.resume, attempt.run_dir, data_sha256=self.data_sha256, current=current
                )
            )
        parts, dataset = self._load()
        yardstick = yardstick_of(self.spec, self.data)
        attempt.obey_before_training()
        before = measured_before(attempt, parts.loaded, yardstick, parts.as_before)
        lengths = parts.lengths_before()
        gate = parts.gate(self.data)
        attempt.obey_before_training()
        callback = self._train(parts, dataset, yardstick, tally, gate)
        if callback.ending == "paused":
            return Outcome("paused", tally.step, callback.ending_reason, "Resume it when you like.")
        try:
            return self._results(parts, Sides(yardstick, before, lengths), callback)
        except Exception as error:
            if not checkpointing.is_full_disk(error, while_saving=True):
                raise
            what = "There is no room left to write the results; the last checkpoint is kept."
            attempt.warn(what, "Free some space, then resume the run: nothing is trained again.")
            return Outcome("paused", tally.step, what, "Free some space, then resume the run.")

    def _results(self, parts: LongParts, sides: Sides, callback: RunCallback) -> Outcome:
        """Adapter, measurements and card; a stopped run gets the adapter only, one that the gate ended the last good
        one."""
        tally = callback.tally
        gate = callback.context.gate
        step = tally.step
        if callback.closed and gate is not None and gate.figures.good_step:
            step = gate.figures.good_step
            _load_adapter(parts.loaded, gate.good)
        adapter = self._save_adapter(parts.loaded)
        if callback.closed or (callback.ending == "stopped" and not tally.complete):
            what = callback.ending_reason or "Stopped as asked; the adapter is saved."
            return Outcome("stopped", step, what)
        self._finish(parts, sides, tally, adapter)
        return Outcome("finished", tally.step)

    def progress(self, tally: Tally) -> checkpointing.Progress:
        """What goes into a checkpoint beside the Trainer's state."""
        attempt = self.attempt
        return checkpointing.Progress(
            step=tally.step,
            spec_hash=attempt.spec_hash,
            data_sha256=self.data_sha256,
            threads=attempt.threads,
            versions=attempt.versions,
            device=attempt.device.torch_device.partition(":")[0],
            complete=tally.complete,
            early_stopped=tally.early_stopped,
            best_eval_loss=tally.best_eval_loss,
            evaluations_without_gain=tally.evaluations_without_gain,
            training_seconds=tally.training_seconds,
            tokens=tally.tokens,
            trained_tokens=tally.trained_tokens,
            pieces=tally.pieces,
        )

    # ── phases ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _load(self) -> tuple[LongParts, SequenceDataset | StepDataset]:
        attempt, spec = self.attempt, self.spec
        attempt.phase("loading model", "importing libraries")
        from engine.train import model as models
        from engine.train.environment import quiet_libraries, seed_everything
        from engine.train.long_parts import long_parts

        quiet_libraries()
        models.check_hardware(spec, attempt.device)
        kind = spec.quantization_kind
        attempt.phase("loading model", f"in 4 bit ({kind})" if kind != "none" else "")
        assert self.ref.path is not None
        base = models.load_base(models.base_request(spec, self.ref.path, attempt.device))
        parameters = int(base.num_parameters())
        seed_everything(spec.training.seed)  # the adapter's start is drawn from here
        model = models.add_adapter(base, spec.adapter, extras=models.extras_of(spec))
        loaded = models.ready(model, base, self.data.tokenizer, attempt.device)
        parts = long_parts(attempt, base, loaded, self.window)
        parts.check()
        dataset, steps = self._dataset(loaded)
        lessons = getattr(dataset, "lessons", dataset)
        attempt.journal.write(
            ev.Plan(
                t=time.time(),
                total_steps=steps,
                rows=len(self.data.train),
                tokens_per_epoch=lessons.tokens,
                trained_tokens_per_epoch=lessons.trained_tokens,
                parameters=parameters,
                trainable_parameters=models.trainable_parameters(model),
            )
        )
        return parts, dataset

    def _dataset(self, loaded: LoadedModel) -> tuple[SequenceDataset | StepDataset, int]:
        """What is trained on, and how many steps that is."""
        from engine.train.batches import make_dataset
        from engine.train.lessons import plan_lessons, wants_plan
        from engine.train.step_batches import StepDataset

        spec = self.spec
        if not wants_plan(spec):
            sequences = make_dataset(self.data.train, spec.data.max_length, packing=spec.data.packing)
            return sequences, total_steps(spec, len(sequences))
        planned = plan_lessons(spec, self.data.train, self.window)
        self.note(*planned.words)
        return StepDataset(planned.lessons, loaded.pad_id), len(planned.lessons.steps)

    def _trainer(self, parts: LongParts, dataset: SequenceDataset | StepDataset) -> TokenTrainer:
        from engine.train.step_batches import PlannedSteps
        from engine.train.trainer import TokenTrainer, training_arguments

        output, loaded = checkpointing.trainer_output(self.attempt.run_dir), parts.loaded
        chunk = self.spec.training.loss_chunk_tokens
        planned = len(dataset) if isinstance(dataset, PlannedSteps) else 0
        arguments = training_arguments(self.spec, output, loaded, planned_steps=planned)
        return TokenTrainer(loaded, dataset, arguments, loss_chunk_tokens=chunk, original=parts.original)

    def _train(
        self,
        parts: LongParts,
        dataset: SequenceDataset | StepDataset,
        yardstick: Yardstick,
        tally: Tally,
        gate: ShortGate | None,
    ) -> RunCallback:
        from engine.evaluation.answers import answer_all
        from engine.evaluation.rows import score_rows
        from engine.train.loop import LoopContext, RunCallback

        attempt, loaded = self.attempt, parts.loaded

        def sample(step: int) -> None:
            answers = answer_all(loaded, yardstick.questions, yardstick.max_new_tokens)
            write_samples(attempt, step, yardstick, answers)

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
            gate=gate,
        )
        trainer = self._trainer(parts, dataset)
        callback = RunCallback(context, trainer, tally)
        resume = attempt.resume
        if resume is not None and tally.complete:
            # Trained to the end already; a later phase was interrupted.
            _load_adapter(loaded, resume.path)
            return callback
        trainer.add_callback(callback)
        attempt.phase("training")
        attempt.signals.defer()
        try:
            trainer.train(resume_from_checkpoint=str(resume.path) if resume is not None else None)
        except Exception as error:
            if not checkpointing.is_full_disk(error, while_saving=callback.saving):
                raise
            cause = error.cause if isinstance(error, EngineError) else str(error).splitlines()[0]
            callback.no_room("There is no room left to write a checkpoint.", cause)
        checkpointing.discard_staging(attempt.run_dir)
        if callback.ending == "paused" and not callback.tally.complete:
            self._say_paused(callback)
        if callback.ending != "paused":
            attempt.signals.undefer()
        return callback

    def _say_paused(self, callback: RunCallback) -> None:
        if "room" not in callback.ending_reason:
            return
        step = checkpoints.newest_step(self.attempt.run_dir)
        kept = f"The checkpoint of step {step} is kept." if step else "There was no checkpoint yet."
        self.attempt.warn(f"{callback.ending_reason} {kept}", "Free some space, then resume the run.")

    def _save_adapter(self, loaded: LoadedModel) -> card.Adapter:
        from engine.train.model import trainable_parameters
        from engine.train.output import folder_bytes, save_adapter

        self.attempt.phase("saving", "adapter")
        extended = self.window is not None and self.window.plan is not None
        path = save_adapter(self.attempt.run_dir, loaded.model, self.ref, extended=extended)
        return card.Adapter(
            path=path.relative_to(self.attempt.run_dir).as_posix(),
            size_bytes=folder_bytes(path),
            parameters=trainable_parameters(loaded.model),
        )

    def _finish(self, parts: LongParts, sides: Sides, tally: Tally, adapter: card.Adapter) -> None:
        from engine.jobs.card_io import write_card

        attempt, loaded = self.attempt, parts.loaded
        after = measured_after(attempt, loaded, sides.yardstick, tally.step)
        lengths = parts.lengths_after(sides.lengths, tally.step)
        merged = self._merge(loaded, tally) if self.spec.output.merge else None
        if tally.early_stopped:
            why = "the held-out loss no longer fell; the adapter is that of the last step"
            self.notes.append(f"Stopped early at step {tally.step}: {why}.")
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
        write_card(attempt.run_dir, report.build_card(facts))
        attempt.journal.write(ev.CardReady(t=time.time()))

    def _merge(self, loaded: LoadedModel, tally: Tally) -> card.MergeCheck:
        from engine.train.merge import MergeJob, compared_rows, merge, merged_certificate, take_reference

        self.attempt.phase("merging")
        rows = compared_rows(self.data, loaded.vocab_size)
        run_dir = self.attempt.run_dir
        certificate = merged_certificate(run_dir, self.spec, self.window, tally)
        job = MergeJob(run_dir, self.spec, self.ref, rows, self.attempt.device, certificate)
        return merge(job, take_reference(loaded, rows), self.data.tokenizer)


@dataclass(frozen=True, slots=True)
class Sides:
    """What the model was measured with, and what came of it before the first step."""

    yardstick: Yardstick
    before: Measurement
    lengths: Before | None


def _load_adapter(loaded: LoadedModel, folder: Path) -> None:
    loaded.model.load_adapter(str(folder), loaded.model.active_adapter, is_trainable=True)
