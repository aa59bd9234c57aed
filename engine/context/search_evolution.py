"""LongRoPE2's evolution: what is evaluated next, and the loop that evaluates it.

Owns the order of proposals and the loop. Must not know torch: an `Objective` says what a set of divisors is worth.

    known methods, whole ─► starting points ─► mutations of them ─► rounds: best half ─► mutations, crossovers ─► ...

Evaluation n is a function of the seed, of n and of the scores before it, so that a log that ends anywhere is gone on
with exactly. The known methods (PI, NTK, YaRN, NTK at the critical pair) are evaluated as they are, as LongRoPE v1 does
(arXiv 2402.13753); the search can therefore not end above any of them on its own objective. Their curves need not lie
in the searched space: they enter the population by projection.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.context.search_budget import Generations
from engine.context.search_log import SearchLog, Trial
from engine.context.search_space import Individual, Space, crossed, drawn, mutated, problem, starting_points
from engine.errors import EngineError

TRIES = 20
"""Duplicates in a row before something wilder is tried."""
WORST = 1e9
"""The score of a set that gives no number."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The two objectives, both means in nats per token."""

    needle_nll: float
    text_nll: float
    seconds: float | None = None
    """What it took, where it was measured beforehand."""


class StopAsked(Exception):
    """Raised by an objective that was asked to stop in the middle; what it had begun is not logged."""


class Objective(Protocol):
    """What a set of divisors is worth on the user's documents and model."""

    def __call__(self, divisors: tuple[float, ...], attention_factor: float) -> Measured:
        """Deterministic: a log is gone on with by another process. May raise StopAsked."""
        ...


@dataclass(frozen=True, slots=True)
class Reference:
    """A known method that the search begins with."""

    name: str
    divisors: tuple[float, ...]
    attention_factor: float


