"""The list of runs: states in words, nothing cut, Enter opens, it refreshes itself."""

from __future__ import annotations

import time

import pytest

from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.layout import JOURNAL
from scaler_tui.screens.run import RunScreen
from scaler_tui.screens.runs import RunsScreen
from scaler_tui.terminal import RenderPolicy
from tests.support.golden_runs import Golden, write_golden
from tests.support.screen_host import ScreenHost, until, visible


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40)])
async def test_rows_say_state_step_and_loss_in_full(size: tuple[int, int]) -> None:
    write_golden(
        Golden(steps=1200, total_steps=12_000, outcome="paused", name="a long name that needs to be shortened")
    )
    write_golden(Golden(outcome="failed", name="too-hot"))
    write_golden(Golden())
    screen = RunsScreen()
    app = ScreenHost(screen)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: screen.runs is not None)
        text = visible(app)
        for expected in ("‖ paused", "✗ failed", "● running", "1,200/12,000", "84/120", "0.5366", "too-hot", "now"):
            assert expected in text
        assert "3 on this machine, 1 working" in text
        assert all(len(line) <= size[0] for line in text.splitlines())


async def test_without_runs_it_says_how_to_start() -> None:
    screen = RunsScreen()
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: screen.runs is not None)
        assert "No runs yet." in visible(app)
        assert "scaler-wizard demo" in visible(app)


async def test_enter_opens_the_run_under_the_pointer_and_back_returns() -> None:
    older = write_golden(Golden(name="older"), now=time.time() - 100)
    newer = write_golden(Golden(name="newer"))
    screen = RunsScreen()
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: screen.runs is not None)
        assert screen.runs is not None
        second = screen.runs[1].directory
        assert second in (older, newer)
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        assert isinstance(app.screen, RunScreen)
        assert app.screen.run_dir == second
        assert screen.feed is None  # nobody looks at the list now
        await pilot.press("b")
        await until(pilot, lambda: app.screen is screen and screen.feed is not None)
        assert screen.selected is not None
        assert screen.selected.directory == second


async def test_the_list_follows_a_run_and_keeps_the_pointer() -> None:
    run_dir = write_golden(Golden(name="moving"))
    write_golden(Golden(outcome="paused", name="resting"))
    screen = RunsScreen()
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: screen.runs is not None)
        await pilot.press("down")
        chosen = screen.selected
        assert chosen is not None
        with JournalWriter(run_dir / JOURNAL) as journal:
            journal.write(
                ev.Step(t=time.time(), step=85, loss=0.1234, learning_rate=1e-5, grad_norm=1.0, tokens=9,
                        trained_tokens=9, step_seconds=0.5)
            )  # fmt: skip
        await until(pilot, lambda: "85/120" in visible(app) and "0.4902" in visible(app))
        write_golden(Golden(name="newcomer"))
        await until(pilot, lambda: "newcomer" in visible(app))
        assert screen.selected is not None
        assert screen.selected.id == chosen.id


async def test_trouble_is_explained_under_the_list() -> None:
    write_golden(Golden(outcome="failed", name="too-hot"))
    screen = RunsScreen()
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: screen.runs is not None)
        assert "The loss is not a number since step 84." in visible(app)
        assert "Next: Resume with half the learning rate." in visible(app)


async def test_a_damaged_run_directory_is_a_row_not_a_crash() -> None:
    run_dir = write_golden(Golden())
    (run_dir / "run.json").write_text("{")
    screen = RunsScreen()
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: screen.runs is not None)
        assert "damaged" in visible(app)


async def test_without_unicode_every_character_is_ascii() -> None:
    for outcome in ("", "paused", "failed", "stopped", "killed"):
        write_golden(Golden(outcome=outcome, name="x" * 60))
    screen = RunsScreen()
    app = ScreenHost(screen, RenderPolicy(unicode=False))
    async with app.run_test(size=(60, 20)) as pilot:
        await until(pilot, lambda: screen.runs is not None)
        assert visible(app).isascii()
