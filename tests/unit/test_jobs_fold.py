"""The state is a pure fold: any prefix is fine, a resume looks as if nothing had happened, memory stays bounded."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.jobs import events as ev
from engine.jobs.fold import LOG_LIMIT, SERIES, Fold
from engine.jobs.fold_evaluation import SCORE_LIMIT
from engine.jobs.journal import JournalTail
from engine.jobs.series import MAX_BUCKETS, Bucket, Series
from engine.jobs.state import RunPhase
from tests.support.fake_worker import (
    TOKENS_PER_STEP,
    loss_at,
    meter_event,
    opening,
    recorded_run,
    step_event,
)

TOTAL = 3000


def attempt(first: int, last: int, *, number: int = 1, began: float = 1000.0, every: int = 10) -> Iterator[ev.AnyEvent]:
    """A runner's and a worker's events for steps first..last, a checkpoint every so many."""
    pid = 100 + number
    yield ev.RunnerStart(t=began, pid=1, process_start=1.0, boot_id="b")
    yield ev.WorkerStart(t=began, pid=pid, process_start=1.0, attempt=number)
    yield from opening(began + 1, pid, TOTAL, attempt=number, resumed=first - 1)
    for step in range(first, last + 1):
        t = began + 1 + (step - first + 1)
        yield step_event(t, step, TOTAL, 0.8)
        if step % every == 0:
            yield ev.Eval(t=t, step=step, loss=loss_at(step) + 0.1)
            yield ev.Checkpoint(t=t, step=step, path=f"checkpoints/{step}", size_bytes=1)


def folded(*stories: Iterator[ev.AnyEvent]) -> Fold:
    fold = Fold()
    for story in stories:
        fold.apply_all(story)
    return fold


@pytest.mark.parametrize(("killed_at", "resumed_at"), [(37, 30), (30, 30), (7, 0), (2999, 2990), (2345, 2340)])
def test_a_resumed_run_has_the_curves_and_totals_of_an_uninterrupted_one(killed_at: int, resumed_at: int) -> None:
    whole = folded(attempt(1, TOTAL))
    broken = folded(attempt(1, killed_at), attempt(resumed_at + 1, TOTAL, number=2, began=9000.0))
    for name in ("loss", "learning_rate", "grad_norm"):
        ours, theirs = broken.series(name).buckets(), whole.series(name).buckets()
        assert [without_mean(bucket) for bucket in ours] == [without_mean(bucket) for bucket in theirs]
        assert [bucket.mean for bucket in ours] == pytest.approx([bucket.mean for bucket in theirs])
    assert [b.mean for b in broken.series("eval_loss").buckets()] == pytest.approx(
        [b.mean for b in whole.series("eval_loss").buckets()]
    )
    assert broken.state.tokens_total == whole.state.tokens_total == TOTAL * TOKENS_PER_STEP
    assert broken.state.step == TOTAL
    assert broken.state.attempt == 2
    assert broken.state.best_eval_loss == whole.state.best_eval_loss


def test_right_after_a_resume_the_state_is_that_of_the_checkpoint() -> None:
    fold = folded(attempt(1, 37), attempt(31, 30, number=2, began=9000.0))
    state = fold.state
    assert (state.step, state.tokens_total) == (30, 30 * TOKENS_PER_STEP)
    assert state.loss == pytest.approx(loss_at(30))
    assert fold.series("loss").last_step == 30
    assert [sample.step for sample in state.samples] == [0, 0]


def without_mean(bucket: Bucket) -> tuple[object, ...]:
    """Sums depend on the order of adding in their last digit; everything else is exact."""
    return (bucket.first_step, bucket.last_step, bucket.low, bucket.high, bucket.count)


def test_a_lost_start_line_still_rewinds() -> None:
    second = [event for event in attempt(31, 60, number=2, began=9000.0) if not isinstance(event, ev.Start)]
    fold = folded(attempt(1, 37), iter(second))
    assert fold.series("loss").buckets() == folded(attempt(1, 60)).series("loss").buckets()


def test_working_time_counts_the_attempts_and_not_the_night_between() -> None:
    first = list(attempt(1, 37))
    killed = ev.WorkerExit(t=first[-1].t + 2, exit_code=-9, signal=9, what="The worker was killed.")
    second = attempt(31, 60, number=2, began=90_000.0)
    state = folded(iter([*first, killed]), second).state
    assert state.working_seconds == pytest.approx((1 + 37 + 2) + (1 + 30))


def test_working_time_of_a_lost_attempt_ends_with_its_last_sign_of_life() -> None:
    state = folded(attempt(1, 37), attempt(31, 60, number=2, began=90_000.0)).state
    assert (1 + 37) + (1 + 30) <= state.working_seconds <= (1 + 37 + 15) + (1 + 30)


def test_the_states_follow_the_story() -> None:
    fold = Fold()
    seen = [fold.state.state]
    story: list[ev.AnyEvent] = [
        ev.RunnerStart(t=1.0, pid=1, process_start=1.0, boot_id="b"),
        ev.WorkerStart(t=1.0, pid=2, process_start=1.0, attempt=1),
        ev.Phase(t=2.0, name="measuring before"),
        step_event(3.0, 1, 9, 0.1),
        ev.Phase(t=4.0, name="evaluating"),
        ev.Phase(t=4.0, name="saving"),
        ev.Control(t=4.5, command="pause"),
        ev.End(t=5.0, outcome="paused", step=1),
        ev.WorkerExit(t=6.0, exit_code=0),
        ev.RunnerEnd(t=6.0, outcome="paused"),
        ev.RunnerStart(t=7.0, pid=3, process_start=1.0, boot_id="b"),
        step_event(8.0, 2, 9, 0.1),
        ev.WorkerExit(t=9.0, exit_code=-9, signal=9, what="The worker was killed.", cause="kill -9"),
        ev.RunnerEnd(t=9.0, outcome="killed"),
    ]
    for event in story:
        fold.apply(event)
        if fold.state.state is not seen[-1]:
            seen.append(fold.state.state)
    assert seen == [
        RunPhase.QUEUED,
        RunPhase.STARTING,
        RunPhase.EVALUATING,
        RunPhase.RUNNING,
        RunPhase.EVALUATING,
        RunPhase.SAVING,
        RunPhase.PAUSED,
        RunPhase.STARTING,
        RunPhase.RUNNING,
        RunPhase.FAILED,
    ]
    assert (fold.state.what, fold.state.cause) == ("The worker was killed.", "kill -9")


def test_the_worker_has_the_last_word_about_how_it_ended() -> None:
    fold = folded(attempt(1, 3))
    fold.apply(ev.End(t=2000.0, outcome="failed", what="Training failed.", cause="Loss is not a number."))
    fold.apply(ev.WorkerExit(t=2001.0, exit_code=5, what="something else"))
    assert (fold.state.what, fold.state.cause) == ("Training failed.", "Loss is not a number.")


def test_speed_and_eta_come_from_the_last_steps() -> None:
    fold = Fold()
    for step in range(1, 101):
        fold.apply(step_event(1000.0 + step, step, 200, 0.5 if step > 50 else 5.0))
    fold.apply(ev.Plan(t=1100.0, total_steps=200, rows=1, tokens_per_epoch=1, trained_tokens_per_epoch=1,
                       parameters=1, trainable_parameters=1))  # fmt: skip
    assert fold.state.tokens_per_second == pytest.approx(TOKENS_PER_STEP / 0.5)
    assert fold.state.eta_seconds == pytest.approx(100 * 0.5, rel=0.01)
    fold.apply(ev.End(t=1101.0, outcome="finished"))
    assert fold.state.eta_seconds is None


def test_a_loss_that_is_not_a_number_is_state_but_no_point_of_the_curve() -> None:
    fold = folded(attempt(1, 5))
    broken = ev.Step(t=2000.0, step=6, loss=math.nan, learning_rate=0.0, grad_norm=math.inf, tokens=1,
                     trained_tokens=1, step_seconds=0.1)  # fmt: skip
    fold.apply(broken)
    assert fold.state.loss is not None
    assert math.isnan(fold.state.loss)
    assert fold.series("loss").last_step == 5


def test_samples_keep_the_answers_before_training_and_the_newest_after() -> None:
    fold = Fold()
    for step in (0, 10, 20):
        for prompt in ("a", "b"):
            fold.apply(ev.Sample(t=float(step), step=step, prompt=prompt, text=f"{prompt}{step}"))
    assert [(s.step, s.text) for s in fold.state.samples] == [(0, "a0"), (0, "b0"), (20, "a20"), (20, "b20")]


def test_the_log_keeps_the_newest_lines() -> None:
    fold = Fold()
    for number in range(LOG_LIMIT + 500):
        fold.apply(ev.Log(t=float(number), message=str(number)))
    assert len(fold.state.log) == LOG_LIMIT
    assert fold.state.log[-1][2] == str(LOG_LIMIT + 499)


def test_a_hundred_thousand_steps_stay_small_and_fold_fast() -> None:
    run_dir = recorded_run(100_000)
    fold = Fold()
    # Against reading the very same lines: a slow machine, and a heap full of other tests' objects, are in both.
    reading_seconds = seconds_of(lambda: sum(1 for _ in JournalTail(run_dir).stream()))
    folding_seconds = seconds_of(lambda: fold.apply_all(JournalTail(run_dir).stream()))
    curve = fold.series("loss").buckets()
    assert fold.state.step == 100_000
    assert fold.state.tokens_total == 100_000 * TOKENS_PER_STEP
    assert len(curve) <= MAX_BUCKETS
    assert sum(bucket.count for bucket in curve) == 100_000
    assert sum(b.mean * b.count for b in curve) == pytest.approx(sum(loss_at(s) for s in range(1, 100_001)))
    assert len(fold.state.checkpoints) <= 100
    assert folding_seconds < 12 * reading_seconds


def seconds_of(work: Callable[[], object]) -> float:
    """Of this thread's processor time."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


