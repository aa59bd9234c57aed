"""The first screen: starting points at every size, nothing slow before it, saved answers offered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.advise.session import default_progress_path
from scaler_tui.app import Start
from scaler_tui.screens.matrix import MatrixScreen
from scaler_tui.screens.question import QuestionScreen
from scaler_tui.screens.review import ReviewScreen
from tests.support.golden_runs import Golden, write_golden
from tests.support.screen_host import until, visible
from tests.support.wizard_app import SIZES, answer, known_machine, opened, press, to_questions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known_machine(monkeypatch)


@pytest.mark.parametrize("size", SIZES)
async def test_starting_points_and_machine_are_whole_at_every_size(size: tuple[int, int]) -> None:
    async with opened(size) as (app, pilot):
        await until(pilot, lambda: "none yet" in visible(app))
        text = visible(app)
        for expected in ("Fine-tune the demo model now", "Plan something new", "All runs", "This machine"):
            assert expected in text
        for fact in ("24.0 GiB available of 32.0 GiB", "8 cores", "210 GiB free for runs", "? Help"):
            assert fact in text
        assert all(len(line) <= size[0] for line in text.splitlines())


def test_neither_profiles_nor_advice_are_loaded_before_the_first_paint() -> None:
    script = (
        "import asyncio, sys, threading\n"
        "from scaler_tui.terminal import RenderPolicy\n"
        "from scaler_tui.app import ScalerApp, Start\n"
        "threading.Thread.start = lambda self: None\n"
        "async def paint():\n"
        "    async with ScalerApp(RenderPolicy(), Start(demo=True)).run_test(size=(80, 24)) as pilot:\n"
        "        await pilot.pause()\n"
        "asyncio.run(paint())\n"
        "print([m for m in sys.modules if m.startswith(('engine.advise', 'engine.estimate', 'tomllib', 'pynvml'))])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


async def test_without_the_demo_flag_planning_comes_first() -> None:
    async with opened(start=Start()) as (app, pilot):
        await until(pilot, lambda: "none yet" in visible(app))
        assert "1 Plan something new" in visible(app)
        await press(pilot, "enter")
        assert isinstance(app.screen, QuestionScreen)


async def test_the_demo_is_one_key_from_its_review_and_leaves_saved_answers_alone() -> None:
    async with opened() as (app, pilot):
        await to_questions(app, pilot)
        await answer(app, pilot, model="demo", goal="style")
        saved = default_progress_path().read_bytes()
        app.pop_screen()
        await until(pilot, lambda: "Continue the wizard" in visible(app))
        await press(pilot, "1")
        assert isinstance(app.screen, ReviewScreen)
        await until(pilot, lambda: "QLoRA on demo" in visible(app))
        assert default_progress_path().read_bytes() == saved


async def test_saved_answers_are_offered_and_go_on_where_they_stopped() -> None:
    async with opened() as (app, pilot):
        await to_questions(app, pilot)
        await answer(app, pilot, model="demo", goal="style", use_case="learning")
        step = app.screen.title_text()  # type: ignore[attr-defined]
        assert step.startswith("step 4 of")
    async with opened() as (app, pilot):
        await until(pilot, lambda: f"Continue the wizard  at {step}" in visible(app))
        await press(pilot, "2")
        assert isinstance(app.screen, QuestionScreen)
        assert app.screen.question.id == "output"
        assert app.wizard.session.value("goal") == "style"


async def test_a_damaged_answers_file_is_set_aside_and_said() -> None:
    path = default_progress_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"version": 1, "answers": {"goal"')
    async with opened() as (app, pilot):
        await until(pilot, lambda: "set aside as answers.json.damaged" in " ".join(visible(app).split()))
        assert "Continue the wizard" not in visible(app)
    assert path.with_name("answers.json.damaged").exists()


async def test_answers_for_a_question_that_is_gone_are_left_out_and_said() -> None:
    path = default_progress_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": 1, "answers": {"goal": "style", "gone": "x"}, "current": "use_case"}))
    async with opened() as (app, pilot):
        await until(pilot, lambda: "Continue the wizard" in visible(app))
        app.open_wizard(fresh=False)
        await until(pilot, lambda: "no longer apply were left out: gone" in " ".join(visible(app).split()))
        assert app.wizard.session.current.id == "use_case"


async def test_a_live_run_comes_first_and_leaving_says_how_to_come_back() -> None:
    run_dir = write_golden(Golden())
    async with opened() as (app, pilot):
        await until(pilot, lambda: "1 Re-attach to the run that is working" in visible(app))
        assert f"{run_dir.name}, step 84/120" in visible(app)
        await press(pilot, "q")
        expected = f"Run {run_dir.name} continues. Re-attach: scaler-wizard attach {run_dir.name}"
        assert expected in app.farewell


async def test_digits_beyond_the_menu_do_nothing() -> None:
    async with opened() as (app, pilot):
        await press(pilot, "7", "9")
        assert len(app.screen_stack) == 2
        assert not isinstance(app.screen, MatrixScreen)
