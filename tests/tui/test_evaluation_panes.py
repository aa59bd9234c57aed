"""Continuation runs on the run screen: curves of every text, retention in words, recoveries at once, waiting, ranks."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.layout import JOURNAL
from scaler_tui import abilities_text
from scaler_tui.screens.run import RunScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets import evaluation_words
from scaler_tui.widgets.chart_raster import LINE_ROLES, ChartData, ChartLine, ChartMode, draw
from scaler_tui.widgets.line_chart import LineChart
from tests.support.continuation_runs import Continuation, retention_reports, spike_recovery, write_continuation
from tests.support.golden_runs import Golden, write_golden
from tests.support.screen_host import ScreenHost, until, visible
from tests.tui.test_line_chart import points, roles


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40)])
async def test_every_text_has_a_curve_with_its_letter_and_a_row_with_its_change(size: tuple[int, int]) -> None:
    screen = RunScreen(write_continuation())
    app = ScreenHost(screen)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: screen.snapshot is not None)
        await pilot.press("5")
        await until(pilot, lambda: "a web" in visible(app))
        text = visible(app)
        for expected in ("a web", "1.9120", "b code", "-25.1 %", "c general", "bits per byte"):
            assert expected in text
        picture = screen.query_one("#suite-chart", LineChart).picture
        for role in LINE_ROLES[:3]:
            assert roles(picture, role) > 5
        assert {"a", "b", "c"} <= set("".join(picture.lines))
        assert all(len(line) <= size[0] for line in text.splitlines())
        await pilot.press("e")
        await until(pilot, lambda: "change since before training" in visible(app))
        assert screen.query_one("#suite-chart", LineChart).picture.low <= -25


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_retention_says_in_words_and_figures_what_was_lost_first(size: tuple[int, int]) -> None:
    screen = RunScreen(write_continuation())
    app = ScreenHost(screen)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: screen.snapshot is not None)
        assert "!1" in visible(app)  # its tab counts what was lost
        await pilot.press("6")
        await until(pilot, lambda: "Arithmetic fell from 91 % to 85 %, significant." in visible(app))
        text = visible(app)
        assert text.index("Arithmetic fell") < text.index("Facts stayed")
        assert "91.3 % → 84.8 %, -6.5 points [-10.5, -2.5], 150 pairs" in text
        assert "more than 5 % on general stops the run." in text
        assert "88.2 ± 1.9 %  89.4 ± 3.1 %" in text
        await pilot.press("end")
        await until(pilot, lambda: "step 20: out of memory" in visible(app))
        assert "Micro-batches of 4 instead of 8" in visible(app)


async def test_a_recovery_is_seen_at_once_and_stays_in_the_log() -> None:
    run_dir = write_continuation(Continuation(recovery_at=0, memory_at=0))
    screen = RunScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: screen.snapshot is not None)
        assert "Recovered" not in visible(app)
        with JournalWriter(run_dir / JOURNAL) as journal:
            journal.write(spike_recovery(140, time.time()))
            await until(pilot, lambda: "Recovered from loss spike at step 140." in visible(app))
            text = " ".join(visible(app).replace("█", " ").split())
            assert "Back to step 122." in text
            assert "the learning rate is halved to 1.5e-04" in text
            assert "step 122 of 240" in text
            later = time.time() + evaluation_words.RECOVERY_SHOWN_SECONDS + 1
            journal.write(ev.Log(t=later, message="two minutes later"))
        await until(pilot, lambda: "Recovered" not in visible(app) and "1 recovery" in visible(app))
        await pilot.press("2")
        await until(pilot, lambda: "4.1 times the median" in visible(app))


async def test_a_broken_limit_is_said_while_the_run_works_and_when_it_ends() -> None:
    gate = "Arithmetic lost more than 5 points: the run stops at step 80."
    for outcome in ("", "finished"):
        screen = RunScreen(write_continuation(Continuation(gate=gate, recovery_at=0, memory_at=0, outcome=outcome)))
        app = ScreenHost(screen)
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda s=screen: s.snapshot is not None)
            assert gate in visible(app)


@pytest.mark.parametrize(("wait", "expected"), [(0.004, "0.3 %"), (0.2, "15.3 %  !")])
async def test_a_job_that_streams_shows_how_long_it_waits_for_data(wait: float, expected: str) -> None:
    screen = RunScreen(write_continuation(Continuation(wait_seconds=wait)))
    app = ScreenHost(screen)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: screen.snapshot is not None)
        assert f"data wait      {expected}" in visible(app)
        assert "epoch" not in visible(app)


async def test_ranks_are_marked_and_listed_with_their_hosts() -> None:
    screen = RunScreen(write_continuation(Continuation(ranks=4)))
    app = ScreenHost(screen)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: screen.snapshot is not None)
        assert "4 ranks" in visible(app)
        await pilot.press("4")
        await until(pilot, lambda: "4 processes, ddp over gloo" in visible(app))
        assert "0 ada; 1 ada; 2 ada; 3 ada" in visible(app)
        for expected in ("web 70 %, /data/web/*.jsonl.zst", "code 30 %", "bits per byte of web, code, general"):
            assert expected in visible(app)


async def test_a_run_that_measures_none_of_it_has_no_such_tabs_and_its_keys_do_nothing() -> None:
    screen = RunScreen(write_golden(Golden()))
    app = ScreenHost(screen)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: screen.snapshot is not None)
        await pilot.press("5", "6")
        await pilot.pause()
        assert screen.pane == "overview"
        assert "Retention" not in visible(app)


async def test_nothing_is_sent_while_nothing_changes_and_little_when_a_text_is_measured() -> None:
    run_dir = write_continuation(Continuation(recovery_at=0, memory_at=0))
    screen = RunScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: screen.snapshot is not None)
        await pilot.press("5")
        await until(pilot, lambda: "a web" in visible(app))
        chart = screen.query_one("#suite-chart", LineChart)
        drawn, repainted = chart.picture, []
        chart.refresh = lambda *regions, **_: repainted.extend(regions) or chart  # type: ignore[method-assign]
        await screen.show_snapshot()
        assert repainted == []
        with JournalWriter(run_dir / JOURNAL) as journal:
            journal.write(
                ev.SuiteScore(
                    t=time.time(), step=160, suite="web", nats_per_token=1.0, bits_per_byte=1.63, tokens=1, text_bytes=1
                )
            )
        await until(pilot, lambda: chart.picture != drawn)
        assert 0 < sum(region.area for region in repainted) < chart.size.area / 6


async def test_without_unicode_the_new_panes_are_ascii_and_their_curves_letters() -> None:
    screen = RunScreen(write_continuation())
    app = ScreenHost(screen, RenderPolicy(unicode=False))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: screen.snapshot is not None)
        for key in ("5", "6"):
            await pilot.press(key)
            await pilot.pause()
            assert visible(app).isascii(), [c for c in visible(app) if ord(c) > 127]
        assert "aaa" in "".join(screen.query_one("#suite-chart", LineChart).picture.lines)


def test_lines_that_cross_keep_each_others_dots_and_letters_never_hide_each_other() -> None:
    up, down = points([1.0, 2.0, 3.0, 4.0]), points([4.0, 3.0, 2.0, 1.0])
    picture = draw(ChartData(lines=(ChartLine("a", up), ChartLine("b", down))), 40, 12, ChartMode.BRAILLE)
    assert roles(picture, LINE_ROLES[0]) > 5
    assert roles(picture, LINE_ROLES[1]) > 5
    same = draw(ChartData(lines=(ChartLine("a", up), ChartLine("b", up))), 40, 12, ChartMode.BRAILLE)
    assert {"a", "b"} <= set("".join(same.lines))


@given(st.integers(30, 140), st.integers(2, 30), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_words_fit_their_width(width: int, step: int, unicode: bool) -> None:
    for line in evaluation_words.report_lines(retention_reports(step * 8), width, unicode=unicode):
        assert line.cell_length <= width or " " not in line.plain.strip()
    assert abilities_text.ordered(retention_reports(240))[0].verdict == "lost"


def test_scores_of_other_metrics_than_shares_are_not_called_per_cent() -> None:
    assert abilities_text.score_text("word_perplexity", 3.21, None, unicode=True) == "3.210"
    assert abilities_text.score_text("acc_norm", 0.5, 0.02, unicode=False) == "50.0 +- 2.0 %"
