"""What a run follows beside its loss: suites and benchmarks before, during and after, each against the parent model.

Owns when what is measured, what of it is kept in the run directory (`evaluation.jsonl`, a line per finished suite or
task, so that a kill costs one of them and no attempt measures again), the journal's lines, and the gate's decision.
Must not know the loop, checkpoints or where a result is written: who asks obeys the `Decision`.

"Before" is always the job's parent model: of a job that grows, the source before any growth.

Of several processes of one job only the leader has a watch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from engine.errors import EngineError, ExitCode
from engine.evaluation.benchmarks import run_tasks
from engine.evaluation.comparison import (
    Broken,
    broken_limits,
    compare,
    loss_of,
    not_compared,
    require_comparable,
    require_names,
)
from engine.evaluation.findings import (
    Found,
    SuiteSums,
    SuiteText,
    TaskResult,
    card_benchmarks,
    card_suites,
    suite_event,
    task_events,
)
from engine.evaluation.length_log import CellLog
from engine.evaluation.model import LoadedModel
from engine.evaluation.suite_text import digest
from engine.evaluation.suites import measure_suite
from engine.evaluation.tasks import Asked, load_tasks
from engine.evaluation.watch_order import WatchOrder, identity, suite_texts, told_before
from engine.jobs import card
from engine.jobs import events as ev
from engine.jobs.events import RetentionReport

__all__ = ["Comparison", "Decision", "Watch", "WatchOrder"]

LOG = "evaluation.jsonl"
"""In the run directory."""
STOP, HOLD = "stop", "hold"
AsBefore = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Decision:
    """What one look says of the run."""

    passed: bool = True
    """Whether every limit with action "stop" is kept: a checkpoint of this step may be gone back to."""
    closes: bool = False
    """Whether training is to end."""
    words: str = ""
    """What was broken; "" while everything is kept."""
    looked: bool = False
    """Whether anything was measured."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The model at one step, all of it measured, against the parent."""

    found: Found
    reports: tuple[RetentionReport, ...] = ()
    broken: tuple[Broken, ...] = ()

    @property
    def held(self) -> str:
        """Why this model must not be promoted; "" where it may."""
        return "; ".join(one.words for one in self.broken)


class _Tasks(msgspec.Struct, frozen=True):
    results: tuple[TaskResult, ...]


class _Texts(msgspec.Struct, frozen=True):
    digests: dict[str, str]


