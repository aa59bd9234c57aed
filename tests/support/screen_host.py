"""An app that shows one screen as the real app does (style sheet, themes, policy), for Pilot tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from textual.app import App
from textual.pilot import Pilot
from textual.screen import Screen

from scaler_tui.screens.run import STYLES
from scaler_tui.terminal import RenderPolicy
from scaler_tui.themes import THEMES


class ScreenHost(App[None]):
    """Pushes `first` when it starts."""

    CSS_PATH = STYLES / "base.tcss"

    def __init__(self, first: Screen[Any], policy: RenderPolicy | None = None) -> None:
        super().__init__()
        self.first = first
        self.policy = policy or RenderPolicy()

    def on_mount(self) -> None:
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = THEMES[0].name
        self.push_screen(self.first)


def visible(app: App[Any]) -> str:
    """The characters on the screen, row by row, as a person sees them."""
    rows = []
    for strips in app.screen._compositor.render_strips():
        rows.append("".join(segment.text for segment in strips))
    return "\n".join(row.rstrip() for row in rows)


async def until(pilot: Pilot[Any], condition: Callable[[], Any], *, seconds: float = 15) -> None:
    """Let the app work until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened; the screen shows\n{visible(pilot.app)}")
        await pilot.pause(0.02)
    await pilot.pause()
