"""Questions: every branch, back and change, keys in and out of the field, models that cannot be read."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from textual.widgets import Input

import scaler_tui.app as app_module
from engine.errors import EngineError
from scaler_tui.feeds.startup import StartupNews
from scaler_tui.feeds.startup import read_model as really_read_model
from scaler_tui.screens.matrix import MatrixScreen
from scaler_tui.screens.problem import TooSmallScreen
from scaler_tui.screens.question import QuestionScreen
from scaler_tui.widgets.choice_list import ChoiceList
from scaler_tui.widgets.matrix_table import MatrixTable
from scaler_tui.widgets.question_lines import share_lines
from tests.support.screen_host import until, visible
from tests.support.wizard_app import (
    SIZES,
    answer,
    known_machine,
    opened,
    press,
    rows_file,
    to_questions,
    type_text,
)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known_machine(monkeypatch)


def flat(app: object) -> str:
    """The screen as one line, so that wrapping does not matter."""
    return " ".join(visible(app).split())  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
async def test_every_question_of_every_branch_fits_its_size(size: tuple[int, int]) -> None:
    branches = [
        {"goal": "research", "hardware": "rented"},
        {"goal": "long-documents", "hardware": "own"},
        {"data": "", "hardware": "this-rented"},
    ]
    async with opened(size) as (app, pilot):
        for branch in branches:
            screen = await to_questions(app, pilot)
            session, seen = app.wizard.session, []
            while not session.finished:
                question = session.current
                seen.append(question.id)
                text = visible(app)
                step, of = session.position()
                assert f"step {step} of {of}" in text
                assert all(len(line) <= size[0] for line in text.splitlines())
                for option in question.options:
                    assert option.label in text, f"{question.id}: {option.label} is not visible at {size}"
                assert "Fits?" in text, f"no row of the matrix beside {question.id} at {size}"
                screen._answer(branch.get(question.id, session.value(question.id)))
                await pilot.pause()
            assert seen == [question.id for question in session.visible]
            assert isinstance(app.screen, MatrixScreen)
            while len(app.screen_stack) > 2:
                app.pop_screen()
            await pilot.pause()


async def test_at_80x24_the_whole_matrix_stands_under_most_questions() -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        table = screen.query_one(MatrixTable)
        whole = 0
        while not app.wizard.session.finished:
            assert table.matrix is not None
            whole += table.limit >= len(table.matrix.rows)
            await answer(app, pilot, **{app.wizard.session.current.id: app.wizard.session.value(screen.question.id)})
        assert whole >= 8


@pytest.mark.parametrize("key", ["b", "left", "backspace", "escape"])
async def test_every_back_key_goes_back_and_keeps_later_answers(key: str) -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await answer(app, pilot, model="demo", goal="style", use_case="production")
        await press(pilot, key, key)
        assert screen.question.id == "goal"
        assert app.wizard.session.value("use_case") == "production"
        await press(pilot, key, key)
        assert not isinstance(app.screen, QuestionScreen), "back from the first question leaves"


async def test_enter_after_going_back_keeps_a_typed_answer() -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await answer(app, pilot, model="demo", goal="specialise", use_case="learning", data="", data_tokens=123_456)
        await press(pilot, "b")
        assert screen.question.id == "data_tokens"
        assert screen.field.value == "123456"
        await press(pilot, "enter")
        assert app.wizard.session.value("data_tokens") == 123_456


async def test_a_changed_answer_recomputes_its_dependants_and_says_so() -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await press(pilot, "1")
        number = [option.value for option in screen.question.options].index("research") + 1
        before = app.wizard.session.position()[1]
        await press(pilot, str(number))
        assert "Changed: 'How large should the grown model be?' is now asked" in flat(app)
        assert app.wizard.session.position()[1] == before + 1
        assert f"of {before + 1}" in visible(app)


async def test_moving_the_pointer_moves_the_matrix() -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await answer(app, pilot, model="demo")
        table = screen.query_one(MatrixTable)
        recommended = set()
        for _ in screen.question.options:
            assert table.matrix is not None
            recommended.add(table.matrix.recommended)
            await press(pilot, "down")
        assert len(recommended) > 1
        assert not app.wizard.session.is_answered("goal"), "looking is not answering"


async def test_letters_go_into_a_focused_field_and_backspace_edits_there() -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await press(pilot, "t")
        await type_text(pilot, "bqmwr1")
        assert screen.field.value == "bqmwr1"
        await press(pilot, "backspace", "left")
        assert screen.field.value == "bqmwr"
        assert isinstance(app.screen, QuestionScreen)
        assert screen.question.id == "model"
        assert "Esc Leave the field" in visible(app)
        await press(pilot, "escape")
        assert isinstance(app.focused, ChoiceList)
        await press(pilot, "j")
        assert screen.options.highlighted == 1


async def test_a_number_that_is_none_is_refused_beside_the_question() -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await answer(app, pilot, model="demo", goal="specialise", use_case="learning", data="")
        await press(pilot, "t")
        await type_text(pilot, "lots")
        await press(pilot, "enter")
        assert "'lots' is no number" in flat(app)
        assert len(app.screen_stack) == 3, "no dialog"
        screen.field.value = ""
        await type_text(pilot, "1.5M")
        await press(pilot, "enter")
        assert app.wizard.session.value("data_tokens") == 1_500_000


async def test_a_file_that_is_not_there_is_refused_and_one_that_is_gets_counted(tmp_path: Path) -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await answer(app, pilot, model="demo", goal="specialise", use_case="learning", output="adapter")
        screen.field.focus()
        screen.field.value = str(tmp_path / "missing.jsonl")
        await press(pilot, "enter")
        assert "There is no file" in flat(app)
        assert screen.question.id == "data"
        screen.field.value = str(rows_file(tmp_path / "rows.jsonl"))
        await press(pilot, "enter")
        assert screen.question.id != "data"
        await until(pilot, lambda: app.wizard.session.measured_tokens is not None, seconds=30)
        report = app.wizard.data_report
        assert report is not None
        assert report["train"]["tokens"] == app.wizard.session.measured_tokens
        await until(pilot, lambda: "tokens counted" in flat(app) or "Data:" in flat(app))


async def test_an_impossible_option_stays_visible_with_its_reason_and_is_refused() -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await answer(app, pilot, model="demo", goal="specialise", use_case="learning", data="demo")
        assert screen.question.id == "context"
        states = screen.options.states
        impossible = next(index for index, state in enumerate(states) if not state.enabled)
        assert "not possible: " in visible(app)
        await press(pilot, str(impossible + 1))
        assert screen.question.id == "context"
        assert f"is not possible: {states[impossible].reason}" in flat(app)
        for _ in range(impossible + 1):
            await press(pilot, "down")
        screen.options.highlighted = impossible
        await press(pilot, "enter")
        assert screen.question.id == "context"


async def test_another_card_sets_the_hardware_answers_and_sim_is_said_everywhere() -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        steps = app.wizard.session.position()[1]
        await press(pilot, "w")
        await press(pilot, "w")
        await type_text(pilot, "2x24G")
        await press(pilot, "enter")
        await until(pilot, lambda: app.wizard.machine is not None and app.wizard.machine.simulated)
        await press(pilot, "b")
        assert app.screen is screen
        assert app.wizard.session.position()[1] == steps + 1
        assert f"step 1 of {steps + 1}" in visible(app)
        for opener in (app.open_matrix, lambda: app.open_review("qlora"), app.open_hardware):
            opener()
            await pilot.pause()
            assert " SIM" in visible(app).splitlines()[0]
        await press(pilot, "x")
        await until(pilot, lambda: "SIM " not in visible(app).splitlines()[0])


async def test_giving_up_the_what_if_on_the_question_about_the_card_does_not_lose_the_place() -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await answer(app, pilot, model="demo", goal="style", use_case="learning", data="demo", context=256)
        await answer(app, pilot, hardware="own")
        assert screen.question.id == "card"
        app.open_hardware()
        await pilot.pause()
        await press(pilot, "x", "b")
        assert app.screen is screen
        assert screen.question in app.wizard.session.visible
        assert screen.question.text in visible(app)
        assert app.wizard.session.value("hardware") == "this"


async def test_a_card_nobody_knows_is_refused_beside_the_question() -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await answer(app, pilot, model="demo", goal="style", use_case="learning", data="demo", context=256)
        await answer(app, pilot, hardware="own")
        await press(pilot, "t")
        screen.field.value = "RTX 9999 Ultra"
        await press(pilot, "enter")
        assert screen.question.id == "card"
        assert "RTX 9999 Ultra" in flat(app)
        assert len(app.screen_stack) == 3


@pytest.mark.parametrize("source", ["./no/such/folder", "nobody/has-this-model-5f3a", "not a model"])
async def test_a_model_that_cannot_be_read_is_said_beside_the_question_and_another_can_be_chosen(source: str) -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await press(pilot, "t")
        screen.field.value = source
        await press(pilot, "enter")
        await until(pilot, lambda: app.wizard.model_problem is not None)
        problem = app.wizard.model_problem
        assert problem is not None
        await until(pilot, lambda: problem.what.split()[0] in flat(app))
        assert len(app.screen_stack) == 3, "no dialog in the way"
        assert screen.query_one(MatrixTable).matrix is None
        await press(pilot, "b")
        assert screen.question.id == "model"
        await press(pilot, "escape", "1")
        await until(pilot, lambda: app.wizard.matrix is not None)
        assert app.wizard.model_problem is None


async def test_a_slow_model_blocks_nothing_and_its_late_answer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def slow(source: str) -> StartupNews:
        if source == "slow/model":
            release.wait(30)
            raise EngineError("model.late", "This came too late.")
        return really_read_model(source)

    monkeypatch.setattr(app_module, "read_model", slow)
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await press(pilot, "t")
        screen.field.value = "slow/model"
        await press(pilot, "enter")
        assert screen.question.id == "goal"
        assert "Reading the model slow/model" in flat(app)
        await press(pilot, "2", "b", "b")
        await press(pilot, "escape", "1")
        await until(pilot, lambda: app.wizard.matrix is not None)
        release.set()
        await until(pilot, lambda: not any(thread.name == "model" for thread in threading.enumerate()))
        await pilot.pause()
        assert app.wizard.model_problem is None
        assert "too late" not in flat(app)


@pytest.mark.parametrize("rows", range(3, 60))
def test_no_more_lines_are_given_than_there_are_and_options_come_first(rows: int) -> None:
    needs = {"text": 1, "why": 2, "notice": 3, "hint": 2, "recommendation": 3}
    for options, field, matrix in ((7, False, 10), (5, True, 10), (2, True, 1)):
        shares = share_lines(rows, needs, options=options, field=field, matrix=matrix)
        used = sum(shares.texts.values()) + shares.options + shares.matrix + int(field)
        assert used <= rows
        assert all(shares.texts[name] <= needs[name] for name in needs)
        assert shares.matrix == 0 or shares.options == options


async def test_enter_in_an_empty_field_that_needs_an_answer_says_so() -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        await press(pilot, "t", "enter")
        assert screen.question.id == "model"
        assert isinstance(app.focused, Input)
        assert "needs an answer" in flat(app)


async def test_the_pointer_stands_on_an_answer_that_is_possible() -> None:
    async with opened(SIZES[0]) as (app, pilot):
        screen = await to_questions(app, pilot)
        app.wizard.session.set_answer("goal", "smaller")
        app.wizard.session.go_to("teacher")
        await until(pilot, lambda: app.wizard.architecture is not None)
        screen.show_question()
        assert [state.enabled for state in screen.options.states] == [False, True]
        assert screen.options.highlighted == 1


@pytest.mark.parametrize("tiny", [(40, 10), (20, 3)])
@pytest.mark.parametrize("answers", [(), ("1",)])
async def test_a_question_looks_as_before_when_a_terminal_too_small_has_grown_again(
    tiny: tuple[int, int], answers: tuple[str, ...]
) -> None:
    async with opened((80, 24)) as (app, pilot):
        screen = await to_questions(app, pilot)
        await press(pilot, *answers)
        before = visible(app)
        await pilot.resize_terminal(*tiny)
        await until(pilot, lambda: isinstance(app.screen, TooSmallScreen))
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: app.screen is screen and visible(app) == before)