class Watch:
    """One per attempt; the model may be another one at every call, as in a job with stages."""

    def __init__(self, order: WatchOrder) -> None:
        """Reads the texts and loads the tasks. Raises EngineError `suite.*`, `benchmarks.*`, `retention.unknown`."""
        self.order = order
        self.suites = suite_texts(order)
        self.asked: tuple[Asked, ...] = load_tasks(order.spec.evaluation.tasks)
        self.limits = order.spec.retention
        self._limited = tuple(limit.on for limit in self.limits)
        self._check_limits()
        self._log = CellLog(order.run_dir / LOG, order.spec_hash)
        self._log.forget(lambda cell: _step_of(cell) > order.resumed_step)
        self._check_texts()
        self._told = told_before(order)
        self._before = Found()
        self._ever_kept = True
        self._excess: float | None = None
        """By how much the worst limit was exceeded at the last look, while none was ever kept."""

    # ── what is asked ─────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def is_empty(self) -> bool:
        """Nothing is followed at all."""
        return not self.suites and not self.asked

    @property
    def follows_texts(self) -> bool:
        """Whether suites are measured while training too, not only before and after."""
        spec = self.order.spec
        return bool(self.suites) and bool(spec.suites or spec.sources or spec.retention)

    def due(self, step: int, *, last: bool = False) -> bool:
        """Whether `look` would measure anything at this step. After the last one `after` measures everything, so that
        `look` has a reason only where it could end the run."""
        section = self.order.spec.evaluation
        texts = self.follows_texts and _is_due(step, section.every_steps)
        tasks = bool(self.asked) and _is_due(step, section.tasks_every_steps)
        return (texts or tasks) if not last else self.may_stop

    @property
    def may_stop(self) -> bool:
        """Whether any limit ends the run."""
        return any(limit.action == STOP for limit in self.limits)

    def starts_elsewhere(self) -> None:
        """What is trained is not the parent: grown in a way that changes it, or with a longer window. A limit that is
        broken from the start then waits while the loss gets smaller."""
        self._ever_kept = False

    # ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────
    def before(self, model: LoadedModel, as_before: AsBefore | None = None) -> Found:
        """The parent model, measured once per run; `as_before` opens it where `model` is more than the parent. Raises
        EngineError `retention.not_comparable` where a limit could never be broken."""
        if not self.is_empty:
            with (as_before or model.base_only)():
                self._before = self._measure(model, 0, "measuring before", self.suites, part=False)
            require_comparable(self._limited, self._before)
        return self._before

    def knows_before(self) -> bool:
        """Whether an earlier attempt measured the parent: then `before` needs no model of it."""
        return self._known(0) is not None

    def look(self, model: LoadedModel, step: int, *, last: bool = False) -> Decision:
        """While training: suites, and benchmarks on a part of their questions, where either is due at this step."""
        if not self.due(step, last=last):
            return Decision()
        section = self.order.spec.evaluation
        texts = self.suites if self.follows_texts and (last or _is_due(step, section.every_steps)) else ()
        tasks = last or _is_due(step, section.tasks_every_steps)
        found = self._measure(model, step, "evaluating", texts, part=True, tasks=tasks)
        reports = compare(self._before, found, self._limited)
        return self._decide(step, reports)

    def after(self, model: LoadedModel, step: int, *, stage: int = 0, name: str = "") -> Comparison:
        """The model at the end of the job, or of `stage` (from 1): everything, against the parent."""
        if self.is_empty:
            return Comparison(Found())
        found = self._measure(model, step, "measuring after", self.suites, part=False)
        reports = compare(self._before, found, self._limited)
        broken = broken_limits(reports, self.limits)
        result = Comparison(found, reports, broken)
        self._tell_retention(step, reports, result.held)
        if stage:
            self._keep_stage(stage, name, step, result)
        return result

    @property
    def parent(self) -> Found:
        """The parent model, once `before` has measured or found it."""
        return self._before

    def recall(self, step: int) -> Comparison | None:
        """What `after` found at `step` in an earlier attempt; None where that is not known."""
        before, found = self._known(0), self._known(step)
        if before is None or found is None:
            return None
        self._before = before
        reports = compare(before, found, self._limited)
        return Comparison(found, reports, broken_limits(reports, self.limits))

    def _known(self, step: int) -> Found | None:
        """Everything that was measured at a step on all questions; None where any of it is missing."""
        suites = [self._log.find(_cell(step, suite.name, "suite"), SuiteSums) for suite in self.suites]
        limit = self.order.spec.evaluation.tasks_limit
        tasks = [self._log.find(_task_cell(step, one.name, limit), _Tasks) for one in self.asked]
        if None in suites or None in tasks:
            return None
        results = (result for one in tasks if one is not None for result in one.results)
        return Found(tuple(one for one in suites if one is not None), tuple(results))

    def stages(self) -> tuple[card.StageRetention, ...]:
        """Of stages that have ended, earlier attempts' too."""
        found = [self._log.find(f"{0:08}/stage/{number}", card.StageRetention) for number in range(1, 1000)]
        return tuple(one for one in found if one is not None)

    def close(self) -> None:
        """Let go of the file."""
        self._log.close()

    def _measure(
        self,
        model: LoadedModel,
        step: int,
        phase: str,
        suites: Sequence[SuiteText],
        *,
        part: bool,
        tasks: bool = True,
    ) -> Found:
        asked = self.asked if tasks else ()
        sums = []
        for suite in suites:
            self.order.phase(phase, suite.name, 0, len(suite.documents))
            sums.append(self._suite(model, step, suite, phase))
        results: list[TaskResult] = []
        for number, one in enumerate(asked):
            self.order.phase(phase, one.name, number, len(asked))
            results += self._task(model, step, one, part=part)
        return Found(tuple(sums), tuple(results))

    def _suite(self, model: LoadedModel, step: int, suite: SuiteText, phase: str) -> SuiteSums:
        cell, began = _cell(step, suite.name, "suite"), time.monotonic()
        found = self._log.find(cell, SuiteSums)
        if found is None:
            found = measure_suite(model, suite, lambda done, total: self.order.phase(phase, suite.name, done, total))
            self._log.add(cell, found, time.monotonic() - began)
        self._tell(suite_event(step, found, time.monotonic() - began, time.time()))
        return found

    def _task(self, model: LoadedModel, step: int, asked: Asked, *, part: bool) -> tuple[TaskResult, ...]:
        section = self.order.spec.evaluation
        limit = min(section.tasks_part, section.tasks_limit or section.tasks_part) if part else section.tasks_limit
        cell, began = _task_cell(step, asked.name, limit), time.monotonic()
        found = self._log.find(cell, _Tasks)
        if found is None:
            found = _Tasks(run_tasks(model, self.order.folder, asked, limit or None))
            self._log.add(cell, found, time.monotonic() - began)
        for result in found.results:
            for event in task_events(step, result, part, time.monotonic() - began, time.time()):
                self._tell(event)
        return found.results

    # ── the gate ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _decide(self, step: int, reports: Sequence[RetentionReport]) -> Decision:
        broken = broken_limits(reports, self.limits)
        stopping = [one for one in broken if one.limit.action == STOP]
        words = "; ".join(one.words for one in broken)
        self._tell_retention(step, tuple(reports), words)
        if not stopping:
            seen = {report.on for report in reports}
            verified = all(limit.on in seen for limit in self.limits if limit.action == STOP)
            self._ever_kept = self._ever_kept or verified
            return Decision(passed=verified, words=words, looked=True)
        lost = "; ".join(one.words for one in stopping)
        if self._is_healing(reports, stopping):
            return Decision(False, False, f"A retention limit is not kept yet: {lost}; it is getting better.", True)
        return Decision(False, True, f"A retention limit is broken at step {step}: {lost}.", True)

    def _is_healing(self, reports: Sequence[RetentionReport], stopping: Sequence[Broken]) -> bool:
        if self._ever_kept:
            return False
        lost = {report.on: loss_of(report) for report in reports}
        excess = max(lost[one.limit.on] - one.limit.most_lost for one in stopping)
        better = self._excess is None or excess < self._excess
        self._excess = excess
        return better

    def _check_limits(self) -> None:
        names = [suite.name for suite in self.suites]
        names += [name for one in self.asked for name in (*one.groups, *one.tasks)]
        require_names(self._limited, names)

    # ── what is kept and told ─────────────────────────────────────────────────────────────────────────────────────
    def _check_texts(self) -> None:
        """Raises EngineError `resume.suite_changed` where a text is not the one that the run began with."""
        now = _Texts({suite.name: digest(suite) for suite in self.suites})
        cell = f"{0:08}/texts"
        kept = self._log.find(cell, _Texts)
        if kept is None:
            self._log.add(cell, now, 0.0)
            return
        for name, value in now.digests.items():
            if kept.digests.get(name, value) != value:
                raise EngineError(
                    "resume.suite_changed",
                    f"The text of the suite '{name}' is not the one the run began with.",
                    cause="What is measured now could not be compared with what was measured before.",
                    next_step="Put the old text back, or start a new run.",
                    exit_code=ExitCode.RUN_FAILED,
                )

    def _keep_stage(self, stage: int, name: str, step: int, result: Comparison) -> None:
        kept = card.StageRetention(
            stage=stage,
            name=name,
            step=step,
            suites=card_suites(result.found),
            benchmarks=card_benchmarks(result.found),
            reports=result.reports,
            gate=result.held,
            not_compared=not_compared(self._before, result.found),
        )
        self._log.add(f"{0:08}/stage/{stage}", kept, 0.0)

    def _tell_retention(self, step: int, reports: tuple[RetentionReport, ...], gate: str) -> None:
        if reports:
            self._tell(ev.Retention(t=time.time(), step=step, reports=reports, gate=f"{gate}." if gate else ""))

    def _tell(self, event: ev.AnyEvent) -> None:
        """Once per run: a resumed attempt that finds a figure does not say it again."""
        known = identity(event)
        if known not in self._told:
            self._told.add(known)
            self.order.tell(event)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _cell(step: int, name: str, kind: str) -> str:
    return f"{step:08}/{kind}/{name}"


def _task_cell(step: int, name: str, limit: int) -> str:
    return f"{step:08}/task/{name}/{limit or 'all'}"


def _step_of(cell: str) -> int:
    return int(cell.partition("/")[0])
