"""How much a search may do: evaluations x documents x length, and what that makes of population and generations.

Owns the budget, the time estimate from one timed evaluation, and the division into generations. Must not know what is
evaluated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.errors import EngineError

PAPER_EVALUATIONS, PAPER_POPULATION = 1344, 64
"""LongRoPE2 (arXiv 2502.20082): 64 individuals, then 40 rounds of 16 mutations and 16 crossovers."""
FEWEST_EVALUATIONS = 12
"""Below this there would be little beyond the known methods that a search begins with."""
USUAL_EVALUATIONS = 110
USUAL_DOCUMENTS = 3


@dataclass(frozen=True, slots=True)
class SearchBudget:
    """What is spent; one evaluation reads every document once."""

    evaluations: int
    documents: int
    length: int
    """Tokens of every document."""

    @property
    def tokens(self) -> int:
        """Tokens read in all; forward passes only."""
        return self.evaluations * self.documents * self.length

    def seconds(self, seconds_per_evaluation: float, done: int = 0) -> float:
        """The search's time, from one timed evaluation; `done` ones are behind it."""
        return max(self.evaluations - done, 0) * seconds_per_evaluation


@dataclass(frozen=True, slots=True)
class Generations:
    """How evaluations are shared out. What is left after the population goes into rounds of children."""

    population: int
    """Evaluated before the first children: starting points, then mutations of them."""
    parents: int
    """The best of all so far, which have children."""
    mutations: int
    """Children of one parent, each round."""
    crossovers: int
    """Children of two, each round."""

    @property
    def children(self) -> int:
        return self.mutations + self.crossovers


def generations(evaluations: int) -> Generations:
    """The paper's proportions at any budget: a population of 64 sqrt(N / 1344), half of it parents, half children.

    Own scaling; it gives the paper's numbers at 1344 and, at 110, 18 individuals and ten rounds.
    """
    population = round(PAPER_POPULATION * math.sqrt(evaluations / PAPER_EVALUATIONS))
    population = min(max(population, 4), PAPER_POPULATION)
    children = max(population // 2, 2)
    return Generations(population, population // 2, children - children // 2, children // 2)


def plan_budget(minutes: float, seconds_per_evaluation: float, documents: int, length: int) -> SearchBudget:
    """As many evaluations as `minutes` allow at the speed of one timed evaluation of `documents` x `length` tokens.

    Raises EngineError `search.budget` when that is too few for a search.
    """
    evaluations = int(minutes * 60 / max(seconds_per_evaluation, 1e-9))
    if evaluations < FEWEST_EVALUATIONS:
        needed = FEWEST_EVALUATIONS * seconds_per_evaluation / 60
        raise EngineError(
            "search.budget",
            f"{minutes:g} minutes are too few for a search.",
            cause=f"One evaluation of {documents} documents of {length} tokens takes {seconds_per_evaluation:.1f} s; "
            f"a search needs {FEWEST_EVALUATIONS} at the least.",
            next_step=f"Give it {math.ceil(needed)} minutes, or fewer documents.",
        )
    return SearchBudget(min(evaluations, PAPER_EVALUATIONS), documents, length)
