"""An arm wins a goal only where the interval says so; words say what is not certain."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.jobs.card_io import read_card, write_card
from engine.jobs.stage_figures import StageFigures
from engine.lab.lab_file import GoalSection, Lab, Start
from engine.lab.report import make_report, report_of
from engine.lab.results import Point, RunResult, collect
from engine.lab.sizing import ArmSize, Sizes, StageSize
from engine.lab.verdicts import Ground, Verdict, decide
from tests.support.labs import begun, finish, small_lab

SEEDS = (1, 2, 3)


def run(arm: str, seed: int, curve: tuple[tuple[int, float], ...] = (), **after: float) -> RunResult:
    points = tuple(Point(step, loss) for step, loss in curve)
    before = {"task_loss": 3.0 if arm != "random" else 7.0}
    after = {"flops": 2e12, "usd": 0.5, "hours": 0.02, **after}
    return RunResult(
        arm=arm, seed=seed, state="finished", steps=10, training_seconds=36.0, curve=points, before=before, after=after
    )


def ground(runs: list[RunResult], **starts: Start) -> Ground:
    arms = list(dict.fromkeys(one.arm for one in runs))
    stage = StageSize(1, 100.0, 1e9, 5, 0.1, steps=10)
    sizes = Sizes(tuple(ArmSize(arm, (stage,)) for arm in arms), "")
    return Ground(runs, sizes, {arm: starts.get(arm, Start.MODEL) for arm in arms})


def task_loss(**losses: tuple[float, ...]) -> Verdict:
    runs = [
        run(arm, seed, task_loss=loss)
        for arm, values in losses.items()
        for seed, loss in zip(SEEDS, values, strict=False)
    ]
    return decide(GoalSection(name="learn", figure="task_loss"), ground(runs))


def test_a_difference_that_every_seed_shows_wins() -> None:
    verdict = task_loss(lora=(1.0, 1.4, 1.2), full=(2.0, 2.41, 2.2))
    assert verdict.winner == "lora"
    assert verdict.words.startswith("lora won: 1.200, against full by −1.003 (")


def test_a_difference_that_seeds_do_not_agree_on_decides_nothing() -> None:
    verdict = task_loss(lora=(1.0, 2.0, 1.2), full=(1.5, 1.4, 1.6))
    assert verdict.best == "lora"
    assert verdict.winner == ""
    assert verdict.words.startswith("Not decided: lora has the best mean")
    assert "may be none" in verdict.words


def test_who_beats_one_but_not_the_other_is_told_so() -> None:
    verdict = task_loss(lora=(1.0, 1.1, 1.2), full=(1.0, 1.12, 1.19), random=(6.0, 6.1, 6.3))
    assert verdict.winner == ""
    assert "ahead of random for certain" in verdict.words


def test_one_seed_decides_nothing_however_large_the_difference() -> None:
    verdict = task_loss(lora=(1.0,), full=(9.0,))
    assert verdict.winner == ""
    assert "one seed gives no interval" in verdict.words


def test_a_certain_difference_below_what_matters_is_no_win() -> None:
    runs = [run("a", seed, task_loss=1.000) for seed in SEEDS] + [run("b", seed, task_loss=1.001) for seed in SEEDS]
    assert decide(GoalSection(name="g", figure="task_loss"), ground(runs)).winner == "a"
    verdict = decide(GoalSection(name="g", figure="task_loss", matters=0.01), ground(runs))
    assert verdict.winner == ""
    assert "below the 0.01 that matters" in verdict.words


def test_figures_where_more_is_better_are_won_by_more() -> None:
    runs = [run("a", seed, exact_match=0.9 + seed / 100) for seed in SEEDS]
    runs += [run("b", seed, exact_match=0.5 + seed / 99) for seed in SEEDS]
    verdict = decide(GoalSection(name="answer", figure="exact_match"), ground(runs))
    assert verdict.winner == "a"
    assert "92.0 %" in verdict.words
    assert "points" in verdict.words


def test_gain_per_cost_counts_from_the_model_that_was_there_also_for_an_arm_at_random() -> None:
    runs = [run(arm, seed, task_loss=2.0) for arm in ("lora", "random") for seed in SEEDS]
    verdict = decide(GoalSection(name="value", figure="task_loss", per="usd"), ground(runs, random=Start.RANDOM))
    assert [arm.mean for arm in verdict.arms] == [pytest.approx(2.0)] * 2, "(3.0 - 2.0) / $0.5, not (7.0 - 2.0)"
    per_flops = decide(GoalSection(name="value", figure="task_loss", per="flops"), ground(runs))
    assert per_flops.arms[0].mean == pytest.approx(0.5), "per 10^12"


def test_the_cost_of_a_level_is_read_between_evaluations() -> None:
    runs = [run("quick", seed, ((0, 3.0), (5, 1.0), (10, 0.5))) for seed in SEEDS]
    runs += [run("slow", seed, ((0, 3.0), (5, 2.9), (10, 2.8))) for seed in SEEDS]
    verdict = decide(GoalSection(name="sooner", figure="flops", reach=2.0), ground(runs))
    assert verdict.arms[0].mean == pytest.approx(2.5e9), "step 2.5 of 10^9 each"
    assert verdict.best == "quick"
    assert verdict.winner == "", "there is no interval against an arm that has no figure"
    assert "no second arm has a figure" in verdict.words
    assert "slow did not reach 2 with every seed, and spent 1.00·10¹⁰, no less than quick needed." in verdict.words
    hours = decide(GoalSection(name="sooner", figure="hours", reach=2.0), ground(runs))
    assert hours.arms[0].mean == pytest.approx(36.0 / 3600 * 0.25)


def test_an_arm_that_ran_out_of_budget_before_a_level_is_not_beaten_by_one_that_needed_more() -> None:
    """Equal tokens are not equal operations: the cheap arm had spent a hundredth of what the dear ones needed."""

    def verdict_with(cheap: float) -> Verdict:
        runs = [run("dear", seed, ((0, 3.0), (5, 1.0 - seed / 100), (10, 0.5))) for seed in SEEDS]
        runs += [run("dearer", seed, ((0, 3.0), (9, 1.0 - seed / 100), (10, 0.9))) for seed in SEEDS]
        runs += [run("cheap", seed, ((0, 3.0), (10, 1.05 + seed / 1000))) for seed in SEEDS]
        sizes = Sizes(
            tuple(
                ArmSize(arm, (StageSize(1, 100.0, cost, 5, 0.1, steps=10),))
                for arm, cost in (("dear", 1e9), ("dearer", 1e9), ("cheap", cheap))
            ),
            "",
        )
        starts = {size.name: Start.MODEL for size in sizes.arms}
        return decide(GoalSection(name="sooner", figure="flops", reach=1.0), Ground(runs, sizes, starts))

    verdict = verdict_with(1e7)
    assert verdict.best == "dear"
    assert verdict.winner == ""
    cheap = verdict.arms[2]
    assert (cheap.mean, cheap.values) == (None, {})
    assert cheap.unreached == {seed: pytest.approx(1e8) for seed in SEEDS}
    assert [one.arm for one in verdict.comparisons] == ["dearer"], "what was never reached enters no interval"
    assert "does not show that it needs more than dear" in verdict.words
    assert verdict_with(1e9).winner == "dear", "it had spent more than dear needed, with every seed"


def test_a_benchmark_is_judged_the_way_that_lm_eval_calls_better() -> None:
    runs = [run("a", seed, (), **{"falling:wikitext": 20.0 + seed / 10}) for seed in SEEDS]
    runs += [run("b", seed, (), **{"falling:wikitext": 30.0 + seed / 9}) for seed in SEEDS]
    verdict = decide(GoalSection(name="text", figure="benchmark:wikitext"), ground(runs))
    assert (verdict.winner, verdict.higher_is_better) == ("a", False)
    assert verdict.words.startswith("a won: 20.200, against b by"), "perplexity is no share of right answers"


def test_an_arm_that_lacks_the_figure_keeps_others_from_winning() -> None:
    runs = [run("a", seed, task_loss=1.0) for seed in SEEDS] + [run("b", seed) for seed in SEEDS]
    verdict = decide(GoalSection(name="g", figure="task_loss"), ground(runs))
    assert verdict.winner == ""
    assert "Not measured: b" in verdict.words
    nothing = decide(GoalSection(name="g", figure="suite:web"), ground(runs))
    assert nothing.words.startswith("Not decided")


def test_an_arm_that_ended_early_is_shown_with_what_it_spent(tmp_path: Path) -> None:
    lab = small_lab(tmp_path)
    folder = begun(lab, steps=20)
    for seed in SEEDS:
        finish(folder, "LoRA", seed, 1.0)  # its card says 10 steps
    report = make_report(lab, folder)
    lora, full = report.arms
    assert (lora.steps, lora.tokens, lora.flops) == (10, 10_000.0, 5e9)
    assert (full.steps, full.tokens) == (20, 20_000.0), "not begun: as planned"
    assert "LoRA, seed 1, at step 10 of 20" in report.how
    assert "ended early" not in make_report(lab, begun(lab, steps=10)).how


STAGED = """
[[arms]]
name = "staged"
spec.task = "full"
spec.evaluation.every_steps = 5
spec.stages = [{ max_steps = 10, stop_loss = 2.0 }, { task = "expand", layers = 10 }, { max_steps = 5 }]
"""


def test_a_stage_that_ended_early_is_reckoned_with_its_own_steps(tmp_path: Path) -> None:
    lab = small_lab(tmp_path, lambda text: text + STAGED)
    folder = begun(lab)
    record = folder.record()
    assert record is not None
    planned = (StageSize(1, 1000.0, 1e9, 5, 0.5, steps=10), StageSize(1, 2000.0, 3e9, 6, 0.5, steps=8))
    arms = tuple(one if one.name != "staged" else ArmSize("staged", planned) for one in record.sizes.arms)
    record = msgspec.structs.replace(record, sizes=Sizes(arms, ""))
    run_dir = finish(folder, "staged", 1, 1.0, curve=(2.0, 1.0))
    early = (StageFigures(stage=1, steps=2), StageFigures(stage=2), StageFigures(stage=3, first_step=2, steps=8))
    write_card(run_dir, msgspec.structs.replace(read_card(run_dir), stage_figures=early))
    runs = collect(lab, folder, record)
    (staged,) = (one for one in runs if one.finished)
    assert (staged.stage_steps, staged.after["flops"]) == ((2, 8), 2e9 + 8 * 3e9)
    report = report_of(lab, record, runs)
    row, curve = report.arms[-1], report.curves[-1]
    assert (row.steps, row.tokens, row.flops) == (10, 2 * 1000 + 8 * 2000, 2e9 + 8 * 3e9)
    assert curve.spent == (0.0, 2e9 + 3 * 3e9, 2e9 + 8 * 3e9), "at the steps 0, 5 and 10"
    reached = decide(
        GoalSection(name="r", figure="flops", reach=2.0), Ground(runs, record.sizes, {"staged": Start.MODEL})
    )
    assert reached.arms[0].values == {1: 2e9 + 3 * 3e9}
    write_card(run_dir, msgspec.structs.replace(read_card(run_dir), stage_figures=()))
    assert collect(lab, folder, record)[-3].after["flops"] == 10 * 1e9, "a card that does not say: as planned"


def test_runs_over_text_that_was_changed_in_between_are_left_out_in_words(tmp_path: Path) -> None:
    lab = small_lab(tmp_path)
    folder = begun(lab)
    for seed in SEEDS:
        finish(folder, "LoRA", seed, 1.0, data="a" * 64)
        finish(folder, "full", seed, 2.0 + seed / 100, data="a" * 64)
    assert make_report(lab, folder).finished == 6
    finish(folder, "full", 3, 0.1, data="b" * 64)
    report = make_report(lab, folder)
    assert report.finished == 1
    assert report.verdicts[0].winner == ""
    assert any("LoRA, seed 1: left out, its data (sha256 aaaaaaaa)" in note for note in report.notes)


def test_what_arms_do_not_share_is_said_in_the_report(tmp_path: Path) -> None:
    lab = small_lab(
        tmp_path,
        lambda text: text.replace("points = 4", 'points = 4\ndifferent = ["data"]').replace(
            'task = "full"', 'task = "full"\ndata.max_length = 32'
        ),
    )
    folder = begun(lab)
    finish(folder, "LoRA", 1, 1.0, data="a" * 64)
    finish(folder, "full", 1, 1.0, data="b" * 64)
    report = make_report(lab, folder)
    assert report.notes[0].startswith("Arms differ in data.max_length")
    assert report.finished == 2, "other data is meant, arm by arm"


def test_results_come_from_cards_and_what_is_missing_is_named(tmp_path: Path) -> None:
    lab: Lab = small_lab(tmp_path)
    folder = begun(lab)
    for seed in SEEDS:
        finish(folder, "LoRA", seed, 1.0 + seed / 10, curve=(2.0, 1.5))
    finish(folder, "full", 1, 2.0)
    record = folder.record()
    assert record is not None
    found = {(one.arm, one.seed): one for one in collect(lab, folder, record)}
    assert found[("LoRA", 1)].after["task_loss"] == pytest.approx(1.1)
    assert [point.loss for point in found[("LoRA", 1)].curve] == pytest.approx([3.0, 2.0, 1.1])
    assert found[("LoRA", 1)].after["flops"] == pytest.approx(10 * 0.5e9)
    assert found[("full", 2)].state == "missing"
    report = make_report(lab, folder)
    assert (report.finished, report.total) == (4, 6)
    assert report.verdicts[0].winner == "", "full has one seed"
    assert "full, seed 2: missing" in report.notes