EVENTS = st.one_of(
    st.builds(ev.Start, t=st.floats(0, 100), attempt=st.integers(-1, 3), pid=st.integers(0, 3),
              resumed_step=st.integers(-2, 60)),
    st.builds(ev.Plan, t=st.floats(0, 100), total_steps=st.integers(-1, 90), rows=st.just(1),
              tokens_per_epoch=st.just(1), trained_tokens_per_epoch=st.just(1), parameters=st.just(1),
              trainable_parameters=st.just(1)),
    st.builds(ev.Phase, t=st.floats(0, 100), name=st.sampled_from(["training", "saving", "dreaming"])),
    st.builds(ev.Step, t=st.floats(0, 100), step=st.integers(-5, 80), loss=st.floats(), learning_rate=st.floats(),
              grad_norm=st.floats(), tokens=st.integers(0, 9), trained_tokens=st.integers(0, 9),
              step_seconds=st.floats(-1, 5)),
    st.builds(ev.Eval, t=st.floats(0, 100), step=st.integers(-5, 80), loss=st.floats()),
    st.builds(ev.Sample, t=st.floats(0, 100), step=st.integers(0, 5), prompt=st.text(max_size=2), text=st.just("")),
    st.builds(ev.Checkpoint, t=st.floats(0, 100), step=st.integers(0, 80), path=st.just(""), size_bytes=st.just(1)),
    st.builds(ev.Control, t=st.floats(0, 100), command=st.sampled_from(["pause", "dance"])),
    st.builds(ev.End, t=st.floats(0, 100), outcome=st.sampled_from(["finished", "paused", "exploded"])),
    st.builds(ev.RunnerStart, t=st.floats(0, 100), pid=st.integers(0, 3), process_start=st.just(1.0),
              boot_id=st.just("b")),
    st.builds(ev.WorkerStart, t=st.floats(0, 100), pid=st.integers(0, 3), process_start=st.just(1.0),
              attempt=st.integers(0, 3)),
    st.builds(ev.Heartbeat, t=st.floats(0, 100)),
    st.builds(ev.WorkerExit, t=st.floats(0, 100), exit_code=st.integers(-9, 5)),
    st.builds(ev.RunnerEnd, t=st.floats(0, 100), outcome=st.sampled_from(["finished", "killed"])),
    st.just(meter_event(5.0, 1)),
)  # fmt: skip


