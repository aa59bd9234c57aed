"""Choosing a longer window: fields, the live race with its heat map, the live search, readers, then the review."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from engine.context.factors import read_factors
from engine.jobs.spec import Task
from scaler_tui import line_process
from scaler_tui.app import ScalerApp
from scaler_tui.screens.context import ContextScreen
from scaler_tui.screens.race import RaceScreen
from scaler_tui.screens.review import ReviewScreen
from scaler_tui.screens.search import SearchScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets.heat_map import HeatMap
from scaler_tui.widgets.line_chart import LineChart
from tests.support.context_runs import RACE, SEARCH, first_lines, play
from tests.support.screen_host import until, visible
from tests.support.wizard_app import SIZES, known_machine, opened, press, type_text

LOOKS = [(SIZES[0], False), (SIZES[1], True), (SIZES[2], True)]
"""The smallest terminal in ASCII too: where both are short of room."""


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known_machine(monkeypatch)


def flat(app: ScalerApp) -> str:
    """The screen as one line."""
    return " ".join(visible(app).split())


async def to_window(app: ScalerApp, pilot: Any) -> ContextScreen:
    """The longer window of the demo model, 256 to 1,024, as answers lead to it."""
    app.wizard.restart(save=False)
    app.wizard.session.set_answer("goal", "long-documents")
    app.read_model("demo")
    await until(pilot, lambda: app.wizard.architecture is not None)
    app.choose_approach("context")
    await until(pilot, lambda: isinstance(app.screen, ContextScreen))
    screen = app.screen
    assert isinstance(screen, ContextScreen)
    await until(pilot, lambda: screen.facts is not None, seconds=30)
    return screen


async def to_race(app: ScalerApp, pilot: Any) -> RaceScreen:
    """... and on to the race, all of it measured."""
    await to_window(app, pilot)
    await press(pilot, "m")
    screen = app.screen
    assert isinstance(screen, RaceScreen)
    await until(pilot, lambda: screen.race.decided is not None and not screen.race.running)
    return screen


def fits(app: ScalerApp, size: tuple[int, int]) -> bool:
    """No line is longer than the terminal is wide."""
    return all(len(line) <= size[0] for line in visible(app).splitlines())


@pytest.mark.parametrize(("size", "unicode"), LOOKS)
async def test_length_method_training_and_readers_are_shown(size: tuple[int, int], unicode: bool) -> None:
    async with opened(size, policy=RenderPolicy(unicode=unicode)) as (app, pilot):
        await to_window(app, pilot)
        seen = ""
        for key in ("up", "down", "down"):
            await press(pilot, key)
            for _ in range(4):
                seen += " " + flat(app)
                assert fits(app, size)
                await press(pilot, "pagedown")
        for expected in (
            "1,024 tokens", "4 times the window of 256", "auto", "ntk-critical", "yarn", "longrope2", "PoSE",
            "mixed windows", "no training", "fits: ", "of RAM", "transformers 5", "vLLM", "llama.cpp", "exact",
        ):  # fmt: skip
            assert expected in seen, expected
        if not unicode:
            assert visible(app).isascii()


async def test_what_is_chosen_is_what_the_review_starts() -> None:
    async with opened() as (app, pilot):
        await to_window(app, pilot)
        await press(pilot, "8", "down", "2", "enter")
        review = app.screen
        assert isinstance(review, ReviewScreen)
        assert review.spec is not None
        context = review.spec.context
        assert (context.length, context.method, context.window) == (1024, "yarn", "pose")
        assert review.spec.data.max_length == 256, "PoSE trains inside the old window"
        assert "by yarn" in flat(app)
        assert "skipped positions" in flat(app)
        await press(pilot, "b", "4", "enter")
        review = app.screen
        assert isinstance(review, ReviewScreen)
        assert review.spec is not None
        assert review.spec.task is Task.EXTEND
        assert "no weight changes" in flat(app)
        assert "Fits?" in flat(app)


async def test_another_length_is_typed_and_one_that_is_no_longer_says_why() -> None:
    async with opened() as (app, pilot):
        screen = await to_window(app, pilot)
        await press(pilot, "t")
        await type_text(pilot, "2k")
        await press(pilot, "enter")
        assert screen.target == 2048
        assert "8 times the window" in flat(app)
        await press(pilot, "t")
        await type_text(pilot, "many")
        await press(pilot, "enter")
        assert screen.target == 2048
        await press(pilot, "t")
        await type_text(pilot, "128")
        await press(pilot, "enter")
        await until(pilot, lambda: screen.problem is not None)
        assert "256" in flat(app)
        await press(pilot, "enter")
        assert isinstance(app.screen, ContextScreen), "nothing can be reviewed"
        await press(pilot, "t")
        await type_text(pilot, "1k")
        await press(pilot, "enter")
        await until(pilot, lambda: screen.problem is None)
        await press(pilot, "t", "escape")
        assert isinstance(app.screen, ContextScreen)


async def test_a_method_that_cannot_be_chosen_is_passed_over_and_says_why() -> None:
    async with opened() as (app, pilot):
        screen = await to_window(app, pilot)
        assert screen.facts is not None
        dynamic = screen.facts.of("dynamic")
        assert dynamic is not None
        assert dynamic.why_not
        values: list[str] = []
        for _ in range(12):
            values.append(app.wizard.window.choice.method)
            await press(pilot, "right")
        assert "dynamic" not in values
        assert {"auto", "linear", "yarn", "llama3"} <= set(values)
        await press(pilot, "6")
        (note,) = app._notifications
        assert note.title == "dynamic cannot be chosen"
        assert note.message == dynamic.why_not


@pytest.mark.parametrize(("size", "unicode"), LOOKS)
async def test_the_race_shows_every_method_and_the_pointed_ones_heat_map(
    size: tuple[int, int], unicode: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, tmp_path, RACE)
    async with opened(size, policy=RenderPolicy(unicode=unicode)) as (app, pilot):
        screen = await to_race(app, pilot)
        assert screen.method == "ntk-critical", "the pointer is on the winner"
        star, full, none = ("★", "█", "·") if unicode else ("*", "#", ".")
        assert f"{star}ntk-critical" in visible(app)
        assert "ntk-critical answers 100% of" in flat(app)
        assert f"{full} 100" in visible(app)
        assert "depth" in visible(app)
        seen = ""
        for key in ("down", "up"):
            for _ in range(len(screen.race.contenders)):
                await press(pilot, key)
                seen += visible(app)
                assert fits(app, size)
        assert screen.method == "none"
        assert f"{none}   0" in visible(app), "the untouched model loses the far needles, said by a glyph and a figure"
        for expected in ("none", "linear", "+185 %", "17.87", "10 %", "+0.0 %", "dynamic", "llama3"):
            assert expected in seen, expected
        if not unicode:
            assert visible(app).isascii()


async def test_colour_only_repeats_what_figures_and_glyphs_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    play(monkeypatch, tmp_path, RACE)
    shown = []
    for color in (True, False):
        async with opened(policy=RenderPolicy(color=color)) as (app, pilot):
            await to_race(app, pilot)
            shown.append(visible(app).splitlines()[3:])
    assert shown[0] == shown[1]


async def test_taking_a_raced_method_brings_it_and_its_figures_to_the_choice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, tmp_path, RACE)
    async with opened() as (app, pilot):
        await to_race(app, pilot)
        await press(pilot, "up", "up")
        assert isinstance(app.screen, RaceScreen)
        assert app.screen.method == "linear"
        await press(pilot, "enter")
        assert app.wizard.window.choice.method == "linear"
        assert "needles 10 %" in flat(app)
        await press(pilot, "m", "w", "enter")
        assert app.wizard.window.choice.method == "ntk-critical"
        await press(pilot, "m", *["up"] * 12, "enter")
        assert isinstance(app.screen, RaceScreen), "the model as it is cannot be taken"


async def test_auto_takes_the_winner_so_that_nothing_is_measured_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, tmp_path, RACE)
    async with opened() as (app, pilot):
        await to_race(app, pilot)
        await press(pilot, "b")
        assert app.wizard.window.choice.method == "auto"
        assert "ntk-critical won" in flat(app)
        await press(pilot, "enter")
        review = app.screen
        assert isinstance(review, ReviewScreen)
        assert review.spec is not None
        assert review.spec.context.method == "ntk-critical"


async def test_a_race_is_left_running_stopped_and_gone_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    play(monkeypatch, tmp_path, first_lines(tmp_path, 6), waits=True)
    may_end, waited_in_vain, end = threading.Event(), threading.Event(), line_process._end

    def end_when_allowed(process: Any) -> None:
        """A process that takes its time to end."""
        if not may_end.wait(60):
            waited_in_vain.set()
        end(process)

    monkeypatch.setattr(line_process, "_end", end_when_allowed)
    async with opened() as (app, pilot):
        await to_window(app, pilot)
        await press(pilot, "m")
        screen = app.screen
        assert isinstance(screen, RaceScreen)
        await until(pilot, lambda: screen.race.measured >= 2)
        assert "Esc Stop" in flat(app)
        assert "measuring" in flat(app)
        await press(pilot, "b")
        assert isinstance(app.screen, ContextScreen)
        assert screen.race.running, "leaving the screen does not stop it"
        await press(pilot, "m")
        race = app.wizard.window.race(screen.key)
        await press(pilot, "escape")
        assert not waited_in_vain.is_set(), "no key waits for the process to end"
        assert race.running
        may_end.set()
        await until(pilot, lambda: not race.running)
        assert isinstance(app.screen, RaceScreen)
        assert race.error is None, "being stopped is no failure"
        assert race.measured >= 2, "what was measured stays"
        assert "stopped" in flat(app)
        play(monkeypatch, tmp_path, RACE)
        await press(pilot, "r")
        await until(pilot, lambda: race.decided is not None and not race.running)
        assert race.measured == 9
        await press(pilot, "escape")
        assert isinstance(app.screen, ContextScreen), "with nothing to stop, Escape goes back"


async def test_leaving_the_program_ends_what_measures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    play(monkeypatch, tmp_path, first_lines(tmp_path, 4), waits=True)
    async with opened() as (app, pilot):
        await to_window(app, pilot)
        await press(pilot, "m")
        screen = app.screen
        assert isinstance(screen, RaceScreen)
        await until(pilot, lambda: screen.race.rows)
        process = app._races[screen.key].process._process
        assert process is not None
        assert process.poll() is None
    assert process.wait(60) != 0


async def test_a_race_that_fails_says_what_and_what_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = tmp_path / "failing.jsonl"
    failing.write_text(
        '{"error": {"code": "x", "what": "No room.", "cause": "It is full.", "next_step": "Free some."}}\n'
    )
    play(monkeypatch, tmp_path, failing)
    async with opened() as (app, pilot):
        await to_window(app, pilot)
        await press(pilot, "m")
        await until(pilot, lambda: "No room." in flat(app))
        assert "It is full. Free some." in flat(app)
        assert "r Go on" in flat(app)


@pytest.mark.parametrize(("size", "unicode"), LOOKS)
async def test_the_search_plots_its_best_score_and_the_factors(
    size: tuple[int, int], unicode: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, tmp_path, SEARCH)
    async with opened(size, policy=RenderPolicy(unicode=unicode)) as (app, pilot):
        window = await to_window(app, pilot)
        await press(pilot, "s")
        screen = app.screen
        assert isinstance(screen, SearchScreen)
        await until(pilot, lambda: screen.race.found is not None and not screen.race.running)
        await pilot.pause(0.1)
        text = visible(app)
        assert "best score 0.3590" in text
        assert "divisor by pair 1.00 to 4.00" in text
        assert fits(app, size)
        score, factors = screen.query_one("#score-chart", LineChart), screen.query_one("#factor-chart", LineChart)
        assert score.picture.capacity == 40
        assert factors.picture.capacity == 15
        assert "evaluation 0" in text
        assert "pair 0" in text
        if size[1] >= 24:
            assert "the best it began with (llama3) had 0.3590" in flat(app)
            assert "Found: needles" in flat(app)
        if not unicode:
            assert text.isascii()
        await press(pilot, "enter")
        assert app.wizard.window.choice.method == "longrope2"
        await until(pilot, lambda: window.facts is not None and window.facts.of("longrope2").usable)  # type: ignore[union-attr]
        spec = app.wizard.spec_for("context")
        assert spec.context.method == "longrope2"
        assert read_factors(Path(spec.context.factors)).long == screen.race.divisors


async def test_nothing_is_sent_when_nothing_new_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    play(monkeypatch, tmp_path, RACE)
    async with opened() as (app, pilot):
        screen = await to_race(app, pilot)
        heat = screen.query_one(HeatMap)
        before = heat._shown
        screen.show_race()
        assert heat._shown is before
