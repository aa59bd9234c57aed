"""Help lists the keys of the screen one came from, from its bindings, and nothing a user cannot use."""

from __future__ import annotations

import pytest

from scaler_tui.screens.help import HelpScreen, keys_of
from scaler_tui.widgets.frame import key_items
from tests.support.screen_host import visible
from tests.support.wizard_app import SIZES, known_machine, opened, press, to_questions


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known_machine(monkeypatch)


@pytest.mark.parametrize("size", SIZES)
async def test_the_keys_of_every_screen_are_listed_first(size: tuple[int, int]) -> None:
    async with opened(size) as (app, pilot):
        await to_questions(app, pilot)
        for opener, expected in (
            (lambda: None, "Answer directly"),
            (app.open_matrix, "Explain figures"),
            (lambda: app.open_review("lora"), "Write the spec into"),
            (app.open_hardware, "Type a card"),
            (app.open_data, "Check again"),
        ):
            opener()
            await pilot.pause()
            await press(pilot, "question_mark")
            assert isinstance(app.screen, HelpScreen)
            everything = visible(app)
            assert "Keys: " in everything
            for _ in range(20):
                await press(pilot, "down")
                everything += visible(app)
            assert expected in everything
            assert "Ctrl+C" in everything
            assert "super" not in everything
            await press(pilot, "escape")


async def test_every_screen_has_at_most_twelve_keys_in_its_line_and_help_is_never_dropped() -> None:
    async with opened((60, 20)) as (app, pilot):
        await to_questions(app, pilot)
        for opener in (
            lambda: None,
            app.open_matrix,
            lambda: app.open_review("lora"),
            app.open_hardware,
            app.open_data,
        ):
            opener()
            await pilot.pause()
            assert len(key_items(app.screen)) <= 12
            assert "? Help" in visible(app).splitlines()[-1]
            await press(pilot, "f1")
            assert isinstance(app.screen, HelpScreen)
            await press(pilot, "escape")


async def test_a_key_is_listed_once_with_all_its_names() -> None:
    async with opened() as (app, pilot):
        screen = await to_questions(app, pilot)
        listed = dict((text, keys) for keys, text in keys_of(screen))
        assert listed["Answer directly"] == "1-9"
        assert listed["Back"] == "b, Backspace, Left, Esc"
        assert len(listed) == len(keys_of(screen))


async def test_a_key_that_works_everywhere_is_not_said_twice_where_a_screen_shows_it() -> None:
    async with opened() as (app, pilot):
        await press(pilot, "question_mark")
        assert isinstance(app.screen, HelpScreen)
        assert visible(app).count("Next colour theme") == 1
