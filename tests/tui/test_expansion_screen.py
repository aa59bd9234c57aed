"""Choosing how to grow: plans side by side, sizes typed, operators picked, warnings agreed to once, then the review."""

from __future__ import annotations

from typing import Any

import pytest

from engine.jobs.spec import Task
from scaler_tui.app import ScalerApp
from scaler_tui.growth_text import PlanColumn
from scaler_tui.preferences import load_preferences
from scaler_tui.screens.expansion import ExpansionScreen
from scaler_tui.screens.matrix import MatrixScreen
from scaler_tui.screens.operators import OperatorsScreen
from scaler_tui.screens.problem import ProblemScreen
from scaler_tui.screens.review import ReviewScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets.plan_columns import PlanColumns, bar, columns_shown
from tests.support.screen_host import until, visible
from tests.support.wizard_app import SIZES, answer, known_machine, opened, press, to_questions, type_text


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known_machine(monkeypatch)


def flat(app: ScalerApp) -> str:
    """The screen as one line."""
    return " ".join(visible(app).split())


async def to_plans(app: ScalerApp, pilot: Any, approach: str = "partial-expansion") -> ExpansionScreen:
    """From the questions to the plans of the demo model."""
    await to_questions(app, pilot)
    await answer(app, pilot, goal="research")
    app.open_matrix()
    app.choose_approach(approach)
    await until(pilot, lambda: isinstance(app.screen, ExpansionScreen) and app.screen.options, seconds=60)
    screen = app.screen
    assert isinstance(screen, ExpansionScreen)
    return screen


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("unicode", [True, False])
async def test_plans_stand_side_by_side_with_figures_words_and_warnings(size: tuple[int, int], unicode: bool) -> None:
    async with opened(size, policy=RenderPolicy(unicode=unicode)) as (app, pilot):
        screen = await to_plans(app, pilot)
        seen = ""
        for _ in range(len(screen.options)):
            seen += " " + flat(app)
            await press(pilot, "right")
        for _ in range(16):
            seen += " " + flat(app)
            await press(pilot, "pagedown")
        for expected in (
            "Layers", "Hidden", "FFN", "Heads/KV", "Parameters", "KV/token", "Disk", "RAM", "5B tokens", "exact",
            "Wider", "Deeper", "Recommended", "Grows", "Learns", "Fits?", "Research:", "Hardware:", "Data:", "Time:",
            "Instead:", "QLoRA", "demo",
        ):  # fmt: skip
            assert expected in seen, expected
        assert all(len(line) <= size[0] for line in visible(app).splitlines())
        if not unicode:
            assert visible(app).isascii()
        for option in screen.options:
            assert option.choice.exact


async def test_figures_are_those_of_the_matrix_and_the_review() -> None:
    async with opened() as (app, pilot):
        screen = await to_plans(app, pilot)
        option = screen.option
        assert option is not None
        await press(pilot, "enter")
        review = app.screen
        assert isinstance(review, ReviewScreen)
        matrix = app.wizard.matrix
        assert matrix is not None
        row = matrix.row("partial-expansion")
        assert row.ram == option.found.memory
        assert row.final_parameters == option.choice.parameters
        assert review.row is not None
        assert review.row.ram == option.found.memory
        assert review.row.hours.likely < row.hours.likely, "a run from here sees the user's data only"


async def test_block_expansion_recommends_added_blocks_that_learn_alone() -> None:
    async with opened() as (app, pilot):
        screen = await to_plans(app, pilot, "block-expansion")
        option = screen.option
        assert option is not None
        assert option.choice.recommended
        assert set(option.choice.plan.operators) == {"layers"}
        await press(pilot, "enter", "a")
        review = app.screen
        assert isinstance(review, ReviewScreen)
        assert review.spec is not None
        assert review.spec.task is Task.NEW_BLOCKS
        assert review.spec.expansion.layers == option.choice.plan.after.layers
        assert "only the added blocks; everything old is frozen" in flat(app)


