"""Labs in the wizard: how far each is, its verdicts in words, its figures before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.lab.folder import folder_of, make
from engine.lab.ready import find_lab
from engine.lab.report import make_report, write_report
from scaler_tui.feeds import labs_feed
from scaler_tui.feeds.labs_feed import LabRow, read_labs, start_lab
from scaler_tui.screens.labs import LabsScreen, size_words
from scaler_tui.screens.problem import ConfirmScreen
from tests.support.cli import wait_for
from tests.support.labs import begun, finish, small_lab
from tests.support.screen_host import until, visible
from tests.support.wizard_app import known_machine, opened, press


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known_machine(monkeypatch)


def flat(app: Any) -> str:
    """The screen as one line."""
    return " ".join(visible(app).split())


async def labs(app: Any, pilot: Any) -> LabsScreen:
    """By the menu of the welcome screen."""
    number = next(n for n, entry in enumerate(app.screen._entries(), 1) if entry[0] == "labs")
    await press(pilot, str(number))
    assert isinstance(app.screen, LabsScreen)
    screen = app.screen
    await until(pilot, lambda: screen.rows is not None)
    return screen


async def test_ready_labs_and_those_with_a_folder_are_listed_and_verdicts_are_told(tmp_path: Path) -> None:
    lab = small_lab(tmp_path)
    folder = begun(lab)
    for seed in (1, 2, 3):
        finish(folder, "LoRA", seed, 1.0 + seed / 100, exact=0.9)
        finish(folder, "full", seed, 2.0 + seed / 100, exact=0.1)
    report = make_report(lab, folder)
    write_report(folder, report)
    async with opened() as (app, pilot):
        screen = await labs(app, pilot)
        assert screen.rows is not None
        assert "Growth against a LoRA baseline" in flat(app)
        assert "not started" in flat(app)
        await press(pilot, *["down"] * (len(screen.rows) - 1), "enter")
        seen = flat(app)
        assert "all 6 runs finished" in seen
        assert " ".join(report.verdicts[0].words.split()) in seen
        assert report.verdicts[0].winner == "LoRA"
        assert all(len(line) <= 80 for line in visible(app).splitlines())


async def test_s_tells_the_figures_and_starts_only_when_they_are_agreed_to(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[LabRow] = []
    monkeypatch.setattr("scaler_tui.screens.labs.start_lab", lambda _, row: started.append(row))
    async with opened() as (app, pilot):
        screen = await labs(app, pilot)
        await press(pilot, "down", "s")
        assert screen.pointed is not None
        assert screen.pointed.name == "demo-lora-baseline"
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), seconds=60)
        seen = flat(app)
        assert "12 runs (3 seeds), one after the other: about" in seen
        assert "LoRA, rank 16:" in seen
        await press(pilot, "n")
        assert not started
        await press(pilot, "s")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), seconds=60)
        await press(pilot, "y")
        assert [row.name for row in started] == [screen.pointed.name]


def test_a_lab_that_is_worked_on_says_so_and_a_second_start_is_told_why_not() -> None:
    folder = make(folder_of(find_lab("demo-lora-baseline")))
    ended: list[labs_feed.LabEnded] = []

    class Inbox:
        def post_message(self, message: labs_feed.LabEnded) -> bool:
            ended.append(message)
            return True

    with folder.held():
        row = next(row for row in read_labs() if row.name == "demo-lora-baseline")
        assert row.working
        start_lab(Inbox(), row)  # type: ignore[arg-type]
        wait_for(lambda: ended, "the second process gives up")
    assert ended[0].error is not None
    assert ended[0].error.code == "lab.live"
    assert json.loads((folder.path / labs_feed.ANSWER).read_text())["error"]["code"] == "lab.live"
    assert not next(row for row in read_labs() if row.name == "demo-lora-baseline").working


def test_runs_that_are_finished_are_told_with_the_figures() -> None:
    row = LabRow("a", "A", "", Path(), (), 2, 6, False, True)
    told = {"runs": 6, "seeds": [1, 2, 3], "seconds": 60.0, "arms": []}
    assert "2 are finished already" in size_words(row, told)
