"""The run screen over recorded journals: what it says in every state, at every size, and what its keys ask for."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from textual.widgets import Input

from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.layout import CONTROL, JOURNAL, RUNNER_JOURNAL
from engine.jobs.state import RunPhase
from scaler_tui.screens.card import CardScreen
from scaler_tui.screens.problem import ConfirmScreen
from scaler_tui.screens.run import RunScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets.line_chart import LineChart
from scaler_tui.widgets.log_pane import LogPane
from tests.support.golden_runs import Golden, write_golden
from tests.support.screen_host import ScreenHost, until, visible

SIZES = [(60, 20), (80, 24), (120, 40)]


def shown(screen: RunScreen) -> bool:
    return screen.snapshot is not None


@pytest.mark.parametrize("size", SIZES)
async def test_a_live_run_shows_phase_progress_curve_and_meters_at_every_size(size: tuple[int, int]) -> None:
    screen = RunScreen(write_golden(Golden(gpus=1)))
    app = ScreenHost(screen)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: shown(screen))
        text = visible(app)
        for expected in (
            "running",
            "step 84 of 120",
            "70 %",
            "left",
            "loss 0.",
            "held-out 0.",
            "VRAM",
            "19.2 of 24.0 GiB",
        ):
            assert expected in text
        assert "tokens/s" in text
        assert screen.query_one(LineChart).picture.capacity == 120
        assert all(len(line) <= size[0] for line in text.splitlines())


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_promises_stand_beside_what_was_measured(size: tuple[int, int]) -> None:
    screen = RunScreen(write_golden(Golden()))
    app = ScreenHost(screen)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: shown(screen))
        text = visible(app)
        for expected in ("1.10 GiB (922 MiB–1.40 GiB)", "1.22 GiB RAM", "✓ as predicted", "1,650 tokens/s"):
            assert expected in text


async def test_promises_are_in_the_details_where_the_overview_is_too_small() -> None:
    screen = RunScreen(write_golden(Golden()))
    app = ScreenHost(screen)
    async with app.run_test(size=(60, 20)) as pilot:
        await until(pilot, lambda: shown(screen))
        assert "1.10 GiB" not in visible(app)
        await pilot.press("4")
        await until(pilot, lambda: "1.10 GiB (922 MiB–1.40 GiB)" in visible(app))


async def test_digits_switch_the_panes() -> None:
    screen = RunScreen(write_golden(Golden()))
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        for key, expected in (
            ("2", "2 rows were cut at 256 tokens."),
            ("3", "They trade salt and river glass."),
            ("4", "rank 16, alpha 32"),
            ("1", "Predicted → measured"),
        ):
            await pilot.press(key)
            await until(pilot, lambda e=expected: e in visible(app))


async def test_samples_show_before_now_and_what_was_expected() -> None:
    screen = RunScreen(write_golden(Golden()))
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        await pilot.press("3")
        await until(pilot, lambda: "as expected" in visible(app))
        text = visible(app)
        assert "I do not know that." in text
        assert "now, step 80" in text
        assert "✗ not as expected" in text
        assert "Aye, open till the third bell." in text


@pytest.mark.parametrize(("width", "side_by_side"), [(80, False), (120, True)])
async def test_samples_stand_side_by_side_only_where_there_is_room(width: int, side_by_side: bool) -> None:
    screen = RunScreen(write_golden(Golden()))
    app = ScreenHost(screen)
    async with app.run_test(size=(width, 30)) as pilot:
        await until(pilot, lambda: shown(screen))
        await pilot.press("3")
        await until(pilot, lambda: "as expected" in visible(app))
        together = any("I do not know that." in line and "salt and river" in line for line in visible(app).splitlines())
        assert together is side_by_side


async def test_the_log_is_filtered_by_words_and_level() -> None:
    screen = RunScreen(write_golden(Golden()))
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        await pilot.press("slash")
        await until(pilot, lambda: isinstance(app.focused, Input))
        await pilot.press(*"checkpoint 40")
        await until(pilot, lambda: "1 of 12 lines" in visible(app))
        assert "Checkpoint at step 40" in visible(app)
        assert screen.snapshot is not None  # p, r, c, s went into the field, not to the run
        assert screen.asked == ""
        await pilot.press("escape")
        await until(pilot, lambda: "12 lines" in visible(app) and "of 12 lines" not in visible(app))
        await pilot.press("l")
        await until(pilot, lambda: "level: warnings" in visible(app))
        assert "! 2 rows were cut" in visible(app)
        assert "Checkpoint at" not in visible(app)


async def test_the_log_follows_until_one_scrolls_back() -> None:
    run_dir = write_golden(Golden(warnings=60))
    screen = RunScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        await pilot.press("2")
        await until(pilot, lambda: "Checkpoint at step 80" in visible(app))
        with JournalWriter(run_dir / JOURNAL) as journal:
            journal.write(ev.Log(t=time.time(), message="the newest line"))
            await until(pilot, lambda: "the newest line" in visible(app))
            await pilot.press("home")
            await until(pilot, lambda: "Worker 1 started" in visible(app))
            journal.write(ev.Log(t=time.time(), message="one more"))
            pane = screen.query_one(LogPane)
            await until(pilot, lambda: any(line[2] == "one more" for line in pane._all))
            assert "Worker 1 started" in visible(app)


@pytest.mark.parametrize(
    ("golden", "state", "expected"),
    [
        (Golden(outcome="paused"), RunPhase.PAUSED, ("‖ paused", "nothing is lost", "r resumes from step 80.")),
        (
            Golden(outcome="failed"),
            RunPhase.FAILED,
            ("✗ failed", "not a number since step 84", "Cause: The learning rate"),
        ),
        (
            Golden(outcome="killed"),
            RunPhase.FAILED,
            ("killed (signal 9)", "Cause: The system ran out of memory", "r resumes"),
        ),
        (Golden(outcome="stopped"), RunPhase.STOPPED, ("■ stopped", "the adapter is saved", "o shows the card")),
        (Golden(steps=120, outcome="finished"), RunPhase.FINISHED, ("✓ finished", "o shows what it changed")),
    ],
)
async def test_an_end_is_explained_with_its_next_step(
    golden: Golden, state: RunPhase, expected: tuple[str, ...]
) -> None:
    screen = RunScreen(write_golden(golden))
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        assert screen.snapshot is not None
        assert screen.snapshot.state.state is state
        for text in expected:
            assert text in visible(app)


async def test_a_run_whose_processes_vanished_is_lost_and_says_so() -> None:
    run_dir = write_golden(Golden())
    with JournalWriter(run_dir / RUNNER_JOURNAL) as runner:
        runner.write(ev.RunnerStart(t=time.time(), pid=2**22 + 1, process_start=1.0, boot_id=_boot_id()))
    screen = RunScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        text = visible(app)
        assert "? lost" in text
        assert "Cause: " in text
        assert "r resumes from step 80." in text


def _boot_id() -> str:
    from engine.jobs.liveness import current_boot_id

    return current_boot_id()


async def test_pause_is_requested_and_shown_as_pending_until_the_worker_answers() -> None:
    run_dir = write_golden(Golden())
    screen = RunScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        await pilot.press("p")
        await until(pilot, lambda: "Pause requested: waits for the step to finish" in visible(app))
        await until(pilot, lambda: (run_dir / CONTROL / "pause").exists())
        with JournalWriter(run_dir / JOURNAL) as journal:
            journal.write(ev.Control(t=time.time(), command="pause"))
            await until(pilot, lambda: screen.asked == "")
            assert "Pause requested" in visible(app)
            journal.write(ev.End(t=time.time(), outcome="paused", step=84))
        await until(pilot, lambda: "‖ paused" in visible(app))
        assert "Pause requested" not in visible(app)
        assert "r Resume" in visible(app)


async def test_checkpoint_now_is_requested() -> None:
    run_dir = write_golden(Golden())
    screen = RunScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        await pilot.press("c")
        await until(pilot, lambda: (run_dir / CONTROL / "checkpoint").exists())
        with JournalWriter(run_dir / JOURNAL) as journal:
            journal.write(ev.Control(t=time.time(), command="checkpoint"))
            journal.write(ev.Checkpoint(t=time.time(), step=84, path="checkpoints/step-00000084", size_bytes=1))
        await until(pilot, lambda: "Checkpoint requested" not in visible(app) and screen.asked == "")


async def test_stop_asks_first_and_no_means_no() -> None:
    run_dir = write_golden(Golden())
    screen = RunScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("n")
        await until(pilot, lambda: app.screen is screen)
        assert not (run_dir / CONTROL / "stop").exists()
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("y")
        await until(pilot, lambda: (run_dir / CONTROL / "stop").exists())
        assert screen.asked == "stop"


async def test_a_refused_request_is_explained_and_no_longer_pending() -> None:
    run_dir = write_golden(Golden())
    screen = RunScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        control = run_dir / CONTROL
        control.rmdir()
        control.write_text("not a folder")
        await pilot.press("p")
        await until(pilot, lambda: app.screen is not screen)
        assert "pause" in visible(app)
        assert screen.asked == ""


@pytest.mark.parametrize("key", ["b", "escape", "backspace"])
async def test_back_leaves_the_screen_ends_the_feed_and_says_that_the_run_continues(key: str) -> None:
    run_dir = write_golden(Golden())
    screen = RunScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        feed = screen.feed
        assert feed is not None
        await pilot.press(key)
        await until(pilot, lambda: app.screen is not screen and not feed.is_alive)
        assert [str(note.message) for note in app._notifications] == [
            f"The run continues. Re-attach: scaler-wizard attach {run_dir.name}"
        ]


async def test_keys_that_make_no_sense_now_do_nothing() -> None:
    screen = RunScreen(write_golden(Golden(outcome="failed")))
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        for key in ("p", "c", "s", "o"):
            await pilot.press(key)
        await pilot.pause()
        assert app.screen is screen
        assert screen.asked == ""


async def test_the_card_opens_when_it_is_there() -> None:
    screen = RunScreen(write_golden(Golden(steps=120, outcome="finished")))
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, CardScreen))


async def test_money_is_shown_for_a_rented_machine_only() -> None:
    for golden, expected in ((Golden(usd_per_hour=36.0), True), (Golden(), False)):
        screen = RunScreen(write_golden(golden))
        app = ScreenHost(screen)
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda s=screen: shown(s))
            assert ("of $5.00 so far" in visible(app)) is expected
            assert ("$0.6" in visible(app)) is expected  # about 64 s at $36 an hour


@pytest.mark.parametrize("size", SIZES)
async def test_without_unicode_every_character_is_ascii(size: tuple[int, int]) -> None:
    screen = RunScreen(write_golden(Golden(gpus=8)))
    app = ScreenHost(screen, RenderPolicy(unicode=False))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: shown(screen))
        for key in ("1", "2", "3", "4"):
            await pilot.press(key)
            await pilot.pause()
            assert visible(app).isascii(), [c for c in visible(app) if ord(c) > 127]


async def test_live_resizes_keep_everything_in_place() -> None:
    screen = RunScreen(write_golden(Golden(gpus=2)))
    app = ScreenHost(screen)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: shown(screen))
        for width, height in ((60, 20), (80, 24), (40, 12), (120, 40), (100, 30)):
            await pilot.resize_terminal(width, height)
            await until(pilot, lambda w=width: app.size.width == w)
            await until(pilot, lambda w=width: max(map(len, visible(app).splitlines())) <= w)
            assert "running" in visible(app)


async def test_an_empty_run_directory_waits_for_its_first_step(tmp_path: Path) -> None:
    run_dir = write_golden(Golden(steps=0, samples=False))
    for name in (JOURNAL, RUNNER_JOURNAL):
        (run_dir / name).unlink()
    screen = RunScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        assert "The curve appears after the first step." in visible(app)
        assert "queued" in visible(app)


async def test_a_broken_spec_does_not_keep_the_run_from_being_watched() -> None:
    run_dir = write_golden(Golden())
    (run_dir / "spec.toml").write_text("version = = 1")
    screen = RunScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        assert "step 84 of 120" in visible(app)
        assert "spec.toml" in visible(app)


async def test_a_resumed_run_shows_its_attempt() -> None:
    screen = RunScreen(write_golden(Golden(attempts=3)))
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        assert "attempt 3" in visible(app)


async def test_resume_starts_a_real_runner_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.fake_worker import worker_command

    monkeypatch.setenv("SCALER_WIZARD_WORKER", worker_command())
    monkeypatch.setenv("FAKE_STEPS", "30")
    run_dir = write_golden(Golden(steps=0, samples=False, outcome="failed", eval_every=0))
    screen = RunScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: shown(screen))
        await pilot.press("r")
        await until(pilot, lambda: "Resuming" in visible(app) or "failed" not in visible(app))
        await until(pilot, lambda: "✓ finished" in visible(app), seconds=60)
        assert "step 30 of 30" in visible(app)
    assert screen.snapshot is not None
    assert screen.snapshot.state.runner_pid != os.getpid()
