"""A small app around the real screens, for tests of how they reach a terminal.

`python -m tests.support.display_app [--stock] [--churn] [--ticks FILE] [RUN_DIR]`: without a run it shows the list of
runs. `--churn` repaints everything four times a second, `--ticks` appends a line to a file per 250 ms timer tick.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
os.environ.setdefault("TEXTUAL_SMOOTH_SCROLL", "0")
os.environ.setdefault("ESCDELAY", "25")

import time
from pathlib import Path

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widgets import Static

from scaler_tui.lean_display import LeanDisplay
from scaler_tui.screens.run import STYLES, RunScreen
from scaler_tui.screens.runs import RunsScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.themes import THEMES

TICK_SECONDS = 0.25


class ChurnScreen(Screen[None]):
    """Every cell changes with every tick."""

    def compose(self) -> ComposeResult:
        yield Static(id="churn")

    def on_mount(self) -> None:
        self.tick = 0
        self.set_interval(TICK_SECONDS, self.repaint)

    def repaint(self) -> None:
        self.tick += 1
        width, height = self.size
        row = "".join(chr(33 + (self.tick + x) % 90) for x in range(width)).replace("[", "(")
        self.query_one(Static).update("\n".join(f"[reverse]{row[:10]}[/]{row[10:]}" for _ in range(height)))


class DisplayApp(LeanDisplay[None]):
    """Screens of the product under the display that is tested."""

    CSS_PATH = STYLES / "base.tcss"
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, run_dir: Path | None, ticks: Path | None, *, stock: bool, churn: bool) -> None:
        super().__init__(stock_display=stock)
        self.policy = RenderPolicy()
        self.run_dir, self.ticks, self.churn = run_dir, ticks, churn

    def on_mount(self) -> None:
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = THEMES[0].name
        if self.ticks is not None:
            self.set_interval(TICK_SECONDS, self.note_tick)
        if self.churn:
            self.push_screen(ChurnScreen())
        elif self.run_dir is not None:
            self.push_screen(RunScreen(self.run_dir))
        else:
            self.push_screen(RunsScreen())

    def note_tick(self) -> None:
        assert self.ticks is not None
        with self.ticks.open("a") as file:
            file.write(f"{time.monotonic()}\n")


def main(arguments: list[str]) -> None:
    """Parse by hand; it is a test program."""
    stock, churn = "--stock" in arguments, "--churn" in arguments
    ticks = Path(arguments[arguments.index("--ticks") + 1]) if "--ticks" in arguments else None
    rest = [word for word in arguments if not word.startswith("--") and (ticks is None or word != str(ticks))]
    DisplayApp(Path(rest[0]) if rest else None, ticks, stock=stock, churn=churn).run()


if __name__ == "__main__":
    main(sys.argv[1:])
