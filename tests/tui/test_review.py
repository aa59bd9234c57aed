"""The page before anything is spent: every choice, the price, the exact command, and one start only."""

from __future__ import annotations

from pathlib import Path

import pytest

import scaler_tui.feeds.engine_thread as engine_thread
from engine.jobs.spec_toml import load_spec
from engine.jobs.store import list_runs
from scaler_tui.app import Start
from scaler_tui.screens.data import DataScreen
from scaler_tui.screens.problem import ProblemScreen
from scaler_tui.screens.question import QuestionScreen
from scaler_tui.screens.review import ReviewScreen
from scaler_tui.screens.run import RunScreen
from tests.support.golden_runs import Golden, write_golden
from tests.support.screen_host import until, visible
from tests.support.wizard_app import SIZES, answer, known_machine, opened, press, rows_file, to_questions


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known_machine(monkeypatch)
    monkeypatch.chdir(tmp_path)


def flat(app: object) -> str:
    """The screen as one line."""
    return " ".join(visible(app).split())  # type: ignore[arg-type]


async def demo_review(app: object, pilot: object) -> ReviewScreen:
    """The demo's review with its spec made."""
    await press(pilot, "1")  # type: ignore[arg-type]
    screen = app.screen  # type: ignore[attr-defined]
    assert isinstance(screen, ReviewScreen)
    await until(pilot, lambda: screen.spec is not None)  # type: ignore[arg-type]
    return screen


@pytest.mark.parametrize("size", SIZES)
async def test_every_choice_the_price_and_the_command_are_listed(size: tuple[int, int]) -> None:
    async with opened(size) as (app, pilot):
        screen = await demo_review(app, pilot)
        seen = ""
        for _ in range(8):
            seen += " " + flat(app)
            await press(pilot, "pagedown")
        for expected in (
            "QLoRA on demo", "256 tokens, packed", "rank 16", "4-bit NF4", "epochs", "every", "Memory", "likely",
            "Time", "Cost", "Disk", "scaler-wizard run spec.toml", "Enter starts it in the background",
            "What is the true goal?", "Where should the model run in the end?", "Within a week",
        ):  # fmt: skip
            assert expected in seen, expected
        assert screen.spec is not None
        assert all(len(line) <= size[0] for line in visible(app).splitlines())


async def test_at_80x24_everything_but_the_answers_fits_without_scrolling() -> None:
    async with opened() as (app, pilot):
        await demo_review(app, pilot)
        text = visible(app)
        assert "Approach" in text
        assert "Enter starts it in the background. It survives this terminal." in text


async def test_w_writes_the_spec_and_never_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text("mine")
    async with opened() as (app, pilot):
        screen = await demo_review(app, pilot)
        await until(pilot, lambda: app.wizard.data_report is not None)  # counted rows make the spec anew
        await press(pilot, "w", "w")
        assert (tmp_path / "spec.toml").read_text() == "mine"
        assert load_spec(tmp_path / "spec-2.toml") == screen.spec
        assert (tmp_path / "spec-3.toml").exists()
        assert "spec-3.toml" in flat(app), "the command names the file"


async def test_a_folder_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(Path, "cwd", classmethod(lambda _: gone))
    async with opened() as (app, pilot):
        await demo_review(app, pilot)
        await press(pilot, "w")
        assert isinstance(app.screen, ProblemScreen)
        assert "Cannot write" in flat(app)


