"""The race: every scaling method on one loaded model, without training, and the choice among them.

Owns what is raced and in which order, and the lines that tell of it. Must not know how a figure is measured
(`engine.rotary.yardstick`) or what decides (`engine.context.choice`). Weights are loaded once; only frequencies change.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from engine.context.certificate import Race
from engine.context.choice import RULE, UNTOUCHED, Choice, MethodScore, choose
from engine.context.method import NEEDS_SEARCH, Options
from engine.context.methods import METHODS
from engine.context.plan import ContextPlan
from engine.context.planner import applicable, plan_context, read_window
from engine.errors import EngineError
from engine.evaluation.calibration import calibrate
from engine.evaluation.haystack import even_depths
from engine.evaluation.length_measure import default_lengths
from engine.evaluation.length_memory import room_for
from engine.evaluation.length_text import load_text
from engine.evaluation.loading import loaded
from engine.evaluation.model import LoadedModel
from engine.evaluation.progress import Meter
from engine.jobs.length_report import LengthReport, ShortRegression
from engine.jobs.race_lines import Contender, RaceDecided, RaceProgress, RaceRow, RaceStarted
from engine.rotary.modules import using
from engine.rotary.race_log import RaceLog
from engine.rotary.source import Source
from engine.rotary.telling import Tell, stopped_error
from engine.rotary.yardstick import Amounts, Yardstick, new_yardstick


@dataclass(frozen=True, slots=True)
class RaceRequest:
    """What is raced, and on how much."""

    folder: Path
    target: int
    methods: tuple[str, ...] = ()
    """Empty: every applicable one."""
    lengths: tuple[int, ...] = ()
    """Of the perplexity; empty: half the window, the window, and doubling from there to the target."""
    depths: int = 5
    prompts: int = 2
    """Needles per length and depth."""
    documents: int = 6
    """At most."""
    options: Options = field(default_factory=Options)
    """Searched divisors let the methods that need a search take part."""
    text: str = ""
    seed: int = 0
    name: str = ""
    log: Path | None = None
    dtype: str = "auto"
    quantization: str = "none"


def race(request: RaceRequest, tell: Tell, stopped: Callable[[], bool] = lambda: False) -> Race:
    """Measure and decide. What the log has is not measured again.

    Raises EngineError `context.*` for a model or target that cannot be, `race.log`, `race.stopped` when `stopped()`,
    and those of loading and of the documents. A method that cannot be measured is a row with the reason.
    """
    began = time.monotonic()
    source = Source.read(request.folder, request.name)
    plans, contenders = _contenders(source, request)
    with loaded(request.folder, request.dtype, request.quantization) as model:
        yardstick = _yardstick(model, source, request)
        started = _started(source, request, yardstick, contenders, model)
        log = RaceLog(request.log, started)
        try:
            tell(started)
            _Running(yardstick, log, tell, stopped, source.name).run(plans)
        finally:
            log.close()
    names = [UNTOUCHED, *plans]
    rows = tuple(log.rows[name] for name in names)
    choice = _choice(rows, request.target)
    decided = RaceDecided(
        method=choice.method,
        reason=choice.reason,
        ranking=choice.ranking,
        rule=RULE,
        seconds=time.monotonic() - began,
    )
    tell(decided)
    return Race(rows=rows, decided=decided, seconds=decided.seconds)


def _contenders(source: Source, request: RaceRequest) -> tuple[dict[str, ContextPlan], tuple[Contender, ...]]:
    """The plans that run, and all contenders: the untouched model, those, and those that cannot, with the reason."""
    known = applicable(source.config, request.target)
    wanted = request.methods or tuple(method.id for method, _ in known)
    for name in wanted:
        if name not in METHODS:
            plan_context(source.config, request.target, name, name=source.name)  # raises, with the names there are
    plans: dict[str, ContextPlan] = {}
    contenders = [Contender(method=UNTOUCHED, title="The model as it is")]
    for method, obstacle in known:
        if method.id not in wanted:
            continue
        to_search = not obstacle and method.needs_search and not request.options.long_divisors
        obstacle = NEEDS_SEARCH if to_search else obstacle
        contenders.append(Contender(method=method.id, title=method.title, why_not=obstacle, needs_search=to_search))
        if not obstacle:
            options = request.options if method.needs_search else Options()
            plans[method.id] = plan_context(source.config, request.target, method.id, options, source.name)
    if not plans:
        raise EngineError(
            "race.nothing",
            "There is nothing to race.",
            cause="; ".join(f"{entry.method}: {entry.why_not}" for entry in contenders[1:]),
            next_step="Leave --methods out to race all that apply.",
        )
    return plans, tuple(contenders)


def _yardstick(model: LoadedModel, source: Source, request: RaceRequest) -> Yardstick:
    original = read_window(source.config)
    room = room_for(model, request.target)
    calibration = calibrate(model, original, room, request.seed)
    wanted = {*(request.lengths or default_lengths(original, request.target)), original, request.target}
    text = load_text(model.tokenizer, request.text, request.target, request.documents)
    lengths = tuple(sorted(length for length in wanted if length <= request.target))
    amounts = Amounts(lengths, even_depths(request.depths), request.prompts, request.seed)
    return new_yardstick(model, text, original, calibration, room, amounts)


def _started(
    source: Source, request: RaceRequest, yardstick: Yardstick, contenders: tuple[Contender, ...], model: LoadedModel
) -> RaceStarted:
    described = (
        f"{source.fingerprint} {yardstick.fingerprint} {model.compute_dtype} {request.quantization} {model.device}"
    )
    return RaceStarted(
        model=source.name,
        original=yardstick.original,
        target=request.target,
        contenders=contenders,
        lengths=yardstick.lengths,
        needle_lengths=yardstick.needle_lengths,
        depths=even_depths(request.depths),
        rule=RULE,
        text=yardstick.documents.origin,
        seed=request.seed,
        documents=len(yardstick.documents.texts),
        prompts=request.prompts,
        style=yardstick.calibration.style,
        fingerprint=hashlib.sha256(described.encode()).hexdigest()[:16],
    )


@dataclass(slots=True)
class _Running:
    """The measuring; mutable only in the method at hand, what it applies, and what it is compared with."""

    yardstick: Yardstick
    log: RaceLog
    tell: Tell
    stopped: Callable[[], bool]
    name: str
    method: str = ""
    applied: str = ""
    before: ShortRegression | None = None
    """The untouched model on short text."""

    def run(self, plans: dict[str, ContextPlan]) -> None:
        """The untouched model first: short text is compared with its."""
        everything: list[tuple[str, ContextPlan | None]] = [(UNTOUCHED, None), *plans.items()]
        meter = Meter(self._progress, self.yardstick.tokens * len(everything))
        for method, plan in everything:
            self.method, self.applied = method, _applied(plan)
            row = self.log.rows.get(method)
            if row is not None and row.applied != self.applied:
                row = None  # other factors or options under the same name
            if row is not None and row.complete:
                meter.skip(self.yardstick.tokens)
                self.tell(row)
            else:
                row = self._measured(plan, meter, row)
            self.before = self.before or row.report.short

    def _measured(self, plan: ContextPlan | None, meter: Meter, begun: RaceRow | None) -> RaceRow:
        """The method's row; `begun` has what an earlier attempt measured of it."""
        began = time.monotonic() - (begun.seconds if begun else 0.0)
        done = meter.done + self.yardstick.tokens
        original = self.yardstick.original
        window = plan.target if plan else original
        report = LengthReport(model=self.name, window=window, original=original, method=self.method)
        problem = ""
        try:
            with using(self.yardstick.model.model, plan):
                for found in self.yardstick.reports(begun.report if begun else report, self.before, meter):
                    report = found
                    self._add(report, began, complete=False)
        except EngineError as error:
            if plan is None or error.code != "context.frequencies":
                raise
            problem = error.what
        meter.settle(done)
        return self._add(report, began, problem=problem)

    def _add(self, report: LengthReport, began: float, *, complete: bool = True, problem: str = "") -> RaceRow:
        """To the log and to whoever listens."""
        seconds = time.monotonic() - began
        report = msgspec.structs.replace(report, seconds=seconds)
        row = RaceRow(
            method=self.method, report=report, complete=complete, seconds=seconds, problem=problem, applied=self.applied
        )
        self.log.add(row)
        self.tell(row)
        return row

    def _progress(self, words: str, done: int, total: int, eta_seconds: float | None) -> None:
        if self.stopped():
            raise stopped_error("race")
        self.tell(RaceProgress(method=self.method, what=words, done=done, total=total, eta_seconds=eta_seconds))


def _applied(plan: ContextPlan | None) -> str:
    """SHA-256 of everything that decides the plan's frequencies, shortened."""
    if plan is None:
        return ""
    scalings = [(planned.rotary.layer_type, planned.changed, planned.scaling) for planned in plan.rotaries]
    return hashlib.sha256(repr((plan.method, scalings, plan.options)).encode()).hexdigest()[:16]


def _choice(rows: tuple[RaceRow, ...], target: int) -> Choice:
    scores = [
        MethodScore(row.method, row.report, row.method == UNTOUCHED or METHODS[row.method].exported, _not_exported(row))
        for row in rows
        if not row.problem
    ]
    return choose(scores, target)


def _not_exported(row: RaceRow) -> str:
    return "" if row.method == UNTOUCHED else METHODS[row.method].not_exported_reason
