"""A chat on screen: side by side where there is room, streamed, stopped, asked again, saved, the text sent in view."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from textual import events
from textual.pilot import Pilot

from engine.jobs.card_io import write_card
from engine.jobs.chat_lines import Sampling
from engine.jobs.chat_log import read_chats
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run
from scaler_tui.app import Start
from scaler_tui.chat_sides import ChatAsked, of_run_with_base
from scaler_tui.chat_state import ChatSettings, Phase
from scaler_tui.screens.card import CardScreen
from scaler_tui.screens.chat import ChatScreen
from scaler_tui.screens.problem import ConfirmScreen, ProblemScreen
from scaler_tui.screens.runs import RunsScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets.prompt_field import PromptField
from tests.support.fake_chat import PROGRAM
from tests.support.golden_runs import Golden, golden_card, write_golden
from tests.support.screen_host import ScreenHost, until, visible
from tests.support.wizard_app import known_machine, opened
from tests.unit.test_chat_sides import adapter
from tests.unit.test_hygiene import ROOT


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaler_tui.chat_process.PROGRAM", PROGRAM)
    monkeypatch.chdir(ROOT)


@asynccontextmanager
async def chat(
    asked: ChatAsked, size: tuple[int, int] = (80, 24), policy: RenderPolicy | None = None
) -> AsyncIterator[tuple[ChatScreen, Pilot[None]]]:
    """A chat whose sides are loaded."""
    screen = ChatScreen(asked)
    app = ScreenHost(screen, policy)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: screen.state is not None and screen.state.phase is Phase.READY)
        yield screen, pilot


def three(tmp_path: Path) -> ChatAsked:
    return ChatAsked("demo", adapters=(str(adapter(tmp_path / "red")), str(adapter(tmp_path / "blue"))))


async def ask(screen: ChatScreen, pilot: Pilot[None], text: str) -> None:
    await pilot.press(*text, "enter")
    await until(pilot, lambda: screen.state.phase is Phase.READY and screen.state.prompt == text and screen._saved)


@pytest.mark.parametrize(("size", "columns"), [((60, 20), 1), ((80, 24), 2), ((120, 40), 3)])
async def test_as_many_sides_as_fit_stand_beside_each_other_and_tab_reaches_the_rest(
    tmp_path: Path, size: tuple[int, int], columns: int
) -> None:
    async with chat(three(tmp_path), size) as (screen, pilot):
        await ask(screen, pilot, "hello")
        shown = visible(pilot.app)
        assert [name in shown for name in ("demo heard", "red heard", "blue heard")] == [
            number < columns for number in range(3)
        ]
        assert all(len(line) <= size[0] for line in shown.splitlines())
        assert ("1 demo   2 red   3 blue" in shown) == (columns < 3)
        if columns < 3:
            for _ in range(3 - columns):
                await pilot.press("tab")
            assert "blue heard" in visible(pilot.app)


async def test_the_very_text_that_was_sent_is_shown_with_its_tokens_and_also_before_it_is_sent(tmp_path: Path) -> None:
    async with chat(three(tmp_path)) as (screen, pilot):
        await pilot.press(*"draft", "ctrl+o")
        await until(pilot, lambda: "draft<|im_end|>↵" in visible(pilot.app))
        assert "tokens sent. Template" in visible(pilot.app)
        assert screen.state is not None
        assert not screen.state.sides[0].answers
        await pilot.press("ctrl+o")
        assert "draft<|im_end|>" not in visible(pilot.app)


async def test_escape_stops_the_answers_and_the_screen_stays(tmp_path: Path) -> None:
    async with chat(three(tmp_path), (120, 40)) as (screen, pilot):
        assert screen.state is not None
        await pilot.press(*"wait", "enter")
        await until(pilot, lambda: "demo heard wait" in visible(pilot.app))
        assert "demo answers, 9 tokens" in visible(pilot.app)
        await pilot.press("escape")
        await until(pilot, lambda: screen.state.phase is Phase.READY)
        assert "9 tokens, 18.0 a second; stopped" in visible(pilot.app)
        assert screen.focused is screen.field


async def test_again_takes_the_next_seed_and_at_temperature_0_says_why_not(tmp_path: Path) -> None:
    async with chat(ChatAsked("demo")) as (screen, pilot):
        assert screen.state is not None
        await ask(screen, pilot, "hello")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: "seed 18" in screen.state.sides[0].answers[0].text)
        assert len(screen.state.sides[0].answers) == 1
        await until(pilot, lambda: screen.state.phase is Phase.READY)
        await pilot.press("escape", "t", "ctrl+u", "0", "enter")
        await until(pilot, lambda: screen.state.sampling.temperature == 0)
        assert "temperature 0" in visible(pilot.app).splitlines()[0]
        await pilot.press("ctrl+r")  # the temperature is new: the same seed
        await until(pilot, lambda: screen.state.phase is Phase.READY and screen.state.sides[0].answers[0].ended)
        await pilot.press("ctrl+r")
        await until(pilot, lambda: "the answer would be the same" in visible(pilot.app))
        folder = screen.feed._log.folder  # type: ignore[union-attr]
        await until(pilot, lambda: len(read_chats(folder)) == 3)
        assert [exchange.again for exchange in read_chats(folder)] == [False, True, True]


async def test_a_setting_that_is_none_is_refused_in_words_and_escape_leaves_it(tmp_path: Path) -> None:
    async with chat(ChatAsked("demo")) as (screen, pilot):
        await pilot.press("escape", "s")
        assert "seed:" in visible(pilot.app)
        await pilot.press(*"x", "enter")
        await until(pilot, lambda: "is no number" in visible(pilot.app))
        await pilot.press("escape")
        assert "seed:" not in visible(pilot.app)
        assert screen.state is not None
        assert screen.state.sampling.seed == 17


async def test_earlier_questions_come_back_with_up_also_in_the_next_chat(tmp_path: Path) -> None:
    async with chat(ChatAsked("demo")) as (screen, pilot):
        await ask(screen, pilot, "first")
        await ask(screen, pilot, "second")
        await pilot.press(*"third", "up")
        assert screen.field.text == "second"
        await pilot.press("up")
        assert screen.field.text == "first"
        await pilot.press("down", "down")
        assert screen.field.text == "third"
    async with chat(ChatAsked("demo")) as (screen, pilot):
        await pilot.press("up", "up")
        assert screen.field.text == "first"


async def test_a_pasted_text_of_several_lines_is_one_question(tmp_path: Path) -> None:
    async with chat(ChatAsked("demo")) as (screen, pilot):
        assert screen.state is not None
        await pilot.press("o", "n", "e", "ctrl+j", "t", "w", "o", "enter")
        await until(pilot, lambda: screen.state.prompt == "one\ntwo")


async def test_a_question_typed_while_loading_is_asked_as_soon_as_it_can_be(tmp_path: Path) -> None:
    screen = ChatScreen(ChatAsked("demo"))
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press(*"early", "enter")
        await until(pilot, lambda: "demo heard early" in visible(app))


async def test_a_side_that_was_refused_says_why_and_the_others_answer(tmp_path: Path) -> None:
    refused = adapter(tmp_path / "refused")
    async with chat(ChatAsked("demo", adapters=(str(refused),))) as (screen, pilot):
        await ask(screen, pilot, "hello")
        shown = visible(pilot.app)
        assert "Left out: It does not fit." in shown
        assert "demo heard hello" in shown


async def test_a_process_that_dies_is_explained_and_what_was_said_is_saved(tmp_path: Path) -> None:
    async with chat(ChatAsked("demo")) as (screen, pilot):
        await pilot.press(*"crash", "enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ProblemScreen))
        assert "memory ran out" in visible(pilot.app)
        await pilot.press("enter")
        await until(pilot, lambda: screen._saved)
        assert read_chats(screen.feed._log.folder)[0].prompt == "crash"  # type: ignore[union-attr]


async def test_what_cannot_be_talked_to_is_a_dialog_with_the_way_out() -> None:
    screen = ChatScreen(ChatAsked("nosuchmodel"))
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, ProblemScreen))
        assert "nosuchmodel" in visible(app)


async def test_leaving_ends_the_process_and_keeps_the_half_answer(tmp_path: Path) -> None:
    run_dir = create_run(msgspec.convert({"model": {"source": "demo"}}, JobSpec))
    adapter(run_dir / "output/adapter")
    screen = ChatScreen(of_run_with_base(run_dir))
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: screen.state is not None and screen.state.phase is Phase.READY)
        await pilot.press(*"wait", "enter")
        await until(pilot, lambda: "base heard wait" in visible(app))
        process = screen.feed._process._process  # type: ignore[union-attr]
        screen.dismiss()
        await until(pilot, lambda: process.poll() is not None)
        await until(pilot, lambda: read_chats(run_dir / "chats"))
    (saved,) = read_chats(run_dir / "chats")
    assert [answer.ended for answer in saved.answers] == ["stopped", "stopped"]
    assert saved.answers[0].text.startswith("base heard wait")


async def test_without_unicode_every_character_is_ascii(tmp_path: Path) -> None:
    async with chat(three(tmp_path), policy=RenderPolicy(unicode=False)) as (screen, pilot):
        await ask(screen, pilot, "hello")
        assert visible(pilot.app).isascii()
        await pilot.press("ctrl+o")
        await until(pilot, lambda: "hello<|im_end|>\\n" in visible(pilot.app))
        assert visible(pilot.app).isascii()


async def test_ctrl_c_stops_an_answer_before_it_asks_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    known_machine(monkeypatch)
    screen = ChatScreen(ChatAsked("demo"))
    async with opened(start=Start(first=lambda: screen)) as (app, pilot):
        await until(pilot, lambda: screen.state is not None and screen.state.phase is Phase.READY)
        await pilot.press(*"wait", "enter")
        await until(pilot, lambda: "demo heard wait" in visible(app))
        await pilot.press("ctrl+c")
        await until(pilot, lambda: screen.state is not None and screen.state.phase is Phase.READY)
        assert app.screen is screen
        await pilot.press("ctrl+c")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))


async def test_the_list_of_runs_and_the_card_open_the_chat_of_a_run_that_left_something() -> None:
    bare = write_golden(Golden(outcome="failed", name="bare"))
    run_dir = write_golden(Golden(outcome="finished", name="done"))
    adapter(run_dir / "output/adapter")
    write_card(run_dir, golden_card(run_dir))
    runs = RunsScreen()
    app = ScreenHost(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: runs.runs is not None and len(runs.runs) == 2)
        assert runs.runs is not None
        places = {run.directory: number for number, run in enumerate(runs.runs)}
        runs.query_one("#runs-list").highlighted = places[bare]  # type: ignore[attr-defined]
        await pilot.press("t")
        assert app.screen is runs
        runs.query_one("#runs-list").highlighted = places[run_dir]  # type: ignore[attr-defined]
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, ChatScreen))
        assert isinstance(app.screen, ChatScreen)
        assert app.screen.asked == ChatAsked(str(run_dir), compare=("base",))
        app.screen.dismiss()
        await until(pilot, lambda: app.screen is runs)
        card = CardScreen(run_dir)
        app.push_screen(card)
        await until(pilot, lambda: card.card is not None)
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, ChatScreen))


# ── keys at the wrong moment ─────────────────────────────────────────────────────────────────────────────────────
async def test_a_seed_of_many_digits_stays_and_a_setting_keeps_the_draft(tmp_path: Path) -> None:
    asked = ChatSettings(sampling=Sampling(seed=12345678901))
    screen = ChatScreen(ChatAsked("demo"), asked)
    async with ScreenHost(screen).run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: screen.state is not None and screen.state.phase is Phase.READY)
        await ask(screen, pilot, "before")
        await pilot.press(*"draft", "escape", "s")
        assert screen.field.text == "12345678901"
        await pilot.press("up")
        assert screen.field.text == "12345678901"
        await pilot.press("ctrl+r")  # nothing is asked with a setting half typed
        assert screen.state.phase is Phase.READY  # type: ignore[union-attr]
        await pilot.press("enter")
        assert screen.state.sampling.seed == 12345678901  # type: ignore[union-attr]
        assert screen.field.text == "draft"


async def test_keys_typed_at_once_behind_the_one_that_leads_into_the_field_are_text() -> None:
    async with chat(ChatAsked("demo")) as (screen, pilot):
        await pilot.press("escape")
        for key in "isqb":
            pilot.app.post_message(events.Key(key, key))
        await until(pilot, lambda: screen.field.text == "sqb")


async def test_escape_after_the_end_of_an_answer_does_not_leave_before_it_is_pressed_again() -> None:
    async with chat(ChatAsked("demo")) as (screen, pilot):
        await ask(screen, pilot, "hello")
        await pilot.press("escape", "escape")
        assert pilot.app.screen is screen
        assert "Esc again leaves" in visible(pilot.app)
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is not screen)


async def test_what_was_said_of_an_answer_under_way_goes_with_it() -> None:
    async with chat(ChatAsked("demo")) as (screen, pilot):
        await pilot.press(*"wait", "enter")
        await until(pilot, lambda: "demo heard wait" in visible(pilot.app))
        await pilot.press(*"next", "enter")
        await until(pilot, lambda: screen._said.startswith("An answer is under way"))
        await pilot.press("escape")
        await until(pilot, lambda: screen.state.phase is Phase.READY)  # type: ignore[union-attr]
        assert "under way" not in visible(pilot.app)
        assert screen.field.text == "next"


async def test_of_two_questions_typed_while_loading_none_is_lost_when_loading_fails() -> None:
    screen = ChatScreen(ChatAsked("nosuchmodel"))
    screen._waiting = "first"
    async with ScreenHost(screen).run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(pilot.app.screen, ProblemScreen))
        assert screen.field.text == "first"
    screen = ChatScreen(ChatAsked("demo"))
    screen._waiting = "first"
    async with ScreenHost(screen).run_test(size=(80, 24)) as pilot:
        await screen.on_prompt_field_submitted(PromptField.Submitted("second"))  # whether loaded by now or not
        await until(pilot, lambda: "demo heard first" in visible(pilot.app))
