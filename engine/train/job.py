"""One attempt at a run, from the spec to the card, in the order a person would tell it.

Owns the phases and what is kept between attempts (`before.json`). Must not know processes, exit codes or signals beyond
the wish to pause: those are the worker's (`engine.train.worker`). Heavy imports happen inside the phases that need
them, so that bad data is refused before the first of them.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.errors import EngineError
from engine.jobs import card, checkpoints, control, layout
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.spec import JobSpec
from engine.models.resolve import download_weights, resolve_model
from engine.models.source import ModelRef
from engine.train import checkpointing, report
from engine.train.data_hash import rows_sha256
from engine.train.environment import Device
from engine.train.questions import card_questions, total_steps
from engine.train.signals import PauseRequested, PauseSignals
from engine.train.tally import Tally

if TYPE_CHECKING:
    from engine.data.load import PreparedData
    from engine.evaluation.measure import Measurement, Yardstick
    from engine.evaluation.model import LoadedModel
    from engine.train.batches import SequenceDataset
    from engine.train.loop import RunCallback

BEFORE = "before.json"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the worker hands over."""

    run_dir: Path
    spec: JobSpec
    spec_hash: str
    created: float
    journal: JournalWriter
    signals: PauseSignals
    device: Device
    threads: int
    versions: dict[str, str]
    resume: checkpointing.Resume | None
    worked_before_seconds: float
    began: float = field(default_factory=time.time)

    def phase(self, name: str, detail: str = "", done: int = 0, total: int = 0) -> None:
        """Say what is going on."""
        self.journal.write(ev.Phase(t=time.time(), name=name, detail=detail, done=done, total=total))

    def warn(self, message: str, next_step: str = "") -> None:
        """Say what is not as it should be."""
        self.journal.write(ev.Warn(t=time.time(), message=message, next_step=next_step))

    def worked_seconds(self) -> float:
        """Wall time with a worker alive, over all attempts."""
        return self.worked_before_seconds + time.time() - self.began

    def obey_before_training(self) -> None:
        """Pause and stop are honoured between the phases before the first step as well."""
        command = control.take(self.run_dir)
        if command in ("pause", "stop"):
            self.journal.write(ev.Control(t=time.time(), command=command))
            raise PauseRequested("", command)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The texts of an End event for everything but failure."""

    outcome: str
    step: int
    what: str = ""
    next_step: str = ""


def run(attempt: Attempt) -> Outcome:
    """Everything. Raises EngineError, PauseRequested, or whatever a library raises."""
    ref = _find_model(attempt)
    data = _prepare_data(attempt, ref)
    return _Job(attempt, ref, data).run()


def _find_model(attempt: Attempt) -> ModelRef:
    attempt.phase("loading model")
    source = attempt.spec.model
    ref = resolve_model(source.source, revision=source.revision)
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 1 or done >= total:
            last = time.monotonic()
            attempt.phase("loading model", f"downloading {ref.repo_id}", done, total)

    return download_weights(ref, progress)


def _prepare_data(attempt: Attempt, ref: ModelRef) -> PreparedData:
    from engine.data.load import prepare

    attempt.phase("preparing data")
    assert ref.path is not None
    data = prepare(attempt.spec.data, ref.path, now=datetime.fromtimestamp(attempt.created))
    for warning in data.report.warnings:
        attempt.warn(warning)
    attempt.obey_before_training()
    return data


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
        yardstick = self._yardstick()
        attempt.obey_before_training()
        before = self._before(loaded, yardstick)
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

    def _yardstick(self) -> Yardstick:
        from engine.evaluation.measure import Yardstick

        section = self.spec.evaluation
        return Yardstick(
            heldout=self.data.heldout,
            base_text=self.data.base_text,
            questions=card_questions(self.spec, self.data),
            exact_match_rows=section.exact_match_rows,
            max_new_tokens=section.max_new_tokens,
        )

    def _before(self, loaded: LoadedModel, yardstick: Yardstick) -> Measurement:
        """Measured once per run, with the adapter switched off, and kept for later attempts."""
        from engine.evaluation.measure import Measurement

        attempt = self.attempt
        path = attempt.run_dir / BEFORE
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            kept = msgspec.json.decode(path.read_bytes(), type=Measurement)
            if len(kept.answers) == len(yardstick.questions):
                return kept
        attempt.phase("measuring before")
        with loaded.base_only():
            before = yardstick.measure(loaded, lambda *what: attempt.phase("measuring before", *what))
        layout.write_atomic(path, msgspec.json.format(msgspec.json.encode(before)))
        self._write_samples(0, yardstick, before.answers)
        return before

    def _write_samples(self, step: int, yardstick: Yardstick, answers: Any) -> None:
        for question, text in zip(yardstick.questions, answers, strict=True):
            self.attempt.journal.write(
                ev.Sample(t=time.time(), step=step, prompt=question.prompt, text=text, expected=question.expected)
            )

    def _train(self, loaded: LoadedModel, dataset: SequenceDataset, yardstick: Yardstick, tally: Tally) -> RunCallback:
        from engine.evaluation.answers import answer_all
        from engine.evaluation.rows import score_rows
        from engine.train.loop import LoopContext, RunCallback
        from engine.train.trainer import TokenTrainer, training_arguments

        attempt = self.attempt

        def sample(step: int) -> None:
            answers = answer_all(loaded, yardstick.questions, yardstick.max_new_tokens)
            self._write_samples(step, yardstick, answers)

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
        attempt.phase("measuring after")
        after = yardstick.measure(loaded, lambda *what: attempt.phase("measuring after", *what))
        self._write_samples(tally.step, yardstick, after.answers)
        if self.data.heldout:
            attempt.journal.write(
                ev.Eval(t=time.time(), step=tally.step, loss=after.scores.task_loss, seconds=after.scores.seconds)
            )
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
