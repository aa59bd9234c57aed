"""The real app with a machine that is the same everywhere, for Pilot tests and screenshots."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

import scaler_tui.app as app_module
from engine.hardware.machine import Cpu, Disk, Machine, Problem, Ram, Source
from scaler_tui.app import ScalerApp, Start
from scaler_tui.feeds.startup import StartupNews
from scaler_tui.screens.question import QuestionScreen
from scaler_tui.terminal import RenderPolicy
from tests.support.screen_host import until

GIB = 1024**3
SIZES = [(60, 20), (80, 24), (120, 40)]
WORKSTATION = Machine(
    gpus=(),
    cpu=Cpu("AMD Ryzen 7 5800X", 8),
    ram=Ram(32 * GIB, 24 * GIB, Source.SYSTEM),
    disks=(
        Disk("runs", "/home/ada/.local/share/scaler-wizard", 210 * GIB, 480 * GIB),
        Disk("models", "/home/ada/.cache/huggingface/hub", 210 * GIB, 480 * GIB),
    ),
    problems=(Problem("gpu", "No GPU driver answered.", "Nothing to do unless there is a card."),),
    label="no GPU, 8 cores",
)


def known_machine(monkeypatch: Any, machine: Machine = WORKSTATION) -> None:
    """From now on the app finds `machine` instead of looking at the one the test runs on."""
    monkeypatch.setattr(app_module, "read_machine", lambda: StartupNews(machine=machine))


@asynccontextmanager
async def opened(
    size: tuple[int, int] = (80, 24), start: Start | None = None, policy: RenderPolicy | None = None
) -> AsyncIterator[tuple[ScalerApp, Pilot[None]]]:
    """The app on its welcome screen, machine and runs read."""
    app = ScalerApp(policy or RenderPolicy(), start or Start(demo=True))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.wizard.detected is not None)
        yield app, pilot


async def press(pilot: Pilot[Any], *keys: str) -> None:
    """Keys one after the other, the app given time to settle after each."""
    for key in keys:
        await pilot.press(key)
        await pilot.pause()


async def to_questions(app: ScalerApp, pilot: Pilot[Any]) -> QuestionScreen:
    """Choose "Plan something new" and wait for the matrix of the demo model."""
    app.open_wizard(fresh=True)
    await until(pilot, lambda: isinstance(app.screen, QuestionScreen))
    await until(pilot, lambda: app.wizard.matrix is not None)
    assert isinstance(app.screen, QuestionScreen)
    return app.screen


async def answer(app: ScalerApp, pilot: Pilot[Any], **values: Any) -> None:
    """Answer questions from the one in hand on: the given ones as given, the others with what they have."""
    session = app.wizard.session
    screen = app.screen
    assert isinstance(screen, QuestionScreen)
    while values and not session.finished:
        question = session.current
        screen._answer(values.pop(question.id, session.value(question.id)))
        await pilot.pause()


async def type_text(pilot: Pilot[Any], text: str) -> None:
    """Type into the focused field."""
    names = {"/": "slash", ".": "full_stop", "-": "minus", "_": "underscore", " ": "space"}
    await pilot.press(*[names.get(character, character) for character in text])


def rows_file(path: Path, count: int = 12) -> Path:
    """A small chat data set."""
    rows = [
        f'{{"messages":[{{"role":"user","content":"What is {n} plus 1?"}},{{"role":"assistant","content":"{n + 1}"}}]}}'
        for n in range(count)
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
