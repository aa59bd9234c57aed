"""A length report in words: what holds, from where it breaks, and what was not measured."""

from __future__ import annotations

import pytest

from engine.jobs.length_report import LengthPerplexity, LengthReport, NeedleCell, ShortRegression
from engine.jobs.length_verdict import (
    length_states,
    needle_accuracy,
    reference_length,
    short_exceeds,
    tokens_in_words,
    verdict,
)

K = 1024


def needles(accuracies: dict[int, float], task: str = "needle") -> tuple[NeedleCell, ...]:
    return tuple(
        NeedleCell(task=task, length=length, depth=depth, prompts=10, accuracy=accuracy, nll=0.1)
        for length, accuracy in accuracies.items()
        for depth in (0.0, 0.5, 1.0)
    )


def curve(perplexities: dict[int, float]) -> tuple[LengthPerplexity, ...]:
    return tuple(
        LengthPerplexity(length=length, nll=0.0, perplexity=value, tokens=2048, documents=8)
        for length, value in perplexities.items()
    )


def short(change: float) -> ShortRegression:
    return ShortRegression(length=4 * K, tokens=9000, perplexity_before=10.0, perplexity_after=10.0 * (1 + change))


def report(**parts: object) -> LengthReport:
    return LengthReport(model="m", window=16 * K, original=4 * K, **parts)  # type: ignore[arg-type]


WHOLE = report(
    needles=needles({4 * K: 1.0, 16 * K: 0.97, 18 * K: 0.6}),
    perplexity=curve({4 * K: 3.5, 16 * K: 2.7, 18 * K: 3.4}),
    short=short(0.004),
)


def test_a_whole_report_is_one_sentence() -> None:
    found = verdict(WHOLE)
    assert (
        found.words
        == "works to 16k (needle 97 %), degrades from 18k (needle 60 %, perplexity rises), short text +0.4 %"
    )
    assert (found.effective, found.short_ok, found.complete) == (16 * K, True, True)


def test_nothing_breaks_where_every_length_holds() -> None:
    found = verdict(report(needles=needles({4 * K: 1.0, 16 * K: 0.93}), perplexity=curve({4 * K: 3.5, 16 * K: 3.4})))
    assert found.words == "works to 16k (needle 93 %), short text not compared"
    assert (found.effective, found.short_ok, found.complete) == (16 * K, None, False)


def test_a_longer_length_that_holds_again_does_not_count() -> None:
    found = verdict(report(needles=needles({4 * K: 1.0, 8 * K: 0.5, 16 * K: 0.95}), perplexity=curve({4 * K: 3.0})))
    assert found.effective == 4 * K
    assert "degrades from 8k (needle 50 %)" in found.words


def test_a_model_that_never_works_is_said_to_not_work() -> None:
    found = verdict(report(needles=needles({4 * K: 0.1, 8 * K: 0.0})))
    assert found.effective == 0
    assert found.words.startswith("does not work at 4k (needle 10 %), the shortest length measured")


def test_perplexity_alone_can_break_a_length_and_a_small_rise_cannot() -> None:
    steady = report(needles=needles({4 * K: 1, 16 * K: 1}), perplexity=curve({4 * K: 3.0, 16 * K: 3.14}))
    assert verdict(steady).effective == 16 * K
    rising = report(needles=needles({4 * K: 1, 16 * K: 1}), perplexity=curve({4 * K: 3.0, 16 * K: 3.16}))
    assert verdict(rising).effective == 4 * K
    assert "degrades from 16k (perplexity rises)" in verdict(rising).words


def test_a_rise_within_twice_its_error_is_chance() -> None:
    entry = {"nll": 1.0, "tokens": 64, "documents": 1}
    for error, effective in ((0.06, 16 * K), (0.03, 4 * K)):
        pair = (
            LengthPerplexity(length=4 * K, perplexity=3.0, **entry),  # type: ignore[arg-type]
            LengthPerplexity(length=16 * K, perplexity=3.3, rise=0.1, rise_error=error, **entry),  # type: ignore[arg-type]
        )
        assert verdict(report(perplexity=pair)).effective == effective


def test_the_upturn_is_seen_against_the_best_length_not_the_first() -> None:
    found = length_states(report(perplexity=curve({4 * K: 4.0, 8 * K: 3.0, 16 * K: 3.5})))
    assert [state.rising for state in found] == [False, False, True]


def test_within_its_own_window_a_model_may_be_as_it_was_trained() -> None:
    found = length_states(report(perplexity=curve({2 * K: 3.0, 4 * K: 3.3, 8 * K: 3.3})))
    assert [state.rising for state in found] == [False, False, False]


@pytest.mark.parametrize(
    ("original", "window", "expected"),
    [(4 * K, 16 * K, 4 * K), (3 * K, 16 * K, 2 * K), (16 * K, 16 * K, 4 * K), (K, 16 * K, 0)],
)
def test_longer_lengths_are_held_against_the_original_window(original: int, window: int, expected: int) -> None:
    assert reference_length((2 * K, 4 * K, 16 * K), original, window) == expected


def test_needles_that_say_nothing_are_not_held_against_the_model() -> None:
    found = verdict(
        report(
            needles=needles({4 * K: 0.2, 16 * K: 0.1}),
            perplexity=curve({4 * K: 3.5, 16 * K: 2.7}),
            short=short(0.0),
            informative=False,
        )
    )
    assert found.effective == 16 * K
    assert not found.complete
    assert found.words.startswith("works to 16k, short text ±0.0 %; needles say nothing about this model")


def test_what_was_not_measured_is_named() -> None:
    assert "needles not measured" in verdict(report(perplexity=curve({4 * K: 3.0}))).words
    assert "perplexity not measured" in verdict(report(needles=needles({4 * K: 1.0}))).words
    empty = verdict(report())
    assert empty.words.startswith("nothing was measured by length, short text not compared")
    assert empty.effective == 0


def test_short_text_over_its_bound_leaves_no_effective_length() -> None:
    spoilt = report(needles=WHOLE.needles, perplexity=WHOLE.perplexity, short=short(1.3))
    found = verdict(spoilt)
    assert (found.effective, found.short_ok) == (0, False)
    assert found.words.endswith("short text +130.0 %, over the bound of 5 %")
    assert verdict(spoilt, short_bound=0).effective == 16 * K


def test_the_gate_fires_above_the_bound_only_and_never_without_one() -> None:
    assert short_exceeds(short(0.06), 0.05)
    assert not short_exceeds(short(0.04), 0.05)
    assert not short_exceeds(short(5.0), 0.0)
    assert not short_exceeds(None, 0.05)
    broken = ShortRegression(length=1, tokens=1, perplexity_before=10.0, perplexity_after=float("nan"))
    assert short_exceeds(broken, 0.05)


def test_the_plain_needle_decides_where_harder_tasks_were_measured_too() -> None:
    both = report(needles=(*needles({4 * K: 1.0}), *needles({4 * K: 0.2}, "variables")))
    assert needle_accuracy(both, 4 * K) == 1.0
    hard = report(needles=needles({4 * K: 0.2}, "variables"))
    assert needle_accuracy(hard, 4 * K) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [(256, "256"), (1024, "1k"), (1536, "1.5k"), (16 * K, "16k"), (1 << 20, "1M"), (131_072, "128k")],
)
def test_lengths_are_said_in_thousands(tokens: int, words: str) -> None:
    assert tokens_in_words(tokens) == words
