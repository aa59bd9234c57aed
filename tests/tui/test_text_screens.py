"""Large text in the wizard: sources checked by the command line's twin, weights by keys, the schedule drawn, limits."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from scaler_tui.app import ScalerApp
from scaler_tui.screens.limits import LimitsScreen
from scaler_tui.screens.review import ReviewScreen
from scaler_tui.screens.schedule import ScheduleScreen
from scaler_tui.screens.text import TextScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.text_plan import Checked
from scaler_tui.widgets.line_chart import LineChart
from tests.support.screen_host import until, visible
from tests.support.wizard_app import known_machine, opened, to_questions
from tests.unit.test_text_plan import report_of

APPROACH = "partial-expansion"


@asynccontextmanager
async def at_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, size: tuple[int, int] = (80, 24), sources: int = 2,
    policy: RenderPolicy | None = None,
) -> AsyncIterator[tuple[ScalerApp, Pilot[None]]]:  # fmt: skip
    """The text screen of the demo model grown by its recommended plan; the sources count as read."""
    known_machine(monkeypatch)
    async with opened(size, policy=policy) as (app, pilot):
        await to_questions(app, pilot)
        app.wizard.session.set_answer("data", "text")
        app.wizard.session.set_answer("goal", "research")
        plan = app.wizard.text
        plan.forget_checks("demo")
        for name, tokens in (("web", 300_000), ("code", 100_000))[:sources]:
            (tmp_path / name).mkdir()
            plan.add(str(tmp_path / name))
            plan.end_check(plan.sources[-1], Checked(report_of(plan.sources[-1], tokens)))
        app.wizard.count_text()
        app.open_matrix()
        app.choose_approach(APPROACH)
        await until(pilot, lambda: "Learns" in visible(app), seconds=60)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, TextScreen))
        yield app, pilot


async def typed(app: ScalerApp, pilot: Pilot[None], key: str, text: str, field: str) -> None:
    """Open the field with `key` and submit `text`."""
    await pilot.press(key)
    await until(pilot, lambda: isinstance(app.focused, Input))
    app.screen.query_one(field, Input).value = text
    await pilot.press("enter")
    await until(pilot, lambda: not isinstance(app.focused, Input))


@pytest.mark.parametrize("size", [(60, 20), (120, 40)])
async def test_sources_stand_with_weights_shares_and_tokens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: tuple[int, int]
) -> None:
    async with at_text(monkeypatch, tmp_path, size=size) as (app, pilot):
        await until(pilot, lambda: "300K" in visible(app))
        for expected in ("web", "code", "50 %", "100K", "every token once: 400K"):
            assert expected in visible(app)
        await pilot.press("right", "right")
        await until(pilot, lambda: "55 %" in visible(app))
        await pilot.press("s")
        await until(pilot, lambda: "75 %" in visible(app))
        await pilot.press("down", "0")
        await until(pilot, lambda: "100 %" in visible(app))
        assert app.wizard.text.sources[1].weight == 0
        await pilot.press("up", "0")
        await until(pilot, lambda: "All weights are 0" in visible(app))
        assert all(len(line) <= size[0] for line in visible(app).splitlines())


async def test_a_typed_path_is_read_by_the_command_and_its_faults_are_located(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [
        json.dumps({"text": f"The harbour bell of Orsa rang {n} times before the tide came in."}) for n in range(60)
    ]
    rows += [rows[3], "{broken", json.dumps({"body": "no text here"})]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    async with at_text(monkeypatch, tmp_path, sources=0) as (app, pilot):
        await until(pilot, lambda: "No source yet" in visible(app))
        await pilot.press("enter")
        assert isinstance(app.screen, TextScreen), "there is nothing to go on with"
        await typed(app, pilot, "a", "/no/such/place", "#text-field")
        await until(pilot, lambda: "There is no file or folder /no/such/place" in visible(app))
        await typed(app, pilot, "a", str(tmp_path / "rows.jsonl"), "#text-field")
        assert "reading" in visible(app)
        await until(pilot, lambda: "2 documents unr" in visible(app), seconds=90)
        text = visible(app)
        assert "1 duplicates" in text
        assert "line 62" in text
        assert "line 63" in text
        assert app.wizard.session.measured_tokens == app.wizard.text.tokens_of(app.wizard.text.sources[0]) > 500


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_schedule_is_drawn_and_its_stages_are_edited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: tuple[int, int]
) -> None:
    async with at_text(monkeypatch, tmp_path, size=size) as (app, pilot):
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ScheduleScreen))
        screen = app.screen
        assert isinstance(screen, ScheduleScreen)
        await until(pilot, lambda: screen.job is not None, seconds=60)
        await pilot.press("a")
        await until(pilot, lambda: screen.job is not None and len(screen.job.stages) == 2)
        await typed(app, pilot, "x", "web 0.2 code 0.8", "#stage-field")
        await typed(app, pilot, "o", "plateau 3", "#stage-field")
        await until(pilot, lambda: "3 evaluations" in visible(app))
        for expected in ("first", "second", "all", "web 20 %", "code 80 %"):
            assert expected in visible(app)
        await pilot.press("3")
        await until(pilot, lambda: len(screen.query_one("#chart-mix", LineChart).picture.rows) > 3)
        lines = "".join(screen.query_one("#chart-mix", LineChart).picture.lines)
        assert {"a", "b"} <= set(lines)
        await typed(app, pilot, "g", "hidden 8", "#stage-field")
        await until(pilot, lambda: screen.problem is not None or "shrink" in visible(app))
        assert "shrink" in visible(app)
        await typed(app, pilot, "g", "", "#stage-field")
        await until(pilot, lambda: screen.problem is None and screen.job is not None)
        assert all(len(line) <= size[0] for line in visible(app).splitlines())
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ReviewScreen))
        review = app.screen
        assert isinstance(review, ReviewScreen)
        await until(pilot, lambda: review.spec is not None)
        assert review.spec is not None
        assert [stage.max_tokens for stage in review.spec.stages] == [200_000, 200_000]
        assert review.spec.prediction.seconds_likely == pytest.approx(3600 * screen.job.whole.hours.likely, rel=0.01)


async def test_what_cannot_be_typed_for_a_stage_leaves_it_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with at_text(monkeypatch, tmp_path) as (app, pilot):
        app.wizard.text.decide(stages=())
        await pilot.press("enter")
        screen = app.screen
        assert isinstance(screen, ScheduleScreen)
        await until(pilot, lambda: screen.job is not None, seconds=60)
        before = app.wizard.text.choice
        await typed(app, pilot, "x", "books 1", "#stage-field")
        await until(pilot, lambda: "books" in visible(app))
        assert app.wizard.text.choice == before
        await typed(app, pilot, "t", "plenty", "#stage-field")
        await until(pilot, lambda: "is not a count" in visible(app))
        assert app.wizard.text.choice == before


async def test_limits_are_chosen_by_keys_and_cards_have_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with at_text(monkeypatch, tmp_path, size=(120, 40)) as (app, pilot):
        app.wizard.plan_for_card("RTX 4090")
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, LimitsScreen))
        await pilot.press("right")  # demo
        await pilot.press("down", "down", "3")  # plain English
        await pilot.press("down", "5", "down", "2")
        gate = app.wizard.text.choice.gates[0]
        assert (app.wizard.text.choice.tasks, gate.on, gate.most_lost, gate.action) == (
            ("demo",),
            "general",
            0.2,
            "hold",
        )
        await pilot.press("down", "down")
        await until(pilot, lambda: "tokens/s" in visible(app))
        assert "B each" in visible(app)
        assert "waits" in visible(app)  # several cards wait for each other's data


async def test_the_three_screens_are_ascii_where_that_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with at_text(monkeypatch, tmp_path, policy=RenderPolicy(unicode=False)) as (app, pilot):
        await until(pilot, lambda: "300K" in visible(app))
        assert visible_ascii(app)
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, LimitsScreen))
        assert visible_ascii(app)
        await pilot.press("escape", "enter")
        screen = app.screen
        await until(pilot, lambda: isinstance(screen, ScheduleScreen) and screen.job is not None, seconds=60)
        assert visible_ascii(app)


def visible_ascii(app: ScalerApp) -> bool:
    """Whether what reaches the terminal is ASCII: the app's filters see to that."""
    from scaler_tui.line_filters import AsciiFilter

    assert any(isinstance(one, AsciiFilter) for one in app.get_line_filters())
    lines = [line for line in visible(app).splitlines() if "─" not in line]  # borders go through the filter
    return all(line.replace("→", "").replace("–", "").replace("←", "").isascii() for line in lines)
