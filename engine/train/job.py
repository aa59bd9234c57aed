"""One attempt at a run, from the spec to the card, in the order a person would tell it.

Owns the phases of training an adapter; jobs on whole weights are `engine.train.grown_job`'s. Must not know processes,
exit codes or signals beyond the wish to pause: those are the worker's (`engine.train.worker`). Heavy imports happen
inside the phases that need them, so that bad data is refused before the first of them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.jobs import card, checkpoints
from engine.jobs import events as ev
from engine.models.source import ModelRef
from engine.train import checkpointing, report
from engine.train.attempt import Attempt, Outcome, find_model, prepare_data
from engine.train.data_hash import rows_sha256
from engine.train.measuring import measured_after, measured_before, write_samples, yardstick_of
from engine.train.questions import total_steps
from engine.train.tally import Tally

__all__ = ["Attempt", "Outcome", "run"]

if TYPE_CHECKING:
    from engine.data.load import PreparedData
    from engine.evaluation.measure import Measurement, Yardstick
    from engine.evaluation.model import LoadedModel
    from engine.train.batches import SequenceDataset
    from engine.train.loop import RunCallback


def run(attempt: Attempt) -> Outcome:
    """Everything. Raises EngineError, PauseRequested, or whatever a library raises."""
    if not attempt.spec.task.trains_adapter:
        from engine.train import grown_job

        return grown_job.run(attempt)
    ref = find_model(attempt)
    data = prepare_data(attempt, ref)
    return _Job(attempt, ref, data).run()


class _Job:
    """The phases after the data is known; each method is one of them."""

    def __init__(self, attempt: Attempt, ref: ModelRef, data: PreparedData) -> None:
        self.attempt = attempt
        self.spec = attempt.spec
        self.ref = ref
        self.data = data
        self.data_sha256 = rows_sha256((data.train, data.heldout, data.base_text))
        self.notes: list[str] = []

    def run(self) -> Outcome:
        attempt = self.attempt
        tally = Tally()
        if attempt.resume is not None:
            tally = Tally.of(attempt.resume.progress)
            current = self.progress(tally)
            for message in checkpointing.check_same_run(
                attempt.resume, attempt.run_dir, data_sha256=self.data_sha256, current=current
            ):
                attempt.warn(message)
                self.notes.append(message)
        loaded, dataset = self._load()
        yardstick = yardstick_of(self.spec, self.data)
        attempt.obey_before_training()
        before = measured_before(attempt, loaded, yardstick)
        attempt.obey_before_training()
        callback = self._train(loaded, dataset, yardstick, tally)
        if callback.ending == "paused":
            return Outcome("paused", tally.step, callback.ending_reason, "Resume it when you like.")
        try:
            return self._results(loaded, yardstick, before, callback)
        except Exception as error:
            if not checkpointing.is_full_disk(error, while_saving=True):
                raise
            what = "There is no room left to write the results; the last checkpoint is kept."
            attempt.warn(what, "Free some space, then resume the run: nothing is trained again.")
            return Outcome("paused", tally.step, what, "Free some space, then resume the run.")

    def _results(
        self, loaded: LoadedModel, yardstick: Yardstick, before: Measurement, callback: RunCallback
    ) -> Outcome:
        """Adapter, measurements and card; a stopped run gets the adapter only."""
        tally = callback.tally
        adapter = self._save_adapter(loaded)
        if callback.ending == "stopped" and not tally.complete:
            what = callback.ending_reason or "Stopped as asked; the adapter is saved."
            return Outcome("stopped", tally.step, what)
        self._finish(loaded, yardstick, before, tally, adapter)
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
        )

    # ── phases ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _load(self) -> tuple[LoadedModel, SequenceDataset]:
        attempt, spec = self.attempt, self.spec
        attempt.phase("loading model", "importing libraries")
        from engine.train import model as models
        from engine.train.batches import make_dataset
        from engine.train.environment import quiet_libraries, seed_everything

        quiet_libraries()
        models.check_hardware(spec, attempt.device)
        kind = spec.quantization_kind
        attempt.phase("loading model", f"in 4 bit ({kind})" if kind != "none" else "")
        assert self.ref.path is not None
        base = models.load_base(models.base_request(spec, self.ref.path, attempt.device))
        parameters = int(base.num_parameters())
        seed_everything(spec.training.seed)  # the adapter's start is drawn from here
        model = models.add_adapter(base, spec.adapter, gradient_checkpointing=spec.training.gradient_checkpointing)
        loaded = models.ready(model, base, self.data.tokenizer, attempt.device)
        dataset = make_dataset(self.data.train, spec.data.max_length, packing=spec.data.packing)
        attempt.journal.write(
            ev.Plan(
                t=time.time(),
                total_steps=total_steps(spec, len(dataset)),
                rows=len(self.data.train),
                tokens_per_epoch=dataset.tokens,
                trained_tokens_per_epoch=dataset.trained_tokens,
                parameters=parameters,
                trainable_parameters=models.trainable_parameters(model),
            )
        )
        return loaded, dataset

    def _train(self, loaded: LoadedModel, dataset: SequenceDataset, yardstick: Yardstick, tally: Tally) -> RunCallback:
        from engine.evaluation.answers import answer_all
        from engine.evaluation.rows import score_rows
        from engine.train.loop import LoopContext, RunCallback
        from engine.train.trainer import TokenTrainer, training_arguments

        attempt = self.attempt

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
        )
        arguments = training_arguments(self.spec, checkpointing.trainer_output(attempt.run_dir), loaded)
        trainer = TokenTrainer(loaded, dataset, arguments)
        callback = RunCallback(context, trainer, tally)
        resume = attempt.resume
        if resume is not None and tally.complete:
            # Trained to the end already; a later phase was interrupted.
            loaded.model.load_adapter(str(resume.path), loaded.model.active_adapter, is_trainable=True)
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
        path = save_adapter(self.attempt.run_dir, loaded.model, self.ref)
        return card.Adapter(
            path=path.relative_to(self.attempt.run_dir).as_posix(),
            size_bytes=folder_bytes(path),
            parameters=trainable_parameters(loaded.model),
        )

    def _finish(
        self, loaded: LoadedModel, yardstick: Yardstick, before: Measurement, tally: Tally, adapter: card.Adapter
    ) -> None:
        from engine.jobs.card_io import write_card

        attempt = self.attempt
        after = measured_after(attempt, loaded, yardstick, tally.step)
        merged = self._merge(loaded) if self.spec.output.merge else None
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
            before=before,
            after=after,
            questions=tuple(yardstick.questions),
            adapter=adapter,
            merged=merged,
            notes=tuple(self.notes),
        )
        write_card(attempt.run_dir, report.build_card(facts))
        attempt.journal.write(ev.CardReady(t=time.time()))

    def _merge(self, loaded: LoadedModel) -> card.MergeCheck:
        from engine.train.merge import MergeJob, compared_rows, merge, take_reference

        self.attempt.phase("merging")
        rows = compared_rows(self.data, loaded.vocab_size)
        job = MergeJob(self.attempt.run_dir, self.spec, self.ref, rows, self.attempt.device)
        return merge(job, take_reference(loaded, rows), self.data.tokenizer)
