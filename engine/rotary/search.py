"""A search of divisors on a loaded model: LongRoPE2's tail, or LongRoPE's whole curve.

Owns what is set up around the evolution: known methods as seeds, documents, budget, log, and the lines that tell of it.
Must not know how sets are proposed (`engine.context.search_evolution`) or measured (`engine.rotary.objective`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from engine.context.critical import critical_pair, ten_rotation_pair
from engine.context.method import Options
from engine.context.methods import METHODS
from engine.context.methods.longrope2 import LONGROPE2
from engine.context.plan import ContextPlan
from engine.context.planner import applicable, plan_context, read_rotaries
from engine.context.reading import SCALED_LAYERS
from engine.context.scaling import Scaling
from engine.context.search_budget import (
    FEWEST_EVALUATIONS,
    USUAL_DOCUMENTS,
    USUAL_EVALUATIONS,
    SearchBudget,
    generations,
    plan_budget,
)
from engine.context.search_evolution import Evolution, Measured, Objective, Reference, StopAsked, best_of, evolve
from engine.context.search_log import SearchSettings, Trial, logged_settings, open_log
from engine.context.search_space import Space, critical_candidates, tail_space, whole_space
from engine.errors import EngineError
from engine.evaluation.calibration import Calibration, calibrate
from engine.evaluation.haystack_frame import PASSKEY, Writer
from engine.evaluation.length_memory import room_for
from engine.evaluation.length_text import load_text
from engine.evaluation.loading import loaded
from engine.evaluation.model import LoadedModel
from engine.jobs.race_lines import SearchDone, SearchStarted, SearchStep, SeedScore
from engine.rotary.objective import Documents, NeedleObjective, documents
from engine.rotary.source import Source
from engine.rotary.telling import Tell, stopped_error

USUAL_WEIGHT = 0.25
"""Of ln(perplexity) beside the needles' loss. Needles decide while they are missed, which costs whole nats; sets that
find them all differ by hundredths in both. Own choice; LongRoPE2's is 0."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What is searched, and how long."""

    folder: Path
    target: int
    log: Path
    method: str = "longrope2"
    evaluations: int = 0
    """0: as many as `minutes` allow, or the usual number."""
    minutes: float = 0.0
    documents: int = USUAL_DOCUMENTS
    weight: float = USUAL_WEIGHT
    text: str = ""
    seed: int = 0
    name: str = ""
    dtype: str = "auto"
    quantization: str = "none"


@dataclass(frozen=True, slots=True)
class _Task:
    """The model's part of a search, before anything is loaded."""

    source: Source
    method: str
    target: int
    original: int
    space: Space
    references: tuple[Reference, ...]
    attention_factor: float

    def plan(self, divisors: tuple[float, ...], attention_factor: float) -> ContextPlan:
        options = Options(long_divisors=divisors, attention_factor=attention_factor)
        return plan_context(self.source.config, self.target, self.method, options, self.source.name)


def search(request: SearchRequest, tell: Tell, stopped: Callable[[], bool] = lambda: False) -> SearchDone:
    """Search until the budget is spent; equal requests give equal results, killed in between or not.

    Raises EngineError `context.*` for a model or target that cannot be, `search.method`, `search.budget`, `search.log`,
    `search.stopped` when `stopped()`, and those of loading and of the documents.
    """
    began = time.monotonic()
    _check(request)
    task = _task(Source.read(request.folder, request.name), request)
    with loaded(request.folder, request.dtype, request.quantization) as model:
        room = room_for(model, request.target)
        calibration = calibrate(model, task.original, room, request.seed)
        texts = _documents(model, request, calibration)
        objective = _Once(NeedleObjective(model, texts, task.plan, room, stopped))
        settings = _settings(task, request, model, texts, calibration)
        try:
            return _searched(task, request, settings, objective, tell, began)
        except StopAsked:
            raise stopped_error("search") from None