@given(story=st.lists(EVENTS, max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_order_of_events_is_too_strange(story: list[ev.AnyEvent]) -> None:
    fold = Fold()
    for event in story:
        fold.apply(event)
        state = fold.state
        assert state.working_seconds >= 0
        assert state.eta_seconds is None or state.eta_seconds >= 0
        for name in SERIES:
            buckets = fold.series(name).buckets()
            assert all(a.last_step < b.first_step for a, b in itertools.pairwise(buckets))


@given(story=st.lists(EVENTS, max_size=60))
@settings(max_examples=300, deadline=None)
def test_looking_in_between_changes_nothing(story: list[ev.AnyEvent]) -> None:
    watched, unwatched = Fold(), Fold()
    for event in story:
        watched.apply(event)
        watched.state  # noqa: B018 - reading it is what must not matter
    unwatched.apply_all(story)
    for field in dataclasses.fields(watched.state):
        seen, unseen = getattr(watched.state, field.name), getattr(unwatched.state, field.name)
        assert seen == (pytest.approx(unseen, nan_ok=True) if isinstance(unseen, float) else unseen), field.name
    for name in SERIES:
        ours, theirs = watched.series(name).buckets(), unwatched.series(name).buckets()
        assert [without_mean(bucket) for bucket in ours] == [without_mean(bucket) for bucket in theirs]


@given(cut=st.integers(0, 400))
@settings(max_examples=30, deadline=None)
def test_any_prefix_of_a_real_story_folds(cut: int) -> None:
    story = [*attempt(1, 100), *attempt(91, 150, number=2, began=5000.0), ev.End(t=9000.0, outcome="finished")]
    fold = folded(iter(story[:cut]))
    rest = copy.deepcopy(fold)
    rest.apply_all(story[cut:])
    assert rest.state == folded(iter(story)).state


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300),
    limit=st.integers(2, 16),
    gap=st.integers(1, 5),
)
def test_buckets_hold_every_point_whatever_the_width(values: list[float], limit: int, gap: int) -> None:
    series = Series(limit)
    for number, value in enumerate(values):
        series.add(number * gap, value)
    buckets = series.buckets()
    assert len(buckets) <= limit
    assert sum(bucket.count for bucket in buckets) == len(values)
    assert (series.lowest, series.highest) == (min(values), max(values))
    assert sum(b.mean * b.count for b in buckets) == pytest.approx(math.fsum(values), abs=1e-3)
    assert all(b.low <= b.mean + 1e-6 and b.mean <= b.high + 1e-6 for b in buckets)


