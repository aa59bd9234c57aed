"""Differences between two models that were asked the same: intervals, verdicts, words, and the gate's rule."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from typing import Any

import pytest

from engine.errors import EngineError
from engine.evaluation.bootstrap import FEWEST_PAIRS, Interval, Items, paired_interval, sign_test
from engine.evaluation.comparison import (
    ACCURACY,
    BITS_PER_BYTE,
    broken_limits,
    compare,
    is_significant,
    loss_of,
    not_compared,
    require_comparable,
    require_names,
    verdict_of,
)
from engine.evaluation.findings import Found, Metric, SuiteSums, TaskResult
from engine.evaluation.watch_order import identity
from engine.jobs.events import Retention, RetentionReport
from engine.jobs.spec_suites import RetentionSection


def answers(right: int, questions: int, *, seed: int = 0) -> dict[int, float]:
    """`right` of `questions` answered right, which ones drawn at random."""
    chosen = set(random.Random(seed).sample(range(questions), right))
    return {number: float(number in chosen) for number in range(questions)}


def task(name: str, found: dict[int, float]) -> TaskResult:
    return TaskResult(task=name, questions=len(found), metrics=(), main="acc", answers=found)


def perplexity(name: str) -> TaskResult:
    """Of a task without right answers."""
    metric = Metric(name="bits_per_byte", value=4.6, standard_error=None, higher_is_better=False)
    return TaskResult(task=name, questions=12, metrics=(metric,))


def group(name: str, *members: str) -> TaskResult:
    return TaskResult(task=name, questions=0, metrics=(), members=members, main="acc")


def suite(name: str, bits: list[float], *, text_bytes: int = 100) -> SuiteSums:
    """One document per entry, of so many bits per byte."""
    nats = tuple(value * text_bytes * math.log(2) for value in bits)
    return SuiteSums(suite=name, nats=nats, tokens=(25,) * len(bits), text_bytes=(text_bytes,) * len(bits))


def of_tasks(*tasks: TaskResult) -> Found:
    return Found(tasks=tasks)


def only(before: Found, after: Found) -> RetentionReport:
    (report,) = compare(before, after)
    return report


# ── intervals ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    draw = random.Random(1)
    before, after = (Items([draw.random() for _ in range(100)], [1.0] * 100) for _ in range(2))
    assert paired_interval(before, after) == paired_interval(before, after)
    assert paired_interval(before, after).low != paired_interval(before, after, seed=5).low


def test_interval_of_a_mean_agrees_with_the_normal_one() -> None:
    draw = random.Random(3)
    differences = [draw.gauss(0.1, 1.0) for _ in range(2000)]
    ones = [1.0] * len(differences)
    found = paired_interval(Items([0.0] * len(differences), ones), Items(differences, ones))
    mean = sum(differences) / len(differences)
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / len(differences) / len(differences))
    assert found.delta == pytest.approx(mean)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.2 * error)


def test_pairing_is_what_makes_a_small_steady_difference_visible() -> None:
    """Texts differ far more among each other than the two models do on any of them."""
    draw = random.Random(7)
    hard = [draw.uniform(0.5, 4.0) for _ in range(60)]
    after = [value * 1.03 for value in hard]
    paired = paired_interval(Items(hard, [1.0] * 60), Items(after, [1.0] * 60))
    apart = paired_interval(Items(hard, [1.0] * 60), Items(draw.sample(after, 60), [1.0] * 60))
    assert paired.significant
    assert not apart.significant


def test_long_documents_weigh_as_much_as_their_bytes() -> None:
    found = paired_interval(Items([10.0, 100.0], [10.0, 10.0]), Items([10.0, 400.0], [10.0, 10.0]))
    assert found.delta == pytest.approx(410 / 20 - 110 / 20)


def test_many_questions_are_resampled_in_blocks_with_the_same_result() -> None:
    import engine.evaluation.bootstrap as bootstrap

    before, after = (Items(list(answers(n, 300, seed=n).values()), [1.0] * 300) for n in (200, 180))
    whole = paired_interval(before, after)
    at_once = bootstrap._NUMBERS_AT_ONCE
    try:
        bootstrap._NUMBERS_AT_ONCE = 10_000
        assert paired_interval(before, after) == whole
    finally:
        bootstrap._NUMBERS_AT_ONCE = at_once


def test_too_few_pairs_are_never_significant() -> None:
    few = FEWEST_PAIRS - 1
    ones = [1.0] * few
    found = paired_interval(Items(ones, ones), Items([0.0] * few, ones))
    assert found.low < found.high == 0
    assert not found.significant
    assert verdict_of(found, 1.0, 0.02) == "unclear"


@pytest.mark.parametrize(("rose", "fell", "chance"), [(0, 4, 0.125), (0, 5, 0.0625), (6, 0, 0.03125), (1, 9, 11 / 512)])
def test_the_sign_test_is_exact(rose: int, fell: int, chance: float) -> None:
    assert sign_test(rose, fell) == pytest.approx(chance)
    assert sign_test(3, 3) == sign_test(0, 0) == 1.0


@pytest.mark.parametrize(("lost", "significant"), [(4, False), (5, False), (6, True)])
def test_a_loss_that_a_coin_explains_is_not_significant_and_breaks_no_limit(lost: int, significant: bool) -> None:
    before = {number: 1.0 for number in range(64)}
    after = before | {number: 0.0 for number in range(lost)}
    report = only(of_tasks(task("t", before)), of_tasks(task("t", after)))
    assert is_significant(report) is significant
    assert report.verdict == ("lost" if significant else "unclear")
    assert ("not significant" in report.words) is not significant
    assert bool(broken_limits([report], [limit("t", 0.03)])) is significant


# ── verdicts and words ───────────────────────────────────────────────────────────────────────────────────────────
def test_a_large_loss_is_told_in_plain_words() -> None:
    report = only(
        of_tasks(task("demo_arithmetic", answers(364, 400))), of_tasks(task("demo_arithmetic", answers(312, 400)))
    )
    assert report.words == "arithmetic fell from 91 % to 78 %, significant"
    assert (report.verdict, report.unit, report.pairs) == ("lost", ACCURACY, 400)
    assert report.low < report.delta < report.high < 0


def test_gains_are_told_as_gains() -> None:
    report = only(of_tasks(task("logic", answers(60, 200))), of_tasks(task("logic", answers(150, 200, seed=2))))
    assert report.verdict == "gained"
    assert report.words == "logic rose from 30 % to 75 %, significant"


def test_a_little_worse_on_few_questions_is_unclear() -> None:
    report = only(of_tasks(task("logic", answers(18, 20))), of_tasks(task("logic", answers(17, 20, seed=4))))
    assert report.verdict == "unclear"
    assert "more items would be needed" in report.words


def test_the_same_answers_are_kept() -> None:
    same = answers(91, 100)
    report = only(of_tasks(task("logic", same)), of_tasks(task("logic", same)))
    assert (report.verdict, report.delta, report.words) == ("kept", 0.0, "logic stayed at 91 %")


def test_a_sure_change_too_small_to_matter_is_kept() -> None:
    report = only(
        Found(suites=(suite("prose", [1.0, 2.0] * 40),)), Found(suites=(suite("prose", [1.002, 2.004] * 40),))
    )
    assert report.unit == BITS_PER_BYTE
    assert is_significant(report)
    assert report.verdict == "kept"
    assert report.words.endswith("significant but too little to matter")


def test_text_that_became_harder_is_lost() -> None:
    report = only(Found(suites=(suite("prose", [1.0, 2.0] * 40),)), Found(suites=(suite("prose", [1.1, 2.2] * 40),)))
    assert report.verdict == "lost"
    assert report.words == "prose rose from 1.500 to 1.650 bits per byte, significant"
    assert loss_of(report) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("low", "high", "better", "verdict"),
    [
        (-0.20, -0.10, 1, "lost"),
        (0.10, 0.20, 1, "gained"),
        (0.10, 0.20, -1, "lost"),
        (-0.20, -0.10, -1, "gained"),
        (-0.01, 0.01, 1, "kept"),
        (-0.015, -0.005, 1, "kept"),
        (-0.01, 0.30, 1, "kept"),
        (-0.30, 0.01, 1, "unclear"),
        (-0.30, 0.30, 1, "unclear"),
        (0.01, 0.05, 1, "gained"),
    ],
)
def test_verdicts_follow_from_the_interval(low: float, high: float, better: float, verdict: str) -> None:
    assert verdict_of(Interval((low + high) / 2, low, high, 100), better, 0.02) == verdict


def test_only_questions_that_both_were_asked_are_paired() -> None:
    before, after = answers(90, 100), answers(90, 100)
    part = {number: after[number] for number in range(40)}
    report = only(of_tasks(task("logic", before)), of_tasks(task("logic", part)))
    assert report.pairs == 40
    assert report.verdict == "kept"


def test_a_group_is_the_pool_of_its_members_questions() -> None:
    before = of_tasks(task("a", answers(50, 100)), task("b", answers(20, 20)), group("both", "a", "b"))
    after = of_tasks(task("a", answers(50, 100)), task("b", answers(2, 20)), group("both", "a", "b"))
    reports = {report.on: report for report in compare(before, after)}
    assert list(reports) == ["both", "a", "b"]
    assert reports["both"].pairs == 120
    assert reports["both"].before == pytest.approx(70 / 120)
    assert (reports["a"].verdict, reports["b"].verdict) == ("kept", "lost")


def test_of_a_large_group_only_lost_members_are_told() -> None:
    names = [f"subject_{number}" for number in range(30)]
    before = of_tasks(*(task(name, answers(40, 50)) for name in names), group("all", *names))
    worse = [task(name, answers(2 if name == "subject_7" else 40, 50)) for name in names]
    told = [report.on for report in compare(before, of_tasks(*worse, group("all", *names)))]
    assert told == ["all", "subject_7"]


def test_a_member_that_chance_picks_out_of_many_is_not_called_lost() -> None:
    """Seven of seven changes for the worse: one chance in 64, which one of thirty meets more than every third time."""
    names = [f"subject_{number}" for number in range(30)]
    before = {number: float(number < 40) for number in range(50)}
    unlucky = {**before, **dict.fromkeys(range(7), 0.0)}
    alone = only(of_tasks(task("subject_7", before)), of_tasks(task("subject_7", unlucky)))
    assert is_significant(alone)
    found = of_tasks(*(task(name, unlucky if name == "subject_7" else before) for name in names), group("all", *names))
    told = compare(of_tasks(*(task(name, before) for name in names), group("all", *names)), found)
    assert [report.on for report in told] == ["all"]


def test_a_member_with_a_limit_is_reported_however_many_there_are() -> None:
    """Also while nothing is lost: a checkpoint without it would never count as one that kept the limit."""
    names = [f"subject_{number}" for number in range(13)]
    others = [task(name, answers(5, 6)) for name in names[1:]]
    groups = group("all", *names), group("some", *names)
    before = of_tasks(task("subject_0", answers(400, 500)), *others, *groups)
    told = compare(before, before, always=("subject_0",))
    assert [report.on for report in told] == ["all", "subject_0", "some"]
    assert {report.verdict for report in told} == {"kept"}
    right = [number for number, found in answers(400, 500).items() if found]
    slightly = task("subject_0", {**answers(400, 500), **dict.fromkeys(right[:12], 0.0)})
    reports = compare(before, of_tasks(slightly, *others, *groups), always=("subject_0",))
    (broken,) = broken_limits(reports, [limit("subject_0", 0.01)])
    assert "subject 0 fell from" in broken.words


def test_documents_of_another_text_are_not_compared() -> None:
    assert compare(Found(suites=(suite("prose", [1.0] * 9),)), Found(suites=(suite("prose", [1.0] * 8),))) == ()


# ── the gate ─────────────────────────────────────────────────────────────────────────────────────────────────────
def limit(on: str, most_lost: float, action: str = "stop") -> RetentionSection:
    return RetentionSection(on=on, most_lost=most_lost, action=action)


def test_a_limit_is_broken_by_a_significant_loss_above_it() -> None:
    reports = compare(
        of_tasks(task("demo_arithmetic", answers(364, 400))), of_tasks(task("demo_arithmetic", answers(312, 400)))
    )
    (broken,) = broken_limits(reports, [limit("demo_arithmetic", 0.05)])
    assert broken.words == "arithmetic fell from 91 % to 78 %, significant: 13 points lost, 5 points allowed"
    assert broken_limits(reports, [limit("demo_arithmetic", 0.2)]) == ()


def test_a_loss_that_may_be_chance_breaks_no_limit() -> None:
    reports = compare(of_tasks(task("logic", answers(18, 20))), of_tasks(task("logic", answers(15, 20, seed=4))))
    assert loss_of(reports[0]) > 0.05
    assert broken_limits(reports, [limit("logic", 0.05)]) == ()


def test_limits_on_text_are_relative() -> None:
    reports = compare(
        Found(suites=(suite("prose", [1.0, 2.0] * 40),)), Found(suites=(suite("prose", [1.1, 2.2] * 40),))
    )
    assert len(broken_limits(reports, [limit("prose", 0.09)])) == 1
    assert broken_limits(reports, [limit("prose", 0.11)]) == ()


def test_a_limit_on_nothing_that_is_measured_is_refused() -> None:
    with pytest.raises(EngineError, match="names nothing that is measured") as refused:
        require_names(["arithmetics"], ["demo", "demo_arithmetic"])
    assert "demo_arithmetic" in refused.value.cause


def test_a_limit_on_what_has_no_right_answers_is_refused_with_its_line() -> None:
    before = Found((suite("prose", [1.0] * 9),), (task("logic", answers(8, 9)), perplexity("my_ppl")))
    require_comparable(["prose", "logic"], before)
    with pytest.raises(EngineError, match="my_ppl has no share of right answers") as refused:
        require_comparable(["prose", "my_ppl"], before)
    assert refused.value.cause == "It is measured in bits_per_byte."
    assert refused.value.key == "retention[2].on"
    with pytest.raises(EngineError, match="many has no share") as refused:
        require_comparable(["many"], before)
    assert refused.value.cause == "It has no figure of its own."


def test_what_was_not_compared_is_named_a_group_for_its_members() -> None:
    one = of_tasks(task("logic", answers(8, 9)), *(perplexity(name) for name in ("a", "b", "c")))
    found = of_tasks(*one.tasks, group("both", "a", "b"), group("mixed", "logic", "c"))
    assert not_compared(found, found) == ("c", "both")


def test_a_comparison_of_all_questions_is_told_after_one_of_a_part() -> None:
    part, whole = (compare(of_tasks(task("t", answers(9, n))), of_tasks(task("t", answers(9, n)))) for n in (10, 24))
    told = {
        identity(Retention(t=0.0, step=7, reports=reports, gate=gate))
        for reports, gate in ((part, ""), (whole, ""), (whole, ""), (whole, "t fell."))
    }
    assert len(told) == 3


def test_comparing_loads_no_torch() -> None:
    modules = "engine.evaluation.comparison, engine.jobs.retention_report"
    code = f"import sys; import {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_report_of_folders_is_one_self_contained_page() -> None:
    from engine.jobs.card import SuiteResult
    from engine.jobs.retention_report import Abilities, FolderReport, retention_page

    def side(name: str, bits: float) -> Abilities:
        text: dict[str, Any] = {
            "name": "<prose>",
            "nats_per_token": 2.0,
            "tokens": 10,
            "text_bytes": 40,
            "documents": 3,
        }
        return Abilities(model=name, folder="/x", suites=(SuiteResult(bits_per_byte=bits, **text),))

    lost = compare(Found(suites=(suite("prose", [1.0] * 40),)), Found(suites=(suite("prose", [1.2] * 40),)))
    report = FolderReport(model=side("grown", 1.2), parent=side("parent", 1.0), retention=lost)
    page = retention_page(report)
    assert report.verdict == "Lost against parent: prose rose from 1.000 to 1.200 bits per byte, significant."
    assert report.verdict in page
    assert "&lt;prose&gt;" in page
    assert "<prose>" not in page
    assert not any(word in page for word in ("<link", "<script src", "http://", "https://"))
