"""The training loop's decisions: what is written, evaluated, saved and obeyed at the end of each step.

Owns the callback. transformers' Trainer turns the wheel; what this program adds happens here, in public callbacks:

    step ends ─► on_log: Step event ─► evaluate, sample, stop early? ─► pause, stop, budget? ─► save? ─► on_save: commit

Must not know how models are loaded or what happens after the last step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainerCallback

from engine.errors import EngineError, ExitCode
from engine.jobs import checkpoints, control
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.spec import JobSpec
from engine.jobs.summary import cost_usd
from engine.schedule.stops import is_spike
from engine.train import checkpointing
from engine.train.documents_log import DocumentsLog
from engine.train.endings import Rules
from engine.train.limits import Limits, Verdict
from engine.train.meters import peak_of
from engine.train.model import are_finite, trainable_parameters
from engine.train.pieces import Split
from engine.train.signals import PauseSignals
from engine.train.spikes import Leap, go_back
from engine.train.tally import Tally
from engine.train.trainer import TokenTrainer
from engine.units import format_usd

if TYPE_CHECKING:
    from engine.train.ranked_loop import Leading
    from engine.train.stream_batches import StreamSteps

MEMORY_CHECK_STEPS = 20
STATE_BYTES_PER_PARAMETER = 12
"""Of a checkpoint: the adapter and two AdamW moments in fp32."""
LEAST_GAIN = 1e-6
"""An evaluation counts as better only when it is lower by more than this, nats."""


@dataclass(frozen=True, slots=True)
class LoopContext:
    """Everything the callback needs from outside."""

    run_dir: Path
    spec: JobSpec
    journal: JournalWriter
    signals: PauseSignals
    device: str
    model: nn.Module
    evaluate: Callable[[], float] | None
    """Held-out loss of the model as it is now; None without held-out rows."""
    sample: Callable[[int], None]
    """Answer the fixed prompts and write them down for this step."""
    progress: Callable[[Tally], checkpointing.Progress]
    worked_seconds: Callable[[], float]
    """Wall time with a worker alive, over all attempts."""
    first_step: int = 0
    """Steps done before this training began: those of earlier stages."""
    required: tuple[str, ...] = checkpointing.REQUIRED
    """Files that a checkpoint must have."""
    checkpoint_parameters: int = 0
    """How many parameters a checkpoint holds; 0 for those that learn now."""
    stage: int = 0
    """Of a staged job, from 0."""
    rules: Rules | None = None
    """That end the stage or the job early."""
    stream: StreamSteps | None = None
    """The data, where it is streamed text."""
    documents: DocumentsLog | None = None
    """Where to write down what each step was made of."""
    limits: Limits | None = None
    """Looks at what may be lost by training, and measures what is followed beside the loss."""
    leading: Leading | None = None
    """Where other ranks train too."""


class RunCallback(TrainerCallback):
    """One per attempt."""

    def __init__(self, context: LoopContext, trainer: TokenTrainer, tally: Tally) -> None:
        self.context = context
        self.trainer = trainer
        self.tally = tally
        self.ending = ""
        """ "paused" or "stopped" when the run was asked to end; empty while it goes on or has no step left."""
        self.ending_reason = ""
        held = context.checkpoint_parameters or trainable_parameters(context.model)
        self._checkpoint_bytes = STATE_BYTES_PER_PARAMETER * held
        self.saving = False
        """A checkpoint is being written: a failure now is a failure of writing."""
        self.verdict: Verdict | None = None
        """The limits', of this step; None where none was looked at."""
        self._mark = time.perf_counter()
        self._peak_bytes = 0
        if context.leading is not None:
            tally.pieces = context.leading.pieces(tally.pieces)
        trainer.pieces, trainer.writing_pieces = tally.pieces, tally.writing_pieces
        trainer.first_step = context.first_step
        trainer.on_split = self._tell_split

    # ── called by the Trainer ─────────────────────────────────────────────────────────────────────────────────────
    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock of the first step starts here."""
        if self.context.leading is not None:
            self.context.leading.begin()
        self.trainer.renew_rates()
        self._mark = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Where memory that runs out now runs out."""
        self.trainer.doing = "the update of the weights"

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The update is done."""
        self.trainer.doing = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Have the loss of this very step worked out; `on_log` follows at once."""
        control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> Any:
        """The step is complete: write it down and decide what comes next."""
        if logs is None or "loss" not in logs:
            return control  # the Trainer's summary at the end
        state.log_history.clear()  # the journal has it; the list would grow with every step
        if self.context.leading is not None:
            self.context.leading.step_is_done(self.context.first_step + int(state.global_step))
        self._record(state, logs)
        step = self.tally.step
        last = int(state.global_step) >= state.max_steps
        evaluated = self._evaluate(step, last)
        self._look_at_limits(step, last)
        command = self._command(step)
        self._obey_rules(evaluated=evaluated)
        self.tally.complete = last or self.tally.early_stopped or bool(self.tally.ended)
        wanted = step % self.context.spec.checkpoint.every_steps == 0 or command == "checkpoint"
        control.should_training_stop = control.should_training_stop or self.tally.complete or bool(self.ending)
        passed = self.verdict is not None and self.verdict.passed
        if (wanted or passed or control.should_training_stop) and not self.closed:
            control.should_save = self._room_for_checkpoint()
            control.should_training_stop = control.should_training_stop or not control.should_save
        if step <= 3 or step % MEMORY_CHECK_STEPS == 0 or control.should_training_stop:
            self.report_memory()
        if self.context.leading is not None:
            self._decide_for_all(self.context.leading, state, control)
        self._mark = time.perf_counter()
        return control

    def _decide_for_all(self, leading: Leading, state: Any, control: Any) -> None:
        """What all ranks do next; where each has its shards, a save is done by all of them here and now."""
        if leading.decide(stop=control.should_training_stop, save=control.should_save):
            control.should_save = False
            leading.save()
            self.on_save(None, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The Trainer has written a folder: seal it and put it in its place."""
        context = self.context
        if context.documents is not None:
            context.documents.sync()
        together = context.leading is not None and context.leading.shards
        path = checkpointing.take_over(
            context.run_dir,
            context.progress(self.tally),
            written_step=state.global_step,
            required=checkpointing.REQUIRED_SHARDED if together else context.required,
        )
        self.saving = False
        if context.limits is not None and self.verdict is not None and self.verdict.passed:
            context.limits.keep(path, self.tally.step)
        checkpoints.prune(context.run_dir, context.spec.checkpoint.keep)
        context.journal.write(
            ev.Checkpoint(
                t=time.time(),
                step=self.tally.step,
                path=path.relative_to(context.run_dir).as_posix(),
                size_bytes=checkpoints.size_bytes(path),
                seconds=time.perf_counter() - self._mark,
            ),
            sync=True,
        )
        self._mark = time.perf_counter()

    @property
    def closed(self) -> bool:
        """Whether a limit ended the training: the step that was looked at is not kept."""
        return self.verdict is not None and self.verdict.closes

    # ── parts of a step's end ─────────────────────────────────────────────────────────────────────────────────────
    def _record(self, state: Any, logs: dict[str, float]) -> None:
        loss = float(logs["loss"])
        step = self.context.first_step + int(state.global_step)
        self._look_for_a_leap(step, loss, float(logs.get("grad_norm", 0.0)))
        seconds = time.perf_counter() - self._mark
        tally, trainer = self.tally, self.trainer
        tally.step = step
        tally.training_seconds += seconds
        tally.tokens += trainer.step_tokens
        tally.trained_tokens += trainer.step_trained_tokens
        if not trainer.on_own_answers:
            tally.recent_losses = [*tally.recent_losses, loss][-self.context.spec.stop.spike_window :]
        self._record_documents(int(state.global_step))
        self.context.journal.write(
            ev.Step(
                t=time.time(),
                step=step,
                loss=loss,
                learning_rate=float(logs["learning_rate"]),
                grad_norm=float(logs.get("grad_norm", 0.0)),
                tokens=trainer.step_tokens,
                trained_tokens=trainer.step_trained_tokens,
                step_seconds=seconds,
                wait_seconds=trainer.step_wait_seconds,
                epoch=trainer.epochs_done(state),
                domains=self.context.stream.domains_of(int(state.global_step) - 1) if self.context.stream else {},
                losses=trainer.loss_parts,
            )
        )

    def _look_for_a_leap(self, step: int, loss: float, grad_norm: float) -> None:
        """Before the step counts. Planned steps can be passed over; drawn ones only end here. The loss is that of the
        weights before the step's update; those after it must be numbers too, as they may be the next checkpoint."""
        context, planned = self.context, self.trainer.planned
        broken = ""
        if math.isfinite(loss) and not math.isfinite(grad_norm):
            broken = "The gradient is no number"
        elif math.isfinite(loss) and not are_finite(context.model):
            broken = "The update made weights that are no numbers"
        # A loss on own answers is another quantity, which those of the data say nothing of.
        comparable = not (self.trainer.on_own_answers and math.isfinite(loss))
        leapt = comparable and is_spike(context.spec.stop, loss, self.tally.recent_losses)
        if planned is not None and (broken or leapt):
            leap = Leap(context.stage, context.first_step, step, loss, planned.course, broken)
            go_back(context.run_dir, context.journal, context.spec, leap, self.tally)
        if broken or not math.isfinite(loss):
            what = broken or f"The loss became {loss}"
            raise EngineError(
                "train.loss_not_finite",
                f"{what} at step {step}; training on would only spread it.",
                cause="Usually the learning rate is too high.",
                next_step="Start a new run with a third of training.learning_rate, or set stop.spike_factor, for "
                "example 2: the run then goes back and on by itself.",
                exit_code=ExitCode.RUN_FAILED,
            )

    def _record_documents(self, done: int) -> None:
        """Where the streams stand after `done` steps of the stage, and what the last of them was made of."""
        context = self.context
        if context.stream is None:
            return
        self.tally.position = dict(context.stream.position_after(done).tokens)
        if context.documents is not None:
            context.documents.add(self.tally.step, context.stream.documents_of(done - 1))

    def _tell_split(self, split: Split) -> None:
        """Memory ran out in the step under way; it was computed again, and later attempts begin as it ended."""
        remedy = f"The step was computed again with every micro-batch in {split.pieces} pieces, and so are all after it"
        if split.answers:
            self.tally.writing_pieces = split.pieces
            remedy = f"The student's answers were written in {split.pieces} times smaller batches, and so are all later"
        else:
            self.tally.pieces = split.pieces
        done = self.tally.step
        self.context.journal.write(
            ev.Recovery(
                t=time.time(),
                step=done + 1,
                trouble="out of memory",
                what=f"Memory ran out in step {done + 1} ({split.cause}).",
                back_to_step=done,
                remedy=f"{remedy}; the batch as a whole is the same.",
            ),
            sync=True,
        )

    def _evaluate(self, step: int, last: bool) -> bool:
        """Held-out loss and samples every so many steps; after the last step the card's measurement does both.
        Returns whether it was done."""
        context, section = self.context, self.context.spec.evaluation
        if not section.every_steps or step % section.every_steps or last or context.evaluate is None:
            return False
        began = time.perf_counter()
        self.trainer.doing = "an evaluation"
        context.journal.write(ev.Phase(t=time.time(), name="evaluating"))
        loss = context.evaluate()
        context.journal.write(ev.Eval(t=time.time(), step=step, loss=loss, seconds=time.perf_counter() - began))
        context.sample(step)
        self.trainer.doing = ""
        tally = self.tally
        if tally.best_eval_loss is None or loss < tally.best_eval_loss - LEAST_GAIN:
            tally.best_eval_loss, tally.evaluations_without_gain = loss, 0
        else:
            tally.evaluations_without_gain += 1
        patience = section.early_stop_patience
        tally.early_stopped = 0 < patience <= tally.evaluations_without_gain
        tally.eval_losses = [*tally.eval_losses, loss]
        return True

    def _obey_rules(self, *, evaluated: bool) -> None:
        """[stop], and what a stage says of its own end."""
        rules, worked = self.context.rules, self.context.worked_seconds()
        if rules is None or self.ending:
            return
        if (ended := rules.stage_ends(self.tally, worked, evaluated=evaluated)) is not None:
            self.tally.ended = ended.words
            self.context.journal.write(ev.Log(t=time.time(), message=ended.words))
        elif (over := rules.job_ends(worked)) is not None:
            self.ending, self.ending_reason = "stopped", over.words
            self.context.journal.write(ev.Warn(t=time.time(), message=over.words))

    def _look_at_limits(self, step: int, last: bool) -> None:
        limits = self.context.limits
        found = self.verdict = None if limits is None else limits.look(step, last=last)
        if found is not None and found.words:
            kind = ev.Log if found.passed else ev.Warn
            self.context.journal.write(kind(t=time.time(), message=found.words))

    def _command(self, step: int) -> str:
        """Somebody's wish: a control file, a signal, or the budget."""
        context = self.context
        command = control.take(context.run_dir) or ""
        if command:
            context.journal.write(ev.Control(t=time.time(), command=command))
        if self.verdict is not None and self.verdict.closes:
            self.ending, self.ending_reason = "stopped", self.verdict.words
        elif command in ("pause", "stop"):
            self.ending = "paused" if command == "pause" else "stopped"
        elif context.signals.reason:
            self.ending, self.ending_reason = "paused", context.signals.reason
        elif self._budget_is_spent():
            self.ending = "stopped"
            budget = format_usd(context.spec.cost.budget_usd)
            self.ending_reason = f"The budget of {budget} is spent."
            context.journal.write(ev.Warn(t=time.time(), message=self.ending_reason))
        return command

    def _budget_is_spent(self) -> bool:
        spec = self.context.spec
        if spec.cost.budget_usd <= 0 or spec.usd_per_hour <= 0:
            return False
        return cost_usd(self.context.worked_seconds(), spec.usd_per_hour) >= spec.cost.budget_usd

    def _room_for_checkpoint(self) -> bool:
        """Look before writing; without room the run pauses and its last good checkpoint stays."""
        try:
            checkpoints.require_room(self.context.run_dir, expected_bytes=self._checkpoint_bytes)
        except EngineError as error:
            self.no_room(error.what, error.cause)
            return False
        self.saving = True
        self.context.journal.write(ev.Phase(t=time.time(), name="saving"))
        return True

    def no_room(self, what: str, cause: str) -> None:
        """End paused at the last good checkpoint."""
        checkpointing.discard_staging(self.context.run_dir)
        self.saving = False
        self.ending = "paused"
        self.tally.complete = False
        self.tally.step = checkpoints.newest_step(self.context.run_dir)
        self.ending_reason = f"{what} {cause}".strip()

    def report_memory(self) -> None:
        """A Memory event when the peak has grown."""
        peak = peak_of(self.context.device)
        if peak.process_bytes > self._peak_bytes:
            self._peak_bytes = peak.process_bytes
            self.context.journal.write(
                ev.Memory(
                    t=time.time(),
                    peak_bytes=peak.process_bytes,
                    where=peak.where,
                    allocated_bytes=peak.allocated_bytes,
                    reserved_bytes=peak.reserved_bytes,
                    context_bytes=peak.context_bytes,
                )
            )