async def test_the_spec_leads_back_to_the_chosen_plan() -> None:
    from engine.advise.growth_plan import plan_growth, shape_of
    from engine.models.resolve import resolve_model

    async with opened() as (app, pilot):
        screen = await to_plans(app, pilot)
        folder = resolve_model("demo").path
        assert folder is not None
        for index, option in enumerate(screen.options):
            await press(pilot, str(index + 1), "enter")
            review = app.screen
            assert isinstance(review, ReviewScreen)
            assert review.spec is not None
            assert plan_growth(review.spec.expansion, shape_of(folder)).choice.plan == option.choice.plan
            await press(pilot, "b")


async def test_left_of_the_first_plan_goes_back_and_the_pointer_stops_at_the_last() -> None:
    async with opened() as (app, pilot):
        screen = await to_plans(app, pilot)
        await press(pilot, *["right"] * 9)
        assert screen.pointer == len(screen.options) - 1
        await press(pilot, *["left"] * (len(screen.options) - 1))
        assert screen.pointer == 0
        await press(pilot, "left")
        assert isinstance(app.screen, MatrixScreen)


async def test_a_typed_size_is_planned_and_an_impossible_one_says_why() -> None:
    async with opened() as (app, pilot):
        screen = await to_plans(app, pilot)
        await press(pilot, "t")
        await type_text(pilot, "5M")
        await press(pilot, "enter")
        await until(pilot, lambda: screen.options[0].choice.target_parameters == 5_000_000)
        assert "about 5.00M" in flat(app)
        await press(pilot, "t")
        await type_text(pilot, "900B")
        await press(pilot, "enter")
        await until(pilot, lambda: screen.problem is not None)
        assert "64 times" in flat(app)
        assert screen.options, "the plans before stay"
        await press(pilot, "t", "escape")
        assert isinstance(app.screen, ExpansionScreen)


async def test_what_learns_can_be_changed_and_reaches_the_spec() -> None:
    async with opened() as (app, pilot):
        screen = await to_plans(app, pilot)
        await press(pilot, "1")
        tasks = []
        for _ in range(4):
            assert screen.option is not None
            tasks.append(screen.option.grown.task)
            await press(pilot, "l")
        assert set(tasks) == {Task.FULL, Task.NEW_COORDINATES, Task.QLORA_GROWN, Task.EXPAND}
        while screen.option is not None and screen.option.grown.task is not Task.EXPAND:
            await press(pilot, "l")
        await press(pilot, "enter", "a")
        review = app.screen
        assert isinstance(review, ReviewScreen)
        assert review.spec is not None
        assert review.spec.task is Task.EXPAND
        assert "nothing is trained" in flat(app)
        assert "Memory" not in visible(app), "there is no training whose memory could be shown"


@pytest.mark.parametrize("size", SIZES)
async def test_operators_are_listed_with_what_they_keep_and_one_is_taken(size: tuple[int, int]) -> None:
    async with opened(size) as (app, pilot):
        screen = await to_plans(app, pilot, "block-expansion")
        await press(pilot, "o")
        await until(pilot, lambda: isinstance(app.screen, OperatorsScreen), seconds=60)
        operators = app.screen
        assert isinstance(operators, OperatorsScreen)
        assert "identity blocks" in flat(app)
        assert "SOLAR depth up-scaling" in flat(app)
        assert "changes" in flat(app)
        assert all(len(line) <= size[0] for line in visible(app).splitlines())
        while operators.pointed is None or operators.pointed.name != "solar":
            await press(pilot, "down")
        assert "loss jumps" in flat(app)
        await press(pilot, "enter")
        await until(pilot, lambda: any(one.name == "solar" and one.chosen for one in operators.options), seconds=60)
        await press(pilot, "b")
        assert screen.option is not None
        assert screen.option.choice.plan.operators == {"layers": "solar"}
        assert not screen.option.choice.recommended, "what made it recommended is gone"
        (line,) = (row for row in visible(app).splitlines() if row.strip().startswith("Function"))
        assert "changes" in line
        await press(pilot, "o")
        await until(pilot, lambda: isinstance(app.screen, OperatorsScreen), seconds=60)
        await press(pilot, "r")
        await until(pilot, lambda: screen.option is not None and screen.option.choice.exact, seconds=60)


