"""The app as a whole: leaving, tiny terminals, the crash boundary's guard, what-if from the command line."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import pytest
from textual.app import App

from engine.errors import EngineError
from scaler_tui.app import Start
from scaler_tui.crash_boundary import CrashBoundary
from scaler_tui.screens.problem import ConfirmScreen, ProblemScreen, TooSmallScreen
from tests.support.screen_host import until, visible
from tests.support.wizard_app import known_machine, opened, press, to_questions


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known_machine(monkeypatch)


def test_the_private_method_the_crash_boundary_replaces_is_the_one_it_was_written_for() -> None:
    method = App._handle_exception
    assert list(inspect.signature(method).parameters) == ["self", "error"]
    assert hashlib.sha256(inspect.getsource(method).encode()).hexdigest() == HANDLE_EXCEPTION_SHA256
    assert CrashBoundary._handle_exception is not method


HANDLE_EXCEPTION_SHA256 = "baea2e7f88e7ac52e1f66886fe613f74b201a8857a670fc06306dded15d37bee"


async def test_ctrl_c_asks_once_and_then_leaves() -> None:
    async with opened() as (app, pilot):
        await press(pilot, "ctrl+c")
        assert isinstance(app.screen, ConfirmScreen)
        await press(pilot, "enter")
        assert not isinstance(app.screen, ConfirmScreen), "Enter is no"
        await press(pilot, "ctrl+c", "ctrl+c")
        assert app._exit


async def test_leaving_half_way_says_that_the_answers_are_kept() -> None:
    async with opened() as (app, pilot):
        await to_questions(app, pilot)
        await press(pilot, "1", "q")
        assert app.farewell == ["Your answers are kept. Go on: scaler-wizard"]


@pytest.mark.parametrize("tiny", [(20, 5), (39, 24), (80, 11), (1, 1)])
async def test_a_tiny_terminal_shows_one_line_and_recovers(tiny: tuple[int, int]) -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await pilot.resize_terminal(*tiny)
        await until(pilot, lambda: isinstance(app.screen, TooSmallScreen))
        if tiny[0] >= 20:
            assert visible(app).split("\n")[0].strip() == "Need 40x12. q leaves"
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: app.screen is screen)
        assert "Which model do you want to start from?" in visible(app)


async def test_a_dialog_over_the_tiny_terminal_does_not_leave_it_behind() -> None:
    async with opened() as (app, pilot):
        await pilot.resize_terminal(20, 5)
        await until(pilot, lambda: isinstance(app.screen, TooSmallScreen))
        app.show_error(EngineError("test", "Something happened."))
        await until(pilot, lambda: isinstance(app.screen, ProblemScreen))
        await pilot.resize_terminal(80, 24)
        await press(pilot, "enter")
        await until(pilot, lambda: "Plan something new" in visible(app))


async def test_starting_tiny_shows_the_line_too() -> None:
    async with opened((20, 5)) as (app, pilot):
        await until(pilot, lambda: "Need 40x12" in visible(app))
        await pilot.resize_terminal(60, 20)
        await until(pilot, lambda: "Plan something new" in visible(app))


async def test_a_what_if_on_the_command_line_outlives_a_new_start_of_the_questions() -> None:
    async with opened(start=Start(gpu="RTX 4090")) as (app, pilot):
        await until(pilot, lambda: app.wizard.machine is not None and app.wizard.machine.simulated)
        await to_questions(app, pilot)
        assert app.wizard.machine is not None
        assert app.wizard.machine.simulated
        assert app.wizard.session.value("card") == "RTX 4090"
        assert "SIM" in visible(app).splitlines()[0]


async def test_a_card_nobody_knows_on_the_command_line_is_a_dialog_not_a_crash() -> None:
    async with opened(start=Start(gpu="RTX 9999 Ultra")) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ProblemScreen))
        await press(pilot, "enter")
        assert app.wizard.machine is not None
        assert not app.wizard.machine.simulated


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40)])
async def test_a_problem_says_what_cause_and_next_step_and_can_be_saved(size: tuple[int, int], own_home: Any) -> None:
    error = EngineError("a.code", "It broke [here].", cause="A [bold]reason[/].", next_step="Do that.")
    async with opened(size) as (app, pilot):
        app.show_error(error)
        await until(pilot, lambda: isinstance(app.screen, ProblemScreen))
        for text in ("It broke [here].", "Cause: A [bold]reason[/].", "Next: Do that."):
            assert text in visible(app)
        await press(pilot, "s")
        saved = next(own_home.rglob("last-problem.txt"))
        assert "a.code" in saved.read_text()