def _check(request: SearchRequest) -> None:
    if request.method not in METHODS or not METHODS[request.method].needs_search:
        searched = [method.id for method in METHODS.values() if method.needs_search]
        raise EngineError(
            "search.method",
            f"There is nothing to search for {request.method}.",
            cause="Its divisors follow from a formula.",
            next_step=f"Name one of {', '.join(searched)}.",
        )
    if request.evaluations and request.evaluations < FEWEST_EVALUATIONS:
        raise EngineError(
            "search.budget",
            f"{request.evaluations} evaluations are too few for a search.",
            cause="The known methods that it begins with take some by themselves.",
            next_step=f"Give it {FEWEST_EVALUATIONS} at the least; {USUAL_EVALUATIONS} is usual.",
        )
    if request.documents < 1 or request.weight < 0:
        raise EngineError(
            "search.option",
            "A search needs at least one document and a weight of 0 or more.",
            next_step=f"{USUAL_DOCUMENTS} documents and a weight of {USUAL_WEIGHT} are usual.",
        )


def _task(source: Source, request: SearchRequest) -> _Task:
    """Space and seeds. Raises EngineError `context.*`."""
    config, target, method = source.config, request.target, request.method
    pairs = next(rotary.pairs for rotary in read_rotaries(config) if rotary.layer_type in SCALED_LAYERS)
    plan = plan_context(config, target, method, Options(long_divisors=(1.0,) * pairs), source.name)
    rotary, ratio = plan.scaled.rotary, plan.factor
    space = whole_space(pairs, ratio)
    if method == LONGROPE2.id:
        candidates = critical_candidates(ten_rotation_pair(rotary), critical_pair(rotary), pairs)
        space = tail_space(pairs, ratio, candidates)
    references = _references(source, target)
    return _Task(source, method, target, plan.original, space, references, plan.scaled.scaling.attention_factor)


def _references(source: Source, target: int) -> tuple[Reference, ...]:
    """Every method that needs no search and gives the same frequencies at every length; of equal ones the first."""
    found: dict[Scaling, Reference] = {}
    for method, obstacle in applicable(source.config, target):
        if not (obstacle or method.needs_search or method.by_length):
            scaling = plan_context(source.config, target, method.id, name=source.name).scaled.scaling
            found.setdefault(scaling, Reference(method.id, scaling.divisors, scaling.attention_factor))
    return tuple(found.values())


def _documents(model: LoadedModel, request: SearchRequest, calibration: Calibration) -> Documents:
    """Needles in the user's text where they are asked for in plain text; else in sentences of our own."""
    own = ""
    if calibration.style == PASSKEY and request.text:
        own = load_text(model.tokenizer, request.text, request.target, request.documents).own
    writer = Writer(model.tokenizer, calibration.style, own)
    return documents(writer, request.target, request.documents, request.seed)


def _settings(
    task: _Task, request: SearchRequest, model: LoadedModel, texts: Documents, calibration: Calibration
) -> SearchSettings:
    """What the log's first line says; the number of evaluations is filled in later."""
    return SearchSettings(
        method=task.method,
        model=task.source.fingerprint,
        text=texts.fingerprint,
        original=task.original,
        target=task.target,
        pairs=task.space.pairs,
        candidates=task.space.candidates,
        attention_factor=task.attention_factor,
        documents=len(texts.stacks),
        closing_tokens=texts.closing_tokens,
        weight=request.weight,
        seed=request.seed,
        compute=f"{model.compute_dtype}, {request.quantization}, {model.device}".replace("torch.", ""),
        needles=calibration.informative,
        evaluations=0,
    )


