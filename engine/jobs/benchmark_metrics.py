"""Which of a benchmark's metrics speaks for it: one order for retention, reports and labs.

Owns that order. Must not know how metrics are measured (`engine.evaluation.benchmarks`).
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.jobs.events import BenchmarkScore

PREFERRED = ("exact_match", "acc_norm", "acc", "f1")


def by_preference(names: Sequence[str]) -> list[str]:
    """The preferred first, whatever their filter ("exact_match,strict-match"); the others as they came."""
    order = {name: place for place, name in enumerate(PREFERRED)}
    return sorted(names, key=lambda name: order.get(name.partition(",")[0], len(order)))


def speaker(scores: Sequence[BenchmarkScore]) -> BenchmarkScore:
    """Of one task at one step: the score that retention compares, else the preferred one."""
    first = by_preference([score.metric for score in scores])[0]
    return next((score for score in scores if score.main), next(score for score in scores if score.metric == first))


def is_share_of_right_answers(score: BenchmarkScore) -> bool:
    """Also of scores from before `main` was written."""
    return score.main or (score.higher_is_better is not False and score.metric.partition(",")[0] in PREFERRED)
