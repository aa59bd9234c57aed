"""One stage of training on whole weights: from a model folder to a better one, resumable at every checkpoint.

Owns the phases of a stage. Must not know which stage it is beyond its numbers, nor growth.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from engine.data.load import PreparedData
from engine.errors import EngineError
from engine.evaluation.answers import Question, answer_all
from engine.evaluation.measure import Measurement
from engine.evaluation.rows import score_rows
from engine.expansion.certificate import Certificate
from engine.jobs import checkpoints, layout
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
from engine.train.loop import LoopContext, RunCallback
from engine.train.measuring import measured_after, measured_before, write_samples, yardstick_of
from engine.train.model_output import write_model
from engine.train.parts import require_certificate
from engine.train.stage_data import StageData, StageStart, count_steps, stage_data
from engine.train.step_batches import PlannedSteps
from engine.train.tally import Tally
from engine.train.trained_weights import load_trained
from engine.train.trainer import training_arguments

if TYPE_CHECKING:
    from engine.evaluation.measure import Yardstick
    from engine.evaluation.model import LoadedModel

RESULT = "result.json"
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


@dataclass(frozen=True, slots=True)
class StageResult:
    """How a stage ended; `outcome` is set when the run ends here."""

    data_sha256: str
    before: Measurement
    after: Measurement | None
    questions: tuple[Question, ...]
    trained_parameters: int
    outcome: Outcome | None = None


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """`stages/NN/result.json`: what the card needs of a stage that ended in an earlier attempt."""

    data_sha256: str
    before: Measurement
    after: Measurement | None
    trained_parameters: int


def keep_result(folder: Path, result: StageResult) -> None:
    """For a later attempt, which does not train this stage again."""
    kept = _Kept(
        data_sha256=result.data_sha256,
        before=result.before,
        after=result.after,
        trained_parameters=result.trained_parameters,
    )
    layout.write_atomic(folder / RESULT, msgspec.json.format(msgspec.json.encode(kept)))


def kept_result(folder: Path, spec: JobSpec, data: PreparedData) -> StageResult | None:
    """None where the stage has not ended."""
    if not (folder / RESULT).is_file():
        return None
    kept = msgspec.json.decode((folder / RESULT).read_bytes(), type=_Kept)
    questions = tuple(yardstick_of(spec, data).questions)
    return StageResult(kept.data_sha256, kept.before, kept.after, questions, kept.trained_parameters)


def train_stage(order: StageOrder) -> StageResult:
    """Raises EngineError, PauseRequested, or whatever a library raises."""
    return _Stage(order).run()


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

    def run(self) -> StageResult:
        attempt = self.attempt
        if attempt.resume is not None:
            self._check_same_run()
        grown, loaded, data = self._load()
        yardstick = yardstick_of(self.spec, self.data)
        attempt.obey_before_training()
        before = measured_before(attempt, loaded, yardstick)
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
        grown = load_grown(spec, self.order.folder, attempt.device, certificate)
        loaded = models.ready(grown.model, grown.model, self.data.tokenizer, attempt.device)
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
        start = StageStart(loaded.pad_id, position=self.tally.stage_position, setbacks=setbacks)
        data = stage_data(self.spec, self.order.data, start)
        for sentence in data.words:
            self.attempt.warn(sentence)
            self.order.notes.append(sentence)
        return data

    def _train(self, grown: GrownModel, loaded: LoadedModel, data: StageData, yardstick: Yardstick) -> RunCallback:
        attempt, resume = self.attempt, self.resume
        output = checkpointing.trainer_output(attempt.run_dir)
        planned = data.steps if isinstance(data.dataset, PlannedSteps) else 0
        arguments = training_arguments(self.spec, output, loaded, planned_steps=planned)
        trainer = GrownTrainer(loaded, data.dataset, arguments, grown, self.spec.training)
        callback = RunCallback(self._context(grown, loaded, data, yardstick), trainer, self.tally)
        if resume is not None and self.tally.complete:
            load_trained(resume.path, grown.ever_learning())  # trained to the end; a later phase was interrupted
            trainer.create_optimizer().load_state_dict(
                torch.load(resume.path / "optimizer.pt", map_location="cpu", weights_only=True)
            )
            self.optimizer = trainer.grown_optimizer
            return callback
        if resume is None and self.order.moments is not None:
            trainer.carried = read_moments(self.order.moments, grown, self.order.folder)
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
        if callback.ending == "paused" and not self.tally.complete and "room" in callback.ending_reason:
            step = checkpoints.newest_step(attempt.run_dir)
            kept = f"The checkpoint of step {step} is kept." if step else "There was no checkpoint yet."
            attempt.warn(f"{callback.ending_reason} {kept}", "Free some space, then resume the run.")
        if callback.ending != "paused":
            attempt.signals.undefer()
        self.optimizer = trainer.grown_optimizer
        return callback

    def _context(self, grown: GrownModel, loaded: LoadedModel, data: StageData, yardstick: Yardstick) -> LoopContext:
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
        )

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
        result = self._result(grown, yardstick, before, after, None)
        if not order.is_last:
            keep_result(order.target.parent, result)
        self._write(order.target, grown, full_precision=not order.is_last)
        return result

    def _write(self, target: Path, grown: GrownModel, *, full_precision: bool) -> None:
        self.attempt.phase("saving", "model")
        shard_bytes = round(self.spec.expansion.shard_gb * _GB)
        write_model(target, self.order.folder, grown, shard_bytes=shard_bytes, full_precision=full_precision)
