"""Sizes of steps, lengths of stages, curves over tokens and rules that end a job: all pure arithmetic."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.jobs.spec import (
    CheckpointSection,
    EvaluationSection,
    JobSpec,
    Schedule,
    SourceSection,
    StageSection,
    StopSection,
    Task,
    TrainingSection,
)
from engine.schedule.layout import ModelFacts, TextFacts, lay_out
from engine.schedule.ramp import BatchRamp, ramp_for_sequences, ramp_for_steps
from engine.schedule.rates import RateCurve, rate_curve, unfreeze_step
from engine.schedule.steps import epoch_tokens, needed_tokens, shares, stream_steps, tokens_to_read
from engine.schedule.stops import ended_by_loss, ended_by_spending, is_spike, plateau_gain, rule_words

WEB, CODE = SourceSection(name="web", path="web.jsonl", weight=3.0), SourceSection(name="code", path="code.jsonl")


def stream_spec(*, stages: tuple[StageSection, ...] = (), **training: object) -> JobSpec:
    return JobSpec(
        task=Task.FULL,
        sources=(WEB, CODE),
        stages=stages,
        evaluation=EvaluationSection(every_steps=5),
        training=TrainingSection(**{"batch_size": 4, "gradient_accumulation": 2, **training}),  # type: ignore[arg-type]
    )


def leaping(spec: JobSpec, retries: int, every_steps: int = 2) -> JobSpec:
    """Only losses that are no numbers are leaps."""
    checkpoint = CheckpointSection(every_steps=every_steps, keep=2)
    return msgspec.structs.replace(spec, checkpoint=checkpoint, stop=StopSection(spike_retries=retries))


def one_model(parameters: int = 1000) -> tuple[ModelFacts]:
    return (ModelFacts(parameters),)


# ── learning rate ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_wsd_warms_up_stays_and_falls_as_one_minus_the_square_root() -> None:
    curve = RateCurve(Schedule.WSD, 100, warmup_ratio=0.1, decay_ratio=0.2)
    assert [curve.factor(step) for step in (0, 5, 10, 79, 80)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert curve.factor(85) == pytest.approx(0.5)
    assert curve.factor(100) == 0.0


@pytest.mark.parametrize("schedule", [Schedule.COSINE, Schedule.LINEAR, Schedule.WSD])
def test_the_floor_is_where_the_rate_ends_and_the_peak_is_untouched_by_it(schedule: Schedule) -> None:
    curve = RateCurve(schedule, 50, warmup_ratio=0.1, final_ratio=0.25)
    assert curve.factor(5) == 1.0
    assert curve.factor(50) == pytest.approx(0.25)
    assert min(curve.factor(step) for step in range(5, 51)) >= 0.25


def test_only_new_parameters_warm_up_again() -> None:
    curve = RateCurve(Schedule.CONSTANT, 100, warmup_ratio=0.0, new_warmup_ratio=0.2)
    assert curve.factor(0) == 1.0
    assert [curve.new_factor(0), curve.new_factor(10), curve.new_factor(20)] == [0.0, 0.5, 1.0]


def test_old_entries_join_late_with_a_warm_up_under_the_common_decay() -> None:
    training = TrainingSection(schedule=Schedule.LINEAR, warmup_ratio=0.1, unfreeze_after=0.4)
    curve = rate_curve(training, 100, old_from=unfreeze_step(training, 100))
    assert [curve.factor(0), curve.factor(39), curve.factor(40)] == [0.0, 0.0, 0.0]
    assert 0 < curve.factor(43) < curve.factor(46) == pytest.approx(54 / 90)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(Schedule)),
    st.integers(1, 400),
    st.floats(0, 0.99),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_no_factor_leaves_zero_to_one(schedule: Schedule, steps: int, warm: float, decay: float, floor: float) -> None:
    curve = RateCurve(schedule, steps, warm, decay, floor)
    assert all(0.0 <= curve.factor(step) <= 1.0 for step in range(steps + 2))


# ── batch ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def sizes_by_definition(first: int, full: int, over: int, steps: int) -> list[int]:
    done, sizes = 0, []
    for _ in range(steps):
        sizes.append(first + (full - first) * done // over if done < over else full)
        done += sizes[-1]
    return sizes


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 3000))
def test_any_step_of_a_ramp_is_found_without_walking_there(first: int, more: int, over: int) -> None:
    ramp = BatchRamp(first, first + more, over)
    sizes = sizes_by_definition(first, first + more, over, 120)
    assert [ramp.sequences_of(step) for step in range(120)] == sizes
    assert [ramp.sequences_before(step) for step in (0, 1, 17, 119)] == [sum(sizes[:step]) for step in (0, 1, 17, 119)]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.floats(0, 1), st.integers(1, 5000))
def test_the_steps_for_some_sequences_are_the_fewest_that_hold_them(
    first: int, full: int, ratio: float, sequences: int
) -> None:
    ramp = ramp_for_sequences(first, full, ratio, sequences)
    steps = ramp.steps_for(sequences)
    assert ramp.sequences_before(steps) >= sequences > ramp.sequences_before(steps - 1)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.floats(0, 1), st.integers(1, 400))
def test_a_ramp_made_for_steps_is_over_where_it_was_asked_to_be(
    first: int, full: int, ratio: float, steps: int
) -> None:
    ramp = ramp_for_steps(first, full, ratio, steps)
    total = ramp.sequences_before(steps)
    assert ramp.over <= round(ratio * total) + full
    assert min(first, full) * steps <= total <= full * steps


def test_without_a_ramp_every_step_is_full() -> None:
    ramp = ramp_for_sequences(0, 8, 0.1, 1000)
    assert {ramp.sequences_of(step) for step in range(125)} == {8}
    assert ramp.steps_for(1000) == 125


# ── steps of a stage ──────────────────────────────────────────────────────────────────────────────────────────────
def test_max_tokens_max_steps_and_epochs_each_say_the_end() -> None:
    by_tokens = stream_steps(stream_spec(max_tokens=10_000), 0)
    assert (by_tokens.steps, by_tokens.tokens) == (5, 5 * 8 * 256)
    assert stream_steps(stream_spec(max_steps=7), 0).steps == 7
    assert stream_steps(stream_spec(epochs=2.0), 8 * 256 * 3).steps == 6
    with pytest.raises(EngineError) as caught:
        stream_steps(stream_spec(), 0)
    assert caught.value.code == "schedule.no_tokens"


def test_an_epoch_is_every_source_that_is_read_once() -> None:
    counted = {"web": 1000.0, "code": 500.0}
    assert epoch_tokens((WEB, CODE), counted) == 1500
    assert epoch_tokens((WEB, msgspec.structs.replace(CODE, weight=0.0)), counted) == 1000
    assert shares((WEB, CODE)) == {"web": 0.75, "code": 0.25}


def test_what_a_job_needs_of_a_source_is_summed_over_its_stages() -> None:
    stages = (
        StageSection(max_tokens=8 * 256 * 10),
        StageSection(max_tokens=8 * 128 * 10, max_length=128, weights={"code": 1.0}),
    )
    needed = needed_tokens(leaping(stream_spec(stages=stages), retries=0), {})
    assert needed["web"] == (60 + 1) * 256
    assert needed["code"] == (20 + 1) * 256 + (80 + 1) * 128


def test_text_is_read_for_what_leaps_of_the_loss_may_pass_over() -> None:
    """Also without a spike_factor: losses that are no numbers are gone back from all the same."""
    spec, step = stream_spec(max_tokens=8 * 256 * 10), 8 * 256
    plain, some, many = (needed_tokens(leaping(spec, count), {}) for count in (0, 3, 5))
    assert some == {name: count + (2 + 4 + 6) * step for name, count in plain.items()}
    assert many == {name: count + (2 + 4 + 6 + 6 + 6) * step for name, count in plain.items()}
    seldom = needed_tokens(leaping(spec, 3, every_steps=50), {})
    assert seldom == {name: count + 3 * 10 * step for name, count in plain.items()}, "a stage has no more steps"


def test_what_is_read_is_known_beforehand_unless_a_stage_goes_by_epochs() -> None:
    spec = stream_spec(max_tokens=8 * 256 * 10)
    assert tokens_to_read(spec) == needed_tokens(spec, {})
    assert tokens_to_read(stream_spec(epochs=1.0)) is None


# ── the whole schedule ────────────────────────────────────────────────────────────────────────────────────────────
def staged_spec() -> JobSpec:
    stages = (
        StageSection(name="short", max_tokens=8 * 256 * 10, learning_rate=1e-3, schedule=Schedule.CONSTANT),
        StageSection(name="grow", task=Task.EXPAND, layers=6),
        StageSection(
            name="long", max_tokens=4 * 512 * 10, max_length=512, batch_size=4, gradient_accumulation=1,
            weights={"code": 1.0}, learning_rate=5e-4, new_warmup_ratio=0.5, stop_loss=1.5,
        ),
    )  # fmt: skip
    return stream_spec(stages=stages)


def test_stages_follow_each_other_in_steps_and_tokens() -> None:
    models = (ModelFacts(1000), ModelFacts(1500, ("deepen",)), ModelFacts(1500))
    schedule = lay_out(staged_spec(), models, TextFacts({"web": 1e6, "code": 1e4}))
    short, grow, long = schedule.stages
    assert [(stage.first_step, stage.steps) for stage in schedule.stages] == [(0, 10), (10, 0), (10, 10)]
    assert (short.first_token, grow.tokens, long.first_token) == (0, 0.0, 20_480)
    assert schedule.steps == 20
    assert schedule.tokens == 40_960
    assert [source.name for source in long.mix] == ["code"]
    assert long.mix[0].passes == pytest.approx(2.048)
    assert long.stops == ("held-out loss ≤ 1.5",)
    assert [stage.number for stage in schedule.trained] == [1, 3]


def test_points_hold_both_ends_of_every_stage_and_rise_in_tokens() -> None:
    models = (ModelFacts(1000), ModelFacts(1500), ModelFacts(1500))
    points = lay_out(staged_spec(), models, TextFacts({"web": 1e6, "code": 1e6})).points(12)
    assert {0, 9, 10, 19} <= {point.step for point in points}
    assert [point.tokens for point in points] == sorted(point.tokens for point in points)
    first, last = points[0], points[-1]
    assert (first.parameters, last.parameters) == (1000, 1500)
    assert (first.length, last.length) == (256, 512)
    assert (first.shares, last.shares) == ({"web": 0.75, "code": 0.25}, {"code": 1.0})
    third = next(point for point in points if point.stage == 3)
    assert third.new_rate == 0.0
    assert last.new_rate > last.rate > 0, "the decay of new parameters begins when their own warm-up ends"


def test_text_read_too_often_and_text_never_read_are_told() -> None:
    spec = stream_spec(max_tokens=8 * 256 * 100)
    warned = lay_out(spec, one_model(), TextFacts({"web": 1e9, "code": 10_000})).warnings
    assert any(text.startswith("code is read 5.1 times") for text in warned)
    quiet = msgspec.structs.replace(spec, sources=(WEB, msgspec.structs.replace(CODE, weight=0.0)))
    assert lay_out(quiet, one_model(), TextFacts({"web": 1e9})).warnings == (
        "code has weight 0 in every stage: it is never read.",
    )


def test_a_leap_of_the_rate_between_stages_is_told() -> None:
    stages = (
        StageSection(max_steps=10, final_rate_ratio=0.1),
        StageSection(max_steps=10, warmup_ratio=0.0),
    )
    (warning,) = lay_out(stream_spec(stages=stages), one_model() * 2, TextFacts({})).warnings
    assert warning.startswith("Stage 2 begins at a learning rate of 2.0e-04")
    soft = (stages[0], StageSection(max_steps=10, warmup_ratio=0.2))
    assert lay_out(stream_spec(stages=soft), one_model() * 2, TextFacts({})).warnings == ()


def test_jobs_on_rows_have_a_schedule_too() -> None:
    spec = JobSpec(training=TrainingSection(epochs=2, batch_size=4, gradient_accumulation=2))
    (stage,) = lay_out(spec, one_model(), TextFacts({}, row_tokens=24_000, row_sequences=100)).stages
    assert stage.steps == 26
    assert stage.tokens == 48_000
    assert stage.mix == ()


# ── rules ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_loss_that_was_asked_for_ends_the_job() -> None:
    ended = ended_by_loss(StopSection(loss=2.0), [3.0, 2.0])
    assert ended is not None
    assert ended.rule == "loss"
    assert ended_by_loss(StopSection(loss=2.0), [1.9, 2.1]) is None


def test_a_plateau_is_what_several_evaluations_bring_together() -> None:
    rules = StopSection(plateau_evaluations=2, plateau_gain=0.01)
    assert ended_by_loss(rules, [3.0, 2.99]) is None, "too few to say"
    assert ended_by_loss(rules, [3.0, 2.98, 2.96]) is None, "together more than one percent"
    ended = ended_by_loss(rules, [3.0, 2.99, 2.98])
    assert ended is not None
    assert ended.rule == "plateau"
    assert plateau_gain([2.0, 3.0, 4.0], 2) == 0.0


def test_hours_and_money_end_a_job_and_money_needs_a_price() -> None:
    assert ended_by_spending(StopSection(hours=2), 7199, 0.0) is None
    ended = ended_by_spending(StopSection(hours=2), 7200, 0.0)
    assert ended is not None
    assert ended.rule == "hours"
    assert ended_by_spending(StopSection(usd=1), 3600, 0.0) is None
    spent = ended_by_spending(StopSection(usd=1), 3600, 1.0)
    assert spent is not None
    assert spent.rule == "usd"


def test_a_spike_is_held_against_the_median_and_no_number_is_always_one() -> None:
    rules = StopSection(spike_factor=2.0, spike_window=4)
    assert is_spike(StopSection(), float("nan"), [])
    assert not is_spike(StopSection(), 1e9, [1.0] * 10)
    assert not is_spike(rules, 9.0, [1.0, 1.0, 1.0]), "three losses are no median worth the name"
    assert is_spike(rules, 2.1, [9.0, 1.0, 1.0, 1.0, 1.0])
    assert not is_spike(rules, 1.9, [9.0, 1.0, 1.0, 1.0, 1.0])


def test_rules_that_are_off_have_no_words() -> None:
    assert rule_words(StopSection()) == ()
    assert rule_words(StopSection(plateau_evaluations=3, hours=2)) == ("3 evaluations with < 0.2 % gain", "2 h")