@dataclass(frozen=True, slots=True)
class Evolution:
    """Everything proposals depend on, besides scores."""

    space: Space
    references: tuple[Reference, ...]
    attention_factor: float
    """m of every individual."""
    generations: Generations
    seed: int
    weight: float = 0.0
    """Of the closing tokens' loss beside the needles'."""
    needles: bool = True
    """False where needles say nothing about the model: the closing tokens alone count."""

    @property
    def starts(self) -> tuple[Individual, ...]:
        """Starting points that the population has room for, at most half of it beyond the known methods."""
        points = starting_points(self.space, [reference.divisors for reference in self.references])
        return points[: max(self.generations.population // 2, 1)]

    def score(self, measured: Measured) -> float:
        """needle_nll + weight x text_nll: the logarithm of needle-driven perplexity times perplexity^weight."""
        score = measured.needle_nll + self.weight * measured.text_nll if self.needles else measured.text_nll
        return score if math.isfinite(score) else WORST


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is evaluated next."""

    origin: str
    divisors: tuple[float, ...]
    attention_factor: float
    individual: Individual | None = None
    """None for a known method."""


def evolve(
    evolution: Evolution,
    evaluations: int,
    objective: Objective,
    log: SearchLog,
    on_trial: Callable[[Trial], None],
) -> tuple[Trial, ...]:
    """Evaluate until the budget is spent or the space exhausted; every trial, logged ones first.

    `on_trial` hears of every trial, also of those that an earlier attempt logged. Raises EngineError `search.log` when
    the log's trials are not those this search would have made, and lets StopAsked through.
    """
    trials: list[Trial] = []
    while len(trials) < evaluations:
        proposal = propose(evolution, trials)
        if proposal is None:
            break
        if len(trials) < len(log.kept):
            trial = _checked(log, len(trials), proposal)
        else:
            trial = _evaluated(evolution, objective, proposal, len(trials) + 1)
            log.append(trial)
        trials.append(trial)
        on_trial(trial)
    return tuple(trials)


def best_of(trials: Sequence[Trial]) -> Trial:
    """The lowest score; the earliest where two are equal."""
    return min(trials, key=lambda trial: (trial.score, trial.evaluation))


def _evaluated(evolution: Evolution, objective: Objective, proposal: Proposal, number: int) -> Trial:
    began = time.monotonic()
    measured = objective(proposal.divisors, proposal.attention_factor)
    elapsed = time.monotonic() - began if measured.seconds is None else measured.seconds
    individual = proposal.individual
    return Trial(
        evaluation=number,
        origin=proposal.origin,
        divisors=proposal.divisors,
        attention_factor=proposal.attention_factor,
        critical_pair=individual.critical_pair if individual else 0,
        tail=individual.tail if individual else (),
        needle_nll=_finite(measured.needle_nll),
        text_nll=_finite(measured.text_nll),
        score=evolution.score(measured),
        seconds=elapsed,
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else WORST


def _checked(log: SearchLog, index: int, proposal: Proposal) -> Trial:
    """The logged trial, which must be the one proposed."""
    trial = log.kept[index]
    same = trial.evaluation == index + 1 and trial.origin == proposal.origin and trial.divisors == proposal.divisors
    if same and trial.attention_factor == proposal.attention_factor:
        return trial
    raise EngineError(
        "search.log",
        f"{log.path} belongs to another search.",
        cause=f"Its evaluation {index + 1} is not what this search would evaluate there.",
        next_step="Name another file with --log, or search with the version of the program that wrote it.",
    )


# ── proposals ────────────────────────────────────────────────────────────────────────────────────────────────────────
def propose(evolution: Evolution, trials: Sequence[Trial]) -> Proposal | None:
    """What to evaluate after `trials`; None when nothing new can be found."""
    index = len(trials)
    if index < len(evolution.references):
        reference = evolution.references[index]
        return Proposal(f"seed {reference.name}", reference.divisors, reference.attention_factor)
    seen = {_individual(trial) for trial in trials if trial.tail}
    starts = evolution.starts
    place = index - len(evolution.references)
    if place < len(starts):
        return _proposal(evolution, "start", starts[place])
    rng = random.Random(f"{evolution.seed}|{index}")
    population = max(evolution.generations.population, len(starts) + 1)
    if place < population:
        return _fresh(evolution, seen, rng, [starts[place % len(starts)]], "mutation")
    child = (place - population) % evolution.generations.children
    parents = _parents(evolution, trials[: index - child])
    kind = "mutation" if child < evolution.generations.mutations or len(parents) < 2 else "crossover"
    return _fresh(evolution, seen, rng, parents, kind)


def _parents(evolution: Evolution, trials: Sequence[Trial]) -> list[Individual]:
    """The best individuals up to the round's beginning, the best first."""
    ranked = sorted((trial for trial in trials if trial.tail), key=lambda t: (t.score, t.evaluation))
    return [_individual(trial) for trial in ranked[: max(evolution.generations.parents, 1)]]


def _fresh(
    evolution: Evolution, seen: set[Individual], rng: random.Random, parents: list[Individual], kind: str
) -> Proposal | None:
    """A child that was not evaluated before: of the wanted kind, else a mutation, else anything; None after all."""
    space = evolution.space

    def crossing() -> Individual:
        first, second = rng.sample(parents, 2)
        return crossed(space, first, second, rng)

    makers: dict[str, Callable[[], Individual]] = {
        "crossover": crossing,
        "mutation": lambda: mutated(space, rng.choice(parents), rng),
        "draw": lambda: drawn(space, rng),
    }
    for origin in ("crossover", "mutation", "draw") if kind == "crossover" else ("mutation", "draw"):
        for _ in range(TRIES):
            child = makers[origin]()
            if child not in seen:
                return _proposal(evolution, origin, child)
    return None


def _proposal(evolution: Evolution, origin: str, individual: Individual) -> Proposal:
    assert not problem(evolution.space, individual)
    return Proposal(origin, individual.divisors, evolution.attention_factor, individual)


def _individual(trial: Trial) -> Individual:
    return Individual(trial.critical_pair, trial.tail)