async def test_enter_twice_starts_one_run_and_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(*words: str) -> dict[str, str]:
        assert words[0] == "start"
        started.append(words)
        return {"directory": str(write_golden(Golden()))}

    monkeypatch.setattr(engine_thread, "ask_twin", start)
    async with opened() as (app, pilot):
        await demo_review(app, pilot)
        await pilot.press("enter", "enter", "enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        assert len(started) == 1
        assert len(list_runs()) == 1
        assert not any(isinstance(screen, ReviewScreen) for screen in app.screen_stack)


async def test_a_start_that_fails_is_said_and_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.errors import EngineError

    outcomes: list[object] = [EngineError("run.unwritable", "The disk said no."), None]

    def start(*words: str) -> dict[str, str]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, EngineError):
            raise outcome
        return {"directory": str(write_golden(Golden()))}

    monkeypatch.setattr(engine_thread, "ask_twin", start)
    async with opened() as (app, pilot):
        await demo_review(app, pilot)
        await press(pilot, "enter")
        await until(pilot, lambda: isinstance(app.screen, ProblemScreen))
        assert "The disk said no." in flat(app)
        await press(pilot, "enter")
        assert "QLoRA on demo" in flat(app)
        await press(pilot, "enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))


async def test_what_does_not_fit_lists_the_fixes_one_a_line() -> None:
    async with opened(start=Start(gpu="RTX 3060 12GB")) as (app, pilot):
        await to_questions(app, pilot)
        app.wizard.session.set_answer("model", "meta-llama/Llama-3.1-70B")
        app.read_model("meta-llama/Llama-3.1-70B")
        app.wizard.session.set_answer("data", "demo")
        await until(pilot, lambda: app.wizard.architecture is not None and app.wizard.architecture.parameters > 6e10)
        app.open_review("qlora")
        await until(pilot, lambda: "does not fit" in flat(app))
        text = visible(app)
        assert "cheapest first" in text
        assert "  1. " in text
        await press(pilot, "enter")
        assert isinstance(app.screen, ReviewScreen), "there is nothing to start"


async def test_a_plan_without_data_leads_to_the_question_about_it() -> None:
    async with opened() as (app, pilot):
        await to_questions(app, pilot)
        await answer(app, pilot, model="demo", goal="style", use_case="learning", data="")
        app.open_review("lora")
        await until(pilot, lambda: "There is no data to train on yet." in flat(app))
        await press(pilot, "f")
        assert isinstance(app.screen, QuestionScreen)
        assert app.screen.question.id == "data"


async def test_a_simulated_machine_cannot_start_here_and_x_goes_back_to_this_one() -> None:
    async with opened(start=Start(demo=True, gpu="RTX 4090")) as (app, pilot):
        await demo_review(app, pilot)
        assert "SIM" in visible(app).splitlines()[0]
        await press(pilot, "enter")
        assert isinstance(app.screen, ProblemScreen)
        await press(pilot, "enter", "x")
        await until(pilot, lambda: "SIM" not in flat(app))


async def test_data_without_one_good_row_cannot_be_started(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"nothing": 1}\nnot json\n')
    async with opened() as (app, pilot):
        await to_questions(app, pilot)
        await answer(app, pilot, model="demo", goal="style", use_case="learning", data=str(bad))
        await until(pilot, lambda: app.wizard.data_problem is not None, seconds=40)
        app.open_review("lora")
        await until(pilot, lambda: "Problem" in flat(app) or isinstance(app.screen, ProblemScreen))
        await press(pilot, "enter")
        assert isinstance(app.screen, ProblemScreen)
        assert list_runs() == []


@pytest.mark.parametrize("size", SIZES)
async def test_the_data_report_counts_rows_and_shows_what_carries_loss(size: tuple[int, int], tmp_path: Path) -> None:
    async with opened(size) as (app, pilot):
        await to_questions(app, pilot)
        path = str(rows_file(tmp_path / "rows.jsonl", 40))
        await answer(app, pilot, model="demo", goal="style", use_case="learning", data=path)
        await press(pilot, "d")
        assert isinstance(app.screen, DataScreen)
        await until(pilot, lambda: "40 kept, 0 dropped" in flat(app) or "36 kept" in flat(app), seconds=40)
        seen = ""
        for _ in range(8):
            seen += visible(app)
            await press(pilot, "pagedown")
        assert "carry loss" in seen
        assert "Sample rows" in seen
        assert app.wizard.session.measured_tokens
        await press(pilot, "b")
        app.open_matrix()
        await pilot.pause()
        for _ in range(8):
            seen += visible(app)
            await press(pilot, "pagedown")
        assert "tokens counted" in " ".join(seen.split())


async def test_leaving_while_a_run_is_being_started_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    go = threading.Event()

    def start(*words: str) -> dict[str, str]:
        go.wait(20)
        return {"directory": str(write_golden(Golden()))}

    monkeypatch.setattr(engine_thread, "ask_twin", start)
    async with opened() as (app, pilot):
        await demo_review(app, pilot)
        await press(pilot, "enter", "q")
        assert app.launching
        assert not app.farewell
        go.set()
        await until(pilot, lambda: bool(app.farewell))
        assert "continues. Re-attach: scaler-wizard attach" in app.farewell[0]
