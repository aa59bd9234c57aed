"""From events to the state of a run: a pure fold, one event at a time, in bounded memory.

Owns what each event means for the state, the rewind that a resume causes, speed, ETA and working time.
Must not know files, clocks or processes; whether a silent run is lost is decided in `engine.jobs.summary`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from engine.jobs import events as ev
from engine.jobs.fold_evaluation import HANDLED
from engine.jobs.series import Series
from engine.jobs.state import OUTCOMES, PHASES, RunPhase, RunState

SERIES = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")
LOG_LIMIT = 2000
CHECKPOINT_LIMIT = 100
SAMPLE_LIMIT = 200
SPEED_WINDOW_STEPS = 20
GATHERED_STEPS = 4096
SILENCE_COUNTED_SECONDS = 15.0
"""Working time after the last sign of life is unknown; three heartbeats of it are counted at most."""

_INDEPENDENT = frozenset({ev.Meter, ev.Memory, ev.Log, ev.Warn, ev.Heartbeat, ev.Rollout})
"""Kinds that mean the same before and after a step, so they end no batch of steps."""


class Fold:
    """Apply events in order; read `state` and `series()` whenever wanted.

    Steps are most of a journal, so they are gathered and taken in batches; nothing outside can tell.
    """

    def __init__(self) -> None:
        self._state = RunState()
        self._series = {name: Series() for name in SERIES}
        self._gathered: list[ev.Step] = []
        self._newest_step = 0
        self._tokens = Series()
        self._trained = Series()
        self._totals_at: dict[int, tuple[int, int]] = {}
        """Token totals at the newest checkpoints, for an exact rewind."""
        self._recent: deque[tuple[int, float]] = deque(maxlen=SPEED_WINDOW_STEPS)
        self._waits: deque[float] = deque(maxlen=SPEED_WINDOW_STEPS)
        self._worked_seconds = 0.0
        self._attempt_began: float | None = None
        self._last_alive = 0.0
        self._stepping_began: float | None = None
        self._stepping_seconds = 0.0
        self._handlers: dict[type, Callable[[Any], None]] = {
            ev.Start: self._start,
            ev.Plan: self._plan,
            ev.Phase: self._phase,
            ev.Step: self._step_again,
            ev.Eval: self._eval,
            ev.Sample: self._sample,
            ev.Meter: self._meter,
            ev.Memory: self._memory,
            ev.Checkpoint: self._checkpoint,
            ev.Warn: self._warn,
            ev.Log: self._log_event,
            ev.Control: self._control,
            ev.CardReady: self._card,
            ev.Stage: self._stage,
            ev.Growth: self._growth,
            ev.ProofReady: self._proof,
            ev.End: self._end,
            ev.RunnerStart: self._runner_start,
            ev.WorkerStart: self._worker_start,
            ev.Heartbeat: self._heartbeat,
            ev.WorkerExit: self._worker_exit,
            ev.RunnerEnd: self._runner_end,
            **dict.fromkeys(HANDLED, self._finding),
        }

    def apply(self, event: ev.AnyEvent) -> None:
        """Take one event; never raises, whatever the order."""
        if type(event) is ev.Step and event.step > self._newest_step:
            self._newest_step = event.step
            self._gathered.append(event)
            if len(self._gathered) >= GATHERED_STEPS:
                self._take_gathered()
            return
        if type(event) not in _INDEPENDENT or self._state.started is None:
            self._take_gathered()
        self._note_time(event.t, event.t, by_worker=not isinstance(event, ev.RUNNER_EVENTS))
        self._handlers[type(event)](event)

    def apply_all(self, events: Iterable[ev.AnyEvent]) -> None:
        """Take many."""
        for event in events:
            self.apply(event)

    def _note_time(self, first: float, last: float, *, by_worker: bool) -> None:
        state = self._state
        if state.started is None:
            state.started = first
        if state.updated is None or last > state.updated:
            state.updated = last
        if by_worker:
            state.worker_updated = max(state.worker_updated or last, last)
            self._last_alive = max(self._last_alive, last)

    @property
    def state(self) -> RunState:
        """The state so far, with speed, ETA and working time brought up to date."""
        self._take_gathered()
        state = self._state
        seconds = sum(seconds for _, seconds in self._recent)
        tokens = sum(count for count, _ in self._recent)
        state.tokens_per_second = tokens / seconds if seconds > 0 else None
        state.eta_seconds = self._eta_seconds()
        state.working_seconds = self._worked_seconds + self._open_seconds()
        return state

    def series(self, name: str) -> Series:
        """One of SERIES: "loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second".
        Ask anew after more events."""
        self._take_gathered()
        return self._series[name]

    # ── derived figures ───────────────────────────────────────────────────────────────────────────────────────────
    def _eta_seconds(self) -> float | None:
        """Steps left x recent seconds per step x (wall time / time inside steps) of this attempt."""
        state = self._state
        if not state.state.is_live or not self._recent or state.total_steps <= 0:
            return None
        recent = sum(seconds for _, seconds in self._recent) / len(self._recent)
        overhead = 1.0
        if self._stepping_began is not None and self._stepping_seconds > 0:
            overhead = (self._last_alive - self._stepping_began) / self._stepping_seconds
        return max(state.total_steps - state.step, 0) * recent * min(max(overhead, 1.0), 3.0)

    def _open_seconds(self) -> float:
        return 0.0 if self._attempt_began is None else max(self._last_alive - self._attempt_began, 0.0)

    def _close_attempt(self, t: float) -> None:
        if self._attempt_began is not None:
            self._last_alive = max(self._last_alive, min(t, self._last_alive + SILENCE_COUNTED_SECONDS))
            self._worked_seconds += self._open_seconds()
            self._attempt_began = None

    def _open_attempt(self, t: float) -> None:
        self._close_attempt(t)
        self._attempt_began = t
        self._last_alive = t

    # ── the worker ────────────────────────────────────────────────────────────────────────────────────────────────
    def _begin(self, t: float) -> None:
        """A new attempt: whatever the previous one ended with is history."""
        state = self._state
        state.state = RunPhase.STARTING
        state.ended = None
        state.what = state.cause = state.next_step = state.warning = ""
        state.pending_control = ""
        state.phase, state.phase_detail, state.phase_done, state.phase_total = "starting", "", 0, 0
        self._recent.clear()
        self._stepping_began, self._stepping_seconds = None, 0.0

    def _start(self, event: ev.Start) -> None:
        state = self._state
        if self._attempt_began is None or state.attempt not in (0, event.attempt):
            self._open_attempt(event.t)
        self._begin(event.t)
        state.attempt = max(event.attempt, 0)
        state.worker_pid = event.pid
        state.device = event.device
        state.resumed_step = max(event.resumed_step, 0)
        self._rewind(state.resumed_step)
        where = f", from step {state.resumed_step}" if state.resumed_step else ""
        self._log(event.t, "info", f"Worker {event.attempt} started on {event.device or 'this machine'}{where}")

    def _rewind(self, step: int) -> None:
        """Void everything after `step`: the resumed worker does it again."""
        state = self._state
        if step >= state.step:
            return
        for series in (*self._series.values(), self._tokens, self._trained):
            series.rewind(step)
        exact = self._totals_at.get(step)
        if step == 0:
            exact = (0, 0)
        totals = exact or (round(self._tokens.total), round(self._trained.total))
        state.tokens_total, state.trained_tokens_total = totals
        self._totals_at = {at: kept for at, kept in self._totals_at.items() if at <= step}
        state.step = self._newest_step = step
        state.loss = self._series["loss"].last_value
        state.eval_loss = self._series["eval_loss"].last_value
        state.best_eval_loss = self._series["eval_loss"].lowest
        state.samples = [sample for sample in state.samples if sample.step <= step]
        state.findings.rewind(step)
        self._recent.clear()

    def _plan(self, event: ev.Plan) -> None:
        state = self._state
        state.total_steps = event.total_steps
        state.rows = event.rows
        state.parameters = event.parameters
        state.trainable_parameters = event.trainable_parameters

    def _phase(self, event: ev.Phase) -> None:
        state = self._state
        if event.name != state.phase:
            self._log(event.t, "info", f"{event.name}: {event.detail}" if event.detail else event.name)
        state.phase = event.name
        state.phase_detail = event.detail
        state.phase_done, state.phase_total = event.done, event.total
        if state.ended is None:
            state.state = PHASES.get(event.name, RunPhase.STARTING)

    def _step_again(self, event: ev.Step) -> None:
        """A step at or before the newest one without a Start that says so: that line was torn."""
        self._rewind(event.step - 1)
        self._newest_step = event.step
        self._gathered.append(event)

    def _take_gathered(self) -> None:
        """Bring state and curves up to date with the steps gathered so far; their step numbers rise."""
        steps = self._gathered
        if not steps:
            return
        self._gathered = []
        state, last = self._state, steps[-1]
        self._note_time(steps[0].t, max(step.t for step in steps), by_worker=True)
        state.step = last.step
        state.loss, state.learning_rate, state.grad_norm = last.loss, last.learning_rate, last.grad_norm
        state.epoch = last.epoch
        if state.ended is None:
            state.state = RunPhase.RUNNING
        if state.phase != "training":
            state.phase, state.phase_detail, state.phase_done, state.phase_total = "training", "", 0, 0
        self._extend_curves(steps)
        if any(step.losses for step in steps):
            state.findings.lessons.take(steps)
        timed = [step for step in steps if step.step_seconds > 0]
        if timed:
            rates = [step.tokens / step.step_seconds for step in timed]
            self._series["tokens_per_second"].extend([step.step for step in timed], rates)
            self._waits.extend(step.wait_seconds / step.step_seconds for step in timed[-SPEED_WINDOW_STEPS:])
            state.wait_share = sum(self._waits) / len(self._waits)
            self._recent.extend((step.tokens, step.step_seconds) for step in timed[-SPEED_WINDOW_STEPS:])
            if self._stepping_began is None:
                self._stepping_began = timed[0].t - timed[0].step_seconds
            self._stepping_seconds += sum(step.step_seconds for step in timed)

    def _extend_curves(self, steps: list[ev.Step]) -> None:
        numbers = [step.step for step in steps]
        self._series["loss"].extend(numbers, [step.loss for step in steps])
        self._series["learning_rate"].extend(numbers, [step.learning_rate for step in steps])
        self._series["grad_norm"].extend(numbers, [step.grad_norm for step in steps])
        tokens = [step.tokens for step in steps]
        trained = [step.trained_tokens for step in steps]
        self._tokens.extend(numbers, tokens)
        self._trained.extend(numbers, trained)
        self._state.tokens_total += sum(tokens)
        self._state.trained_tokens_total += sum(trained)

    def _eval(self, event: ev.Eval) -> None:
        state = self._state
        state.eval_loss = event.loss
        self._series["eval_loss"].add(event.step, event.loss)
        state.best_eval_loss = self._series["eval_loss"].lowest
        self._log(event.t, "info", f"Held-out loss {event.loss:.4f} at step {event.step}")

    def _sample(self, event: ev.Sample) -> None:
        """Answers before training stay; of later ones the newest per prompt."""
        before = event.step == 0
        kept = [s for s in self._state.samples if s.prompt != event.prompt or (s.step == 0) != before]
        kept.append(event)
        kept.sort(key=lambda sample: sample.step != 0)
        self._state.samples = kept[:SAMPLE_LIMIT]

    def _finding(self, event: ev.AnyEvent) -> None:
        self._state.findings.apply(event, self._log)
        if isinstance(event, ev.Recovery):
            self._rewind(event.back_to_step)

    def _meter(self, event: ev.Meter) -> None:
        state = self._state
        state.cpu_percent = event.cpu_percent
        state.ram_bytes = event.ram_bytes
        state.ram_total_bytes = event.ram_total_bytes
        state.temperature_celsius = event.temperature_celsius
        state.gpus = event.gpus

    def _memory(self, event: ev.Memory) -> None:
        state = self._state
        if state.peak_kind != event.where or state.peak_bytes is None or event.peak_bytes > state.peak_bytes:
            state.peak_bytes, state.peak_kind = event.peak_bytes, event.where

    def _checkpoint(self, event: ev.Checkpoint) -> None:
        state = self._state
        state.checkpoints = [c for c in state.checkpoints if c.step != event.step][-(CHECKPOINT_LIMIT - 1) :]
        state.checkpoints.append(event)
        if event.step == state.step:
            self._totals_at[event.step] = (state.tokens_total, state.trained_tokens_total)
            while len(self._totals_at) > CHECKPOINT_LIMIT:
                del self._totals_at[next(iter(self._totals_at))]
        if state.pending_control == "checkpoint":
            state.pending_control = ""
        self._log(event.t, "info", f"Checkpoint at step {event.step}")

    def _warn(self, event: ev.Warn) -> None:
        self._log(event.t, "warning", f"{event.message} {event.next_step}".rstrip())

    def _log_event(self, event: ev.Log) -> None:
        self._log(event.t, event.level, event.message)

    def _control(self, event: ev.Control) -> None:
        self._state.pending_control = event.command
        self._log(event.t, "info", f"{event.command.capitalize()} requested; honoured after this step")

    def _card(self, event: ev.CardReady) -> None:
        self._state.card_path = event.path

    def _stage(self, event: ev.Stage) -> None:
        self._state.stage_index, self._state.stage_count = event.index, event.count
        self._state.stage_name, self._state.stage_task = event.name, event.task
        self._log(event.t, "info", f"Stage {event.index} of {event.count}: {event.state}")

    def _growth(self, event: ev.Growth) -> None:
        """A new growth begins with planning: the proof of the one before is history."""
        state = self._state
        if event.phase == "planning":
            state.proof = None
        if state.growth is None or state.growth.phase != event.phase:
            state.growth_began = event.t
        state.growth = event
        if state.ended is None:
            state.state = RunPhase.GROWING

    def _proof(self, event: ev.ProofReady) -> None:
        self._state.proof = event
        self._log(event.t, "info" if event.proof.passed else "error", f"Proof: {event.proof.reason or 'passed'}")

    def _end(self, event: ev.End) -> None:
        state = self._state
        state.state = OUTCOMES.get(event.outcome, RunPhase.FAILED)
        state.ended = event.t
        state.pending_control = ""
        state.what, state.cause, state.next_step = event.what, event.cause, event.next_step
        self._close_attempt(event.t)
        level = "error" if state.state is RunPhase.FAILED else "info"
        self._log(event.t, level, " ".join(filter(None, (f"Run {event.outcome}.", event.what, event.cause))))

    # ── the runner ────────────────────────────────────────────────────────────────────────────────────────────────
    def _runner_start(self, event: ev.RunnerStart) -> None:
        state = self._state
        self._close_attempt(event.t)
        self._begin(event.t)
        state.heartbeat = event.t
        state.worker_pid, state.worker_process_start, state.worker_updated = 0, 0.0, None
        state.runner_pid, state.runner_process_start = event.pid, event.process_start
        state.boot_id = event.boot_id

    def _worker_start(self, event: ev.WorkerStart) -> None:
        state = self._state
        state.heartbeat = event.t
        state.worker_process_start = event.process_start
        state.worker_updated = state.worker_updated or event.t
        if state.worker_pid == event.pid and self._attempt_began is not None:
            return  # the worker was quicker with its own Start
        state.worker_pid = event.pid
        state.attempt = event.attempt
        self._open_attempt(event.t)

    def _heartbeat(self, event: ev.Heartbeat) -> None:
        self._state.heartbeat = event.t
        if self._attempt_began is not None and event.t > self._last_alive:
            self._last_alive = event.t

    def _worker_exit(self, event: ev.WorkerExit) -> None:
        state = self._state
        state.heartbeat = event.t
        self._close_attempt(event.t)
        if state.ended is not None:
            return  # its End event has said what happened
        state.state = RunPhase.FAILED
        state.ended = event.t
        state.pending_control = ""
        state.what, state.cause, state.next_step = event.what, event.cause, event.next_step
        self._log(event.t, "error", " ".join(filter(None, (event.what, event.cause))))

    def _runner_end(self, event: ev.RunnerEnd) -> None:
        self._state.heartbeat = event.t
        self._close_attempt(event.t)
        if self._state.ended is None:
            self._state.state = OUTCOMES.get(event.outcome, RunPhase.FAILED)
            self._state.ended = event.t

    def _log(self, t: float, level: str, message: str) -> None:
        log = self._state.log
        log.append((t, level, message))
        if len(log) > LOG_LIMIT:
            del log[0]