async def test_an_operator_that_cannot_grow_this_stays_visible_with_its_reason() -> None:
    async with opened((120, 40)) as (app, pilot):
        await to_plans(app, pilot)
        await press(pilot, "1", "o")
        await until(pilot, lambda: isinstance(app.screen, OperatorsScreen), seconds=60)
        operators = app.screen
        assert isinstance(operators, OperatorsScreen)
        impossible = [option for option in operators.options if option.reason]
        assert impossible
        assert "not possible: " in flat(app)
        before = {option.axis: option.name for option in operators.options if option.chosen}
        while operators.pointed is None or not operators.pointed.reason:
            await press(pilot, "down")
        await press(pilot, "enter")
        assert {option.axis: option.name for option in operators.options if option.chosen} == before


async def test_the_warnings_must_be_agreed_to_once_and_are_not_asked_again() -> None:
    async with opened() as (app, pilot):
        await to_plans(app, pilot, "block-expansion")
        await press(pilot, "enter")
        assert "Before you start: read this" in flat(app)
        await press(pilot, "enter")
        assert isinstance(app.screen, ProblemScreen)
        assert "not agreed to yet" in flat(app)
        assert not app.launching
        await press(pilot, "escape", "a")
        assert load_preferences().agreed_to_expansion
        assert "Before you start" not in flat(app)
        assert "Research" in visible(app), "one line stays"
    async with opened() as (app, pilot):
        await to_plans(app, pilot, "block-expansion")
        await press(pilot, "enter")
        assert "Before you start" not in flat(app)


async def test_other_approaches_go_straight_to_the_review_without_warnings() -> None:
    async with opened() as (app, pilot):
        await to_questions(app, pilot)
        app.open_matrix()
        app.choose_approach("lora")
        await pilot.pause()
        assert isinstance(app.screen, ReviewScreen)
        assert "Research" not in visible(app)


async def test_figures_follow_the_machine_that_is_planned_for() -> None:
    async with opened() as (app, pilot):
        screen = await to_plans(app, pilot)
        assert "RAM" in visible(app)
        await press(pilot, "enter")
        app.wizard.plan_for_card("RTX 4090")
        await press(pilot, "b")
        await until(pilot, lambda: "VRAM" in visible(app), seconds=60)
        assert screen.options[0].found.machine.simulated


async def test_another_model_or_size_forgets_the_chosen_plan() -> None:
    async with opened() as (app, pilot):
        await to_plans(app, pilot)
        await press(pilot, "enter")
        assert app.wizard.grown
        app.wizard.session.go_to("target_parameters")
        app.wizard.answer(6_000_000)
        assert not app.wizard.grown


# ── the columns ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("width", [38, 58, 78, 98, 118])
def test_as_many_columns_as_fit_and_always_the_pointed_one(width: int) -> None:
    for pointed in range(1, 6):
        cells, shown = columns_shown(6, pointed, width)
        assert pointed in shown
        assert cells >= 11
        assert 11 + len(shown) * (cells + 1) <= width


def test_bars_show_more_than_the_model_as_it_is_and_where_that_was() -> None:
    half = bar(0.5, 0.25, 20, unicode=True).plain
    assert half.count("█") + half.count("┃") == 10
    assert half.index("┃") == 4
    assert bar(0.001, 0.0, 20, unicode=False).plain.rstrip() == "#"
    assert bar(0.0, 0.0, 20, unicode=True).plain.strip() == ""


async def test_the_columns_say_the_same_in_every_width() -> None:
    async with opened((120, 40)) as (app, pilot):
        screen = await to_plans(app, pilot)
        columns = screen.query_one(PlanColumns).columns
        assert all(isinstance(column, PlanColumn) for column in columns)
        assert columns[0].title == "Now"
        shares = [measure.share for column in columns for measure in column.measures]
        assert max(shares) == 1.0
        assert sum(column.recommended for column in columns) == 1