class _Once:
    """The objective; what was measured to know the time is not measured again."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._known: dict[tuple[tuple[float, ...], float], Measured] = {}

    def __call__(self, divisors: tuple[float, ...], attention_factor: float) -> Measured:
        known = self._known.pop((divisors, attention_factor), None)
        return known or self._objective(divisors, attention_factor)

    def seconds(self, reference: Reference) -> float:
        """Of one evaluation, by doing the first."""
        began = time.monotonic()
        measured = self._objective(reference.divisors, reference.attention_factor)
        elapsed = time.monotonic() - began
        self._known[reference.divisors, reference.attention_factor] = replace(measured, seconds=elapsed)
        return elapsed


def _searched(
    task: _Task, request: SearchRequest, settings: SearchSettings, objective: _Once, tell: Tell, began: float
) -> SearchDone:
    planned = logged_settings(request.log)
    seconds = 0.0 if planned else objective.seconds(task.references[0])
    budget = _budget(request, planned, seconds)
    settings = msgspec.structs.replace(settings, evaluations=budget.evaluations)
    with open_log(request.log, settings) as log:
        if log.kept:
            seconds = math.fsum(trial.seconds for trial in log.kept) / len(log.kept)
        evolution = Evolution(
            task.space,
            task.references,
            task.attention_factor,
            generations(log.settings.evaluations),
            request.seed,
            request.weight,
            settings.needles,
        )
        tell(_started(task, settings, budget.seconds(seconds, len(log.kept))))
        trials = evolve(evolution, budget.evaluations, objective, log, _Told(tell, budget.evaluations))
    done = _done(task, settings, trials, time.monotonic() - began)
    tell(done)
    return done


def _budget(request: SearchRequest, planned: SearchSettings | None, seconds: float) -> SearchBudget:
    """Asked for; else what an earlier attempt planned; else what the minutes allow; else the usual number."""
    if request.minutes and not (request.evaluations or planned):
        return plan_budget(request.minutes, seconds, request.documents, request.target)
    earlier = planned.evaluations if planned else USUAL_EVALUATIONS
    return SearchBudget(request.evaluations or earlier, request.documents, request.target)


def _started(task: _Task, settings: SearchSettings, eta_seconds: float) -> SearchStarted:
    return SearchStarted(
        method=task.method,
        evaluations=settings.evaluations,
        documents=settings.documents,
        length=task.target,
        critical_pair=task.space.candidates[0],
        candidates=task.space.candidates,
        pairs=task.space.pairs,
        seeds=tuple(reference.name for reference in task.references),
        weight=settings.weight,
        needles=settings.needles,
        eta_seconds=eta_seconds,
    )


class _Told:
    """Tells of every trial, those of an earlier attempt too: their times are in the log."""

    def __init__(self, tell: Tell, evaluations: int) -> None:
        self._tell, self._evaluations = tell, evaluations
        self._best = math.inf
        self._seconds = 0.0

    def __call__(self, trial: Trial) -> None:
        better = trial.score < self._best
        self._best = min(self._best, trial.score)
        self._seconds += trial.seconds
        left = self._evaluations - trial.evaluation
        self._tell(
            SearchStep(
                evaluation=trial.evaluation,
                score=trial.score,
                best=self._best,
                needle_nll=trial.needle_nll,
                perplexity=_perplexity(trial),
                origin=trial.origin,
                divisors=trial.divisors if better else (),
                eta_seconds=left * self._seconds / trial.evaluation,
            )
        )


def _done(task: _Task, settings: SearchSettings, trials: Sequence[Trial], seconds: float) -> SearchDone:
    best = best_of(trials)
    seeds = trials[: len(task.references)]
    best_seed = best_of(seeds)
    return SearchDone(
        best=best.score,
        best_seed=best_seed.score,
        best_seed_name=best_seed.origin.removeprefix("seed "),
        divisors=best.divisors,
        needle_nll=best.needle_nll,
        perplexity=_perplexity(best),
        evaluations=len(trials),
        seconds=seconds,
        method=task.method,
        critical_pair=best.critical_pair,
        attention_factor=best.attention_factor,
        origin=best.origin,
        weight=settings.weight,
        needles=settings.needles,
        seeds=tuple(
            SeedScore(
                name=seed.origin.removeprefix("seed "),
                score=seed.score,
                needle_nll=seed.needle_nll,
                perplexity=_perplexity(seed),
            )
            for seed in seeds
        ),
    )


def _perplexity(trial: Trial) -> float:
    return math.exp(min(trial.text_nll, 700.0))
