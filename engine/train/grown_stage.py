"""One stage of training on whole weights: from a model folder to a better one, resumable at every checkpoint.

Owns the phases of a stage. Must not know which stage it is beyond its numbers, nor growth.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.errors import EngineError
from engine.evaluation.answers import answer_all
from engine.evaluation.measure import Measurement
from engine.evaluation.retention import Comparison, Watch
from engine.evaluation.rows import score_rows
from engine.expansion.certificate import Certificate
from engine.jobs import checkpoints
from engine.jobs import events as ev
from engine.jobs.spec import JobSpec
from engine.train import checkpointing
from engine.train import model as models
from engine.train.attempt import Attempt, Outcome
from engine.train.carried_moments import read_moments, write_moments
from engine.train.course import read_setbacks
from engine.train.documents_log import DocumentsLog
from engine.train.endings import rules_of
from engine.train.environment import quiet_libraries, seed_everything
from engine.train.grown_model import GrownModel, load_grown
from engine.train.grown_optimizer import GrownAdamW
from engine.train.grown_trainer import GrownTrainer
from engine.train.job_data import JobData
from engine.train.limits import Limits, WatchLimit
from engine.train.loop import LoopContext, RunCallback
from engine.train.measuring import measured_after, measured_before, write_samples, yardstick_of
from engine.train.model_output import write_model
from engine.train.parts import require_certificate
from engine.train.ranked import base_device, parallel_of
from engine.train.stage_data import StageData, StageStart, count_steps, stage_data
from engine.train.stage_result import StageResult, keep_result
from engine.train.step_batches import PlannedSteps
from engine.train.tally import Tally
from engine.train.trained_weights import load_trained
from engine.train.trainer import training_arguments
from engine.train.watching import held_place

if TYPE_CHECKING:
    from engine.distributed.parallel import Parallel
    from engine.evaluation.measure import Yardstick
    from engine.evaluation.model import LoadedModel
    from engine.train.ranked_loop import Leading

_GB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class StageOrder:
    """What a stage is given."""

    attempt: Attempt
    spec: JobSpec
    """Of this stage."""
    index: int
    later: tuple[JobSpec, ...]
    """The stages after it."""
    data: JobData
    documents: DocumentsLog | None
    watch: Watch | None
    """None on a rank that follows."""
    folder: Path
    certificate: Certificate | None
    moments: Path | None
    """Moments to begin with."""
    target: Path
    moments_target: Path | None
    """Where to leave moments; None in the last stage."""
    final: Path
    """Where a stopped run leaves its model."""
    notes: list[str]
    tally: Tally
    """Of the whole job; goes on in this stage."""

    @property
    def is_last(self) -> bool:
        return not self.later


def train_stage(order: StageOrder) -> StageResult:
    """Raises EngineError, PauseRequested, or whatever a library raises."""
    return _Stage(order).run()


def follow_stage(order: StageOrder) -> Parallel:
    """The same on a rank that does not lead."""
    return _Stage(order).follow()


class _Stage:
    """Each method is a phase."""

    def __init__(self, order: StageOrder) -> None:
        self.order, self.attempt, self.spec, self.data = order, order.attempt, order.spec, order.data.rows
        self.data_sha256 = order.data.sha256
        resume, self.tally = self.attempt.resume, order.tally
        self.resume = resume if resume is not None and resume.progress.stage == order.index else None
        self.first_step = self.resume.progress.stage_first_step if self.resume else self.tally.step
        if self.resume is None:
            self.tally.begin_stage(self.attempt.worked_seconds())
        self.optimizer: GrownAdamW | None = None
        self.parallel: Parallel | None = None

    @property
    def watch(self) -> Watch:
        """Of the leader."""
        assert self.order.watch is not None
        return self.order.watch

    def run(self) -> StageResult:
        attempt = self.attempt
        if attempt.resume is not None:
            self._check_same_run()
        grown, loaded, data = self._load()
        yardstick = yardstick_of(self.spec, self.data)
        attempt.obey_before_training()
        before = measured_before(attempt, loaded, yardstick)
        self.watch.before(loaded)
        attempt.obey_before_training()
        callback = self._train(grown, loaded, data, yardstick)
        if callback.ending == "paused":
            paused = Outcome("paused", self.tally.step, callback.ending_reason, "Resume it when you like.")
            return self._result(grown, yardstick, before, None, paused)
        try:
            return self._end(grown, loaded, yardstick, before, callback)
        except Exception as error:
            if not checkpointing.is_full_disk(error, while_saving=True):
                raise
            what = "There is no room left to write the results; the last checkpoint is kept."
            attempt.warn(what, "Free some space, then resume the run: nothing is trained again.")
            paused = Outcome("paused", self.tally.step, what, "Free some space, then resume the run.")
            return self._result(grown, yardstick, before, None, paused)

    def _result(
        self,
        grown: GrownModel,
        yardstick: Yardstick,
        before: Measurement,
        after: Measurement | None,
        outcome: Outcome | None,
    ) -> StageResult:
        trained = sum(parameter.numel() for _, parameter in grown.ever_learning())
        questions = tuple(yardstick.questions)
        return StageResult(self.data_sha256, before, after, questions, trained, outcome)

    def _check_same_run(self) -> None:
        resume = self.attempt.resume
        assert resume is not None
        messages = checkpointing.check_same_run(
            resume, self.attempt.run_dir, data_sha256=self.data_sha256, current=self.progress(self.tally)
        )
        for message in messages:
            if message not in self.order.notes:
                self.attempt.warn(message)
                self.order.notes.append(message)

    def progress(self, tally: Tally) -> checkpointing.Progress:
        """What goes into a checkpoint beside the Trainer's state."""
        order = self.order
        return self.attempt.progress(tally, self.data_sha256, stage=order.index, first_step=self.first_step)

    def _load(self) -> tuple[GrownModel, LoadedModel, StageData]:
        attempt, spec = self.attempt, self.spec
        attempt.phase("loading model", "importing libraries")
        quiet_libraries()
        models.check_hardware(spec, attempt.device)
        certificate = self.order.certificate
        if spec.task.needs_growth and certificate is None:
            certificate = require_certificate(self.order.folder)
        kind = spec.quantization_kind
        attempt.phase("loading model", f"old part in 4 bit ({kind})" if kind != "none" else "")
        seed_everything(spec.training.seed)
        place = replace(attempt.device, torch_device=base_device(attempt))
        grown = load_grown(spec, self.order.folder, place, certificate)
        loaded = models.ready(grown.model, grown.model, self.data.tokenizer, attempt.device)
        self.parallel = parallel_of(attempt, grown.model, grown.model)
        data = self._stage_data(loaded)
        later = sum(count_steps(one, self.order.data) for one in self.order.later if one.task.trains)
        lessons = getattr(data.dataset, "lessons", data.dataset)
        attempt.journal.write(
            ev.Plan(
                t=time.time(),
                total_steps=self.first_step + data.steps + later,
                rows=data.rows,
                tokens_per_epoch=lessons.tokens,
                trained_tokens_per_epoch=lessons.trained_tokens,
                parameters=int(grown.model.num_parameters()),
                trainable_parameters=sum(parameter.numel() for _, parameter in grown.ever_learning()),
            )
        )
        return grown, loaded, data

    def _stage_data(self, loaded: LoadedModel) -> StageData:
        """From where the stage before ended, and past what earlier leaps of the loss passed over."""
        setbacks = tuple(one for one in read_setbacks(self.attempt.run_dir) if one.stage == self.order.index)
        ranked = self.parallel is not None
        start = StageStart(loaded.pad_id, position=self.tally.stage_position, setbacks=setbacks, ranked=ranked)
        data = stage_data(self.spec, self.order.data, start)
        for sentence in data.words:
            self.attempt.warn(sentence)
            self.order.notes.append(sentence)
        return data

    def _trainer(self, grown: GrownModel, loaded: LoadedModel, data: StageData) -> GrownTrainer:
        output = checkpointing.trainer_output(self.attempt.run_dir)
        planned = data.steps if isinstance(data.dataset, PlannedSteps) else 0
        arguments = training_arguments(self.spec, output, loaded, planned_steps=planned)
        trainer = GrownTrainer(loaded, data.dataset, arguments, grown, self.spec.training, self.parallel)
        if self.resume is None and self.order.moments is not None:
            trainer.carried = read_moments(self.order.moments, grown, self.order.folder)
        return self.order.data.taught(trainer, self.spec)

    def follow(self) -> Parallel:
        """A rank that does not lead: its part of the training. Returns what it serves the leader with after it."""
        from engine.train.ranked_loop import follow_training

        grown, loaded, data = self._load()
        parallel = self.parallel
        assert parallel is not None
        follow_training(self.attempt.run_dir, self._trainer(grown, loaded, data), parallel, self.resume)
        return parallel

    def _train(self, grown: GrownModel, loaded: LoadedModel, data: StageData, yardstick: Yardstick) -> RunCallback:
        attempt, resume = self.attempt, self.resume
        trainer = self._trainer(grown, loaded, data)
        leading = None
        if self.parallel is not None:
            from engine.train.ranked_loop import leading_of

            leading = leading_of(attempt.run_dir, trainer, resume)
        callback = RunCallback(self._context(grown, loaded, data, yardstick, leading), trainer, self.tally)
        if resume is not None and self.tally.complete and leading is not None and leading.shards:
            leading.load_trained()
            return callback
        if resume is not None and self.tally.complete:
            load_trained(resume.path, grown.ever_learning())  # trained to the end; a later phase was interrupted
            trainer.create_optimizer().load_state_dict(
                torch.load(resume.path / "optimizer.pt", map_location="cpu", weights_only=True)
            )
            self.optimizer = trainer.grown_optimizer
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
        if not any(later.task.trains for later in self.order.later):
            self.order.data.close_teacher()
        if callback.ending == "paused" and not self.tally.complete and "room" in callback.ending_reason:
            step = checkpoints.newest_step(attempt.run_dir)
            kept = f"The checkpoint of step {step} is kept." if step else "There was no checkpoint yet."
            attempt.warn(f"{callback.ending_reason} {kept}", "Free some space, then resume the run.")
        if callback.ending != "paused":
            attempt.signals.undefer()
        self.optimizer = trainer.grown_optimizer
        return callback

    def _context(
        self,
        grown: GrownModel,
        loaded: LoadedModel,
        data: StageData,
        yardstick: Yardstick,
        leading: Leading | None,
    ) -> LoopContext:
        def sample(step: int) -> None:
            answers = answer_all(loaded, yardstick.questions, yardstick.max_new_tokens)
            write_samples(self.attempt, step, yardstick, answers)

        return LoopContext(
            run_dir=self.attempt.run_dir,
            spec=self.spec,
            journal=self.attempt.journal,
            signals=self.attempt.signals,
            device=loaded.device,
            model=loaded.model,
            evaluate=(lambda: score_rows(loaded, self.data.heldout).loss) if self.data.heldout else None,
            sample=sample,
            progress=self.progress,
            worked_seconds=self.attempt.worked_seconds,
            first_step=self.first_step,
            stage=self.order.index,
            rules=rules_of(self.attempt.spec, self.order.index),
            stream=data.stream,
            documents=self.order.documents,
            required=checkpointing.REQUIRED_GROWN,
            checkpoint_parameters=sum(parameter.numel() for _, parameter in grown.ever_learning()),
            limits=self._limits(loaded),
            leading=leading,
        )

    def _limits(self, loaded: LoadedModel) -> Limits:
        return Limits(self.attempt.run_dir, [WatchLimit(self.watch, loaded)], self.order.index)

    def _end(
        self,
        grown: GrownModel,
        loaded: LoadedModel,
        yardstick: Yardstick,
        before: Measurement,
        callback: RunCallback,
    ) -> StageResult:
        """The model, what a later stage needs, and the measurement after the last training; a stopped run gets its
        model only."""
        order, tally = self.order, self.tally
        if callback.closed:
            outcome = self._closed(grown, callback)
            return self._result(grown, yardstick, before, None, outcome)
        stopped = callback.ending == "stopped" and not tally.complete
        if order.moments_target is not None and self.optimizer is not None and not stopped:
            self.attempt.phase("saving", "optimizer moments")
            write_moments(order.moments_target, order.folder, grown, self.optimizer)
        if stopped:
            self._write(order.final, grown, full_precision=False)
            what = callback.ending_reason or "Stopped as asked; the model is saved as it was."
            return self._result(grown, yardstick, before, None, Outcome("stopped", tally.step, what))
        if tally.early_stopped:
            why = "the held-out loss no longer fell; the model is that of the last step"
            order.notes.append(f"Stopped early at step {tally.step}: {why}.")
        if tally.ended:
            stage = f"Stage {order.index + 1} ended" if self.attempt.spec.stages else "Ended"
            order.notes.append(f"{stage} at step {tally.step}: {tally.ended}")
        measures = not any(later.task.trains for later in order.later)
        after = measured_after(self.attempt, loaded, yardstick, tally.step) if measures else None
        compared = self._compare(loaded)
        result = replace(self._result(grown, yardstick, before, after, None), compared=compared)
        if not order.is_last:
            keep_result(order.target.parent, result)
        held = order.is_last and compared.held
        target = held_place(self.attempt.run_dir, order.target.name) if held else order.target
        self._write(target, grown, full_precision=not order.is_last)
        return result

    def _compare(self, loaded: LoadedModel) -> Comparison:
        """With the parent, and kept for the card where the job has stages."""
        stages, index = self.attempt.spec.stages, self.order.index
        number, name = (index + 1, stages[index].name) if stages else (0, "")
        return self.watch.after(loaded, self.tally.step, stage=number, name=name)

    def _closed(self, grown: GrownModel, callback: RunCallback) -> Outcome:
        """A limit was broken: back to the weights that kept all of them; where this stage has none, nothing is
        promoted."""
        limits, order = callback.context.limits, self.order
        assert limits is not None
        if limits.good_step:
            load_trained(limits.folder, grown.ever_learning())
            self._write(order.final, grown, full_precision=False)
            return Outcome("stopped", limits.good_step, callback.ending_reason)
        target = held_place(self.attempt.run_dir, order.final.name)
        self._write(target, grown, full_precision=False)
        where = target.relative_to(self.attempt.run_dir).as_posix()
        what = f"{callback.ending_reason} Not promoted: the model lies in {where}."
        return Outcome("stopped", self.tally.step, what)

    def _write(self, target: Path, grown: GrownModel, *, full_precision: bool) -> None:
        self.attempt.phase("saving", "model")
        shard_bytes = round(self.spec.expansion.shard_gb * _GB)
        values = None if self.parallel is None else self.parallel.whole()
        write_model(
            target, self.order.folder, grown, shard_bytes=shard_bytes, full_precision=full_precision, values=values
        )
