"""Figures and sentences of the run screen as pure text: nothing is cut, GPUs collapse, promises are judged."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.jobs.events import GpuMeter
from engine.jobs.spec import CostSection, JobSpec, PredictionSection
from engine.jobs.state import RunPhase, RunState
from scaler_tui.widgets import run_figures
from scaler_tui.widgets.gpu_meters import meter_lines
from scaler_tui.widgets.log_pane import matching, wrapped
from scaler_tui.widgets.progress_line import progress_line
from scaler_tui.widgets.status_line import STATE_LOOKS, clip, state_words

GIB = 1024**3


def gpus(count: int) -> tuple[GpuMeter, ...]:
    return tuple(GpuMeter(i, (10 + i) * GIB, 24 * GIB, 90.0 + i, 60.0 + i, 300.0 + i) for i in range(count))


def metered(count: int) -> RunState:
    return RunState(cpu_percent=150.0, ram_bytes=2 * GIB, ram_total_bytes=16 * GIB, gpus=gpus(count))


@given(st.integers(10, 130), st.integers(0, 2_000_000), st.integers(0, 2_000_000), st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_progress_line_fits_and_drops_whole_figures_only(width: int, step: int, total: int, unicode: bool) -> None:
    state = RunState(state=RunPhase.RUNNING, phase="training", step=step, total_steps=total, eta_seconds=4321.0)
    line = progress_line(state, width, unicode=unicode)
    if line.cell_length > width:  # even the step alone does not fit; it is still whole
        assert "left" not in line.plain
    for word in re.findall(r"[\d,]+", line.plain):
        share = f"{int(min(step / total, 1) * 100)}" if total else ""
        assert word in (f"{step:,}", f"{total:,}", share, "72")


def test_every_state_has_a_word_and_a_glyph_of_its_own() -> None:
    assert set(STATE_LOOKS) == set(RunPhase)
    for phase in RunPhase:
        assert state_words(phase, unicode=True).plain.endswith(phase.value)
        assert state_words(phase, unicode=False).plain.isascii()
    assert len({look.glyph for look in STATE_LOOKS.values()}) >= 10


@pytest.mark.parametrize(
    ("count", "rows", "lines"), [(0, 4, 2), (1, 4, 4), (1, 3, 3), (2, 6, 6), (2, 4, 4), (8, 4, 4), (8, 12, 10)]
)
def test_meters_shrink_with_the_number_of_gpus_and_the_room(count: int, rows: int, lines: int) -> None:
    assert len(meter_lines(metered(count), 44, rows, unicode=True, cores=4)) == lines


def test_many_gpus_become_a_range_and_their_memory_is_never_added_up() -> None:
    text = "\n".join(line.plain for line in meter_lines(metered(8), 60, 4, unicode=True, cores=4))
    assert "90–97 % (median 94)" in text
    assert "17.0 of 24.0 GiB  fullest: GPU7" in text
    assert "192" not in text


@pytest.mark.parametrize("width", [26, 30, 44, 60, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 8])
def test_meters_fit_their_width(width: int, count: int) -> None:
    for line in meter_lines(metered(count), width, 8, unicode=True, cores=4):
        assert line.cell_length <= width


def promised(measured_bytes: int, seconds: float = 100.0) -> list[run_figures.Promise]:
    spec = JobSpec(
        prediction=PredictionSection(
            memory_bytes_low=8 * GIB, memory_bytes_likely=9 * GIB, memory_bytes_high=10 * GIB, seconds_low=50,
            seconds_likely=80, seconds_high=120, tokens_per_second=1000.0,
        )
    )  # fmt: skip
    state = RunState(
        state=RunPhase.FINISHED, peak_bytes=measured_bytes, tokens_per_second=500.0, working_seconds=seconds
    )
    return run_figures.promises(spec, state)


@pytest.mark.parametrize(
    ("measured", "words"),
    [(9 * GIB, "as predicted"), (12 * GIB, "20 % above range"), (4 * GIB, "50 % below range")],
)
def test_memory_is_judged_against_its_range(measured: int, words: str) -> None:
    assert promised(measured)[0].verdict == words


def test_half_the_promised_speed_is_a_warning() -> None:
    speed = promised(9 * GIB)[1]
    assert (speed.verdict, speed.tone) == ("50 % of predicted", "warn")


@pytest.mark.parametrize(
    ("ended", "step", "verdict"),
    [
        (RunPhase.STOPPED, 0, ""),
        (RunPhase.PAUSED, 100, ""),
        (RunPhase.FAILED, 199, ""),
        (RunPhase.LOST, 100, ""),
        (RunPhase.FINISHED, 100, ""),  # a rule of its own stopped it
        (RunPhase.FINISHED, 200, "50 % below range"),
    ],
)
def test_only_the_time_of_the_whole_job_is_held_against_the_promise(ended: RunPhase, step: int, verdict: str) -> None:
    spec = JobSpec(prediction=PredictionSection(seconds_low=50, seconds_likely=80, seconds_high=120))
    time = run_figures.promises(spec, RunState(state=ended, step=step, total_steps=200, working_seconds=25.0))[2]
    assert (time.measured, time.verdict) == ("25 s", verdict)


def test_a_spec_without_prediction_says_so() -> None:
    rows = run_figures.promises(JobSpec(), RunState())
    assert {row.predicted for row in rows} == {"not predicted"}
    assert {row.verdict for row in rows} == {""}


@pytest.mark.parametrize("width", [30, 44, 56, 78, 118])
def test_promises_take_two_lines_rather_than_lose_a_verdict(width: int) -> None:
    rows = promised(12 * GIB)
    text = run_figures.promise_lines(rows, width, unicode=True).plain
    assert text.count("\n") + 1 in (3, 6)
    for row in rows:
        assert row.verdict in text
        assert row.measured in text


def test_money_is_price_times_working_hours() -> None:
    spec = JobSpec(cost=CostSection(usd_per_hour=2.0, budget_usd=10.0))
    assert run_figures.spent_text(spec, RunState(working_seconds=1800.0)) == "$1.00 of $10.00 so far"
    assert run_figures.spent_text(JobSpec(), RunState(working_seconds=1800.0)) == ""


def test_log_lines_match_by_every_word_and_by_level() -> None:
    lines = [
        (1.0, "info", "Checkpoint at step 40"),
        (2.0, "warning", "step 41 was slow"),
        (3.0, "error", "step 42 died"),
    ]
    assert [line[0] for line in matching(lines, "all", "STEP 4")] == [1.0, 2.0, 3.0]
    assert [line[0] for line in matching(lines, "all", "checkpoint 40")] == [1.0]
    assert [line[0] for line in matching(lines, "warnings", "")] == [2.0, 3.0]
    assert [line[0] for line in matching(lines, "errors", "step")] == [3.0]


@given(st.text(alphabet=st.characters(codec="ascii", categories=("L", "N")), max_size=200), st.integers(8, 60))
@settings(max_examples=100, deadline=None)
def test_wrapping_loses_no_character(message: str, width: int) -> None:
    lines = wrapped(message, width)
    assert "".join(lines) == message
    assert all(len(line) <= width for line in lines)


def test_clip_marks_what_it_left_out() -> None:
    assert clip("abcdef", 4) == "abc…"
    assert clip("abcdef", 4, unicode=False) == "abc~"
    assert clip("abc", 4) == "abc"
    assert clip("abc", 0) == ""


@pytest.mark.parametrize(("measured", "tone"), [(400.0, "warn"), (500.0, "good"), (2000.0, "good")])
def test_speed_is_promised_as_a_range_and_judged_by_its_lower_end(measured: float, tone: str) -> None:
    promise = PredictionSection(tokens_per_second=1000.0, tokens_per_second_low=450.0, tokens_per_second_high=1500.0)
    speed = run_figures.promises(JobSpec(prediction=promise), RunState(tokens_per_second=measured))[1]
    assert speed.predicted == "1,000 tokens/s (450–1,500)"
    assert speed.tone == tone
