"""One choice of the metric that speaks for a benchmark, and lm-eval's word on which way is better, up to the labs."""

from __future__ import annotations

import pytest

from engine.evaluation.findings import Metric, TaskResult, task_events
from engine.jobs import events as ev
from engine.jobs.benchmark_metrics import speaker
from engine.lab.figures import parse_figure
from engine.lab.results import figure_of


def scores(main: str, *metrics: tuple[str, bool | None]) -> list[ev.BenchmarkScore]:
    found = tuple(Metric(name=name, value=0.5, standard_error=None, higher_is_better=up) for name, up in metrics)
    return task_events(0, TaskResult(task="t", questions=9, metrics=found, main=main), False, 1.0, 0.0)


@pytest.mark.parametrize(
    ("main", "metrics", "metric", "figure"),
    [
        ("acc", [("acc_norm", True), ("acc", True)], "acc", "benchmark:t"),
        ("", [("acc", True), ("acc_norm", True)], "acc_norm", "benchmark:t"),
        ("", [("other", True), ("exact_match,strict-match", True)], "exact_match,strict-match", "benchmark:t"),
        ("", [("word_perplexity", False), ("bits_per_byte", False)], "word_perplexity", "falling:t"),
        ("", [("bleu", True)], "bleu", "rising:t"),
        ("", [("perplexity", False), ("acc", True)], "acc", "benchmark:t"),
    ],
)
def test_labs_judge_what_retention_compares_in_its_own_direction(
    main: str, metrics: list[tuple[str, bool | None]], metric: str, figure: str
) -> None:
    spoken = speaker(scores(main, *metrics))
    assert (spoken.metric, figure_of(spoken)) == (metric, figure)
    assert parse_figure(figure).higher_is_better is not figure.startswith("falling")


def test_scores_of_older_journals_are_read_by_their_metrics_name() -> None:
    old = ev.BenchmarkScore(t=0.0, step=0, task="t", metric="acc", value=0.5)
    assert figure_of(old) == "benchmark:t"
