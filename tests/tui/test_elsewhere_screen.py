"""Elsewhere: from the review to another machine over ssh, or to a job file, without leaving the wizard."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

import scaler_tui.feeds.elsewhere_feed as elsewhere_feed
from engine.errors import EngineError
from engine.jobs.spec_toml import load_spec
from scaler_tui.screens.elsewhere import ElsewhereScreen
from scaler_tui.screens.problem import ConfirmScreen
from scaler_tui.screens.review import ReviewScreen
from scaler_tui.screens.run import RunScreen
from scaler_tui.screens.welcome import WelcomeScreen
from tests.support.golden_runs import Golden, write_golden
from tests.support.screen_host import until, visible
from tests.support.wizard_app import SIZES, known_machine, opened, press, type_text


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known_machine(monkeypatch)
    monkeypatch.chdir(tmp_path)


def flat(app: object) -> str:
    """The screen as one line."""
    return " ".join(visible(app).split())  # type: ignore[arg-type]


async def elsewhere(app: Any, pilot: Any) -> ElsewhereScreen:
    """By its key from the demo's review."""
    await press(pilot, "1")
    await until(pilot, lambda: isinstance(app.screen, ReviewScreen) and app.screen.spec is not None)
    await press(pilot, "e")
    assert isinstance(app.screen, ElsewhereScreen)
    return app.screen


async def test_the_review_says_the_key_and_the_places_fit() -> None:
    for size in SIZES[:2]:
        async with opened(size) as (app, pilot):
            await press(pilot, "1")
            await until(pilot, lambda app=app: isinstance(app.screen, ReviewScreen) and app.screen.spec is not None)
            if size[0] >= 80:
                assert "e Elsewhere" in visible(app).splitlines()[-1]
            await press(pilot, "e")
            seen = flat(app)
            for expected in ("Another machine over ssh", "A SkyPilot job file", "A dstack job file", "? Help"):
                assert expected in seen, (size, expected)
            assert all(len(line) <= size[0] for line in visible(app).splitlines())


async def test_a_job_file_is_replaced_whole_and_only_when_that_was_agreed_to(tmp_path: Path) -> None:
    out = tmp_path / "demo-qlora.sky.yaml"
    out.write_text("mine")
    async with opened() as (app, pilot):
        screen = await elsewhere(app, pilot)
        await press(pilot, "2", "enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await press(pilot, "enter")
        assert out.read_text() == "mine"
        assert screen.errand is None
        await press(pilot, "enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await press(pilot, "y")
        await until(pilot, lambda: screen.errand is None and app.screen is screen, seconds=60)
        assert screen.refusal is None
        assert yaml.safe_load(out.read_text())["resources"]
        assert load_spec(tmp_path / "demo-qlora.sky.files" / "spec.toml").task.value == "qlora"
        assert "sky jobs launch" in flat(app)
        assert str(out)[-20:] in "".join(flat(app).split())


async def test_dstack_is_given_the_typed_file_and_bucket(tmp_path: Path) -> None:
    async with opened() as (app, pilot):
        screen = await elsewhere(app, pilot)
        await press(pilot, "3", "t", "ctrl+u")
        await type_text(pilot, "mine.yaml")
        await press(pilot, "enter", "enter")
        assert screen.query_one("#place-field").has_focus, "it makes no buckets, so one is asked for"
        await type_text(pilot, "s3")
        await pilot.press("colon", "slash", "slash", *"bucket", "enter", "enter")
        await until(pilot, lambda: screen.errand is None and bool(screen.result), seconds=60)
        job = yaml.safe_load((tmp_path / "mine.yaml").read_text())
        assert job["type"] == "task"
        assert "dstack apply -f" in flat(app)


async def test_a_host_that_is_not_there_is_refused_in_words_and_can_be_corrected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ssh = tmp_path / "ssh"  # the real one would wait for this machine's name servers
    ssh.write_text('#!/bin/sh\necho "ssh: Could not resolve hostname nowhere.invalid: Name not known" >&2\nexit 255\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("SCALER_WIZARD_SSH", str(ssh))
    async with opened() as (app, pilot):
        screen = await elsewhere(app, pilot)
        await press(pilot, "enter")
        assert screen.query_one("#place-field").has_focus, "a machine needs a name first"
        await type_text(pilot, "nowhere.invalid")
        await press(pilot, "enter")
        assert screen.errand is None, "nothing is sent by leaving the field"
        await press(pilot, "enter")
        assert "To nowhere.invalid" in flat(app)
        await until(pilot, lambda: screen.errand is None, seconds=60)
        assert screen.refusal is not None
        assert screen.refusal.code == "remote.unknown_host"
        assert "nowhere.invalid" in flat(app)
        await press(pilot, "t")
        assert screen.query_one("#place-field").value == "nowhere.invalid"  # type: ignore[attr-defined]


async def test_steps_are_shown_and_then_the_mirror_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = [], threading.Event()

    def answered(*words: str, say: Any = None) -> dict[str, str]:
        asked.append(words)
        say("Copying 12 MB ...")
        go_on.wait(10)
        return {"directory": str(write_golden(Golden()))}

    monkeypatch.setattr(elsewhere_feed, "ask_twin", answered)
    async with opened() as (app, pilot):
        await elsewhere(app, pilot)
        await press(pilot, "enter")
        await type_text(pilot, "box")
        await press(pilot, "enter", "enter")
        await until(pilot, lambda: "Copying 12 MB ..." in flat(app))
        await press(pilot, "enter")
        go_on.set()
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        assert [words[:2] for words in asked] == [("remote", "box")]
        assert {"--detach", "--json"} <= set(asked[0])
        assert isinstance(app.screen_stack[-2], WelcomeScreen)


async def test_an_end_is_said_where_the_screen_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def refused(*words: str, say: Any = None) -> dict[str, str]:
        go_on.wait(10)
        raise EngineError("remote.unreachable", "The box does not answer.")

    monkeypatch.setattr(elsewhere_feed, "ask_twin", refused)
    async with opened() as (app, pilot):
        await elsewhere(app, pilot)
        await press(pilot, "enter")
        await type_text(pilot, "box")
        await press(pilot, "enter", "enter", "b")
        assert isinstance(app.screen, ReviewScreen)
        go_on.set()
        await until(pilot, lambda: any("does not answer" in str(note.message) for note in app._notifications))