@given(killed=st.integers(1, 200), resumed=st.integers(0, 200), limit=st.integers(4, 64))
def test_rewinding_and_repeating_the_same_points_changes_nothing(killed: int, resumed: int, limit: int) -> None:
    resumed = min(resumed, killed)
    whole, broken = Series(limit), Series(limit)
    for step in range(1, 201):
        whole.add(step, loss_at(step))
    for step in range(1, killed + 1):
        broken.add(step, loss_at(step))
    broken.rewind(resumed)
    for step in range(resumed + 1, 201):
        broken.add(step, loss_at(step))
    assert [without_mean(b) for b in broken.buckets()] == [without_mean(b) for b in whole.buckets()]
    assert [b.mean for b in broken.buckets()] == pytest.approx([b.mean for b in whole.buckets()])


def test_growth_stage_and_proof_are_in_the_state() -> None:
    proof = ev.ProofReport(passed=True, exact_claimed=True, generation_tokens=64, generation_identical=True)
    fold = Fold()
    fold.apply_all(
        [
            ev.Start(t=1.0, attempt=1, pid=7),
            ev.Stage(t=2.0, index=2, count=3, name="wide", task="full"),
            ev.Phase(t=2.0, name="growing"),
            ev.Growth(t=2.0, phase="planning"),
            ev.Growth(t=3.0, phase="writing", done_bytes=5, total_bytes=10, words="model-00001"),
        ]
    )
    state = fold.state
    assert (state.stage_index, state.stage_count, state.stage_name, state.stage_task) == (2, 3, "wide", "full")
    assert state.state is RunPhase.GROWING
    assert state.state.is_live
    assert state.growth is not None
    assert (state.growth.done_bytes, state.growth.total_bytes) == (5, 10)
    assert state.proof is None
    fold.apply(ev.ProofReady(t=4.0, proof=proof, model="output/model"))
    assert fold.state.proof is not None
    assert fold.state.proof.proof == proof
    fold.apply(ev.Growth(t=5.0, phase="planning"))
    assert fold.state.proof is None, "a second growth is not certified by the first one's proof"


def test_benchmarks_before_training_stay_however_many_follow() -> None:
    fold = Fold()
    for step in range(SCORE_LIMIT + 50):
        fold.apply(ev.BenchmarkScore(t=float(step), step=step, task="arithmetic", metric="acc", value=step / 10_000))
    kept = fold.state.findings.benchmarks
    assert len(kept) == SCORE_LIMIT
    assert kept[0].step == 0
    assert kept[-1].step == SCORE_LIMIT + 49
