"""The report on the training rows: what is kept, dropped and cut, and which tokens carry loss.

Owns its drawing. The report is made by `scaler-wizard data check` in a process of its own, because a large file takes
a while and a terminal must not wait.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import Any, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from engine.errors import EngineError
from scaler_tui.data_text import mask_rows, report_lines
from scaler_tui.screens.base import BACK_KEYS, FramedScreen


class DataChecked(Message):
    """The process has answered: a report, or an error."""

    def __init__(self, report: dict[str, Any] | None, error: EngineError | None) -> None:
        super().__init__()
        self.report = report
        self.error = error


def run_check(data_file: str, model: str) -> tuple[dict[str, Any] | None, EngineError | None]:
    """Run the headless twin and read its JSON."""
    command = [sys.executable, "-m", "scaler_tui", "data", "check", data_file, "--model", model, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    try:
        document = json.loads(result.stdout)
    except json.JSONDecodeError:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        return None, EngineError("data.check", "The data check ended without a report.", cause=last)
    if "error" in document:
        error = document["error"]
        return None, EngineError(error["code"], error["what"], cause=error["cause"], next_step=error["next_step"])
    return document, None


class DataScreen(FramedScreen):
    """The report, scrollable."""

    place = "training data"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll(-1)", "Up", show=False),
        Binding("down,j", "scroll(1)", "Down", show=False),
        Binding("pageup", "scroll(-10)", "Page up", show=False),
        Binding("pagedown,space", "scroll(10)", "Page down"),
        Binding("f", "check_file", "Check again"),
        Binding(BACK_KEYS, "back", "Back", key_display="b"),
    ]

    def body(self) -> Iterable[Widget]:
        """One scrolling text."""
        with VerticalScroll(id="data-scroll", can_focus=False):
            yield Static("Reading the rows ...", id="data")

    def on_mount(self) -> None:
        """Start the check."""
        self.action_check_file()

    def action_check_file(self) -> None:
        """Read the file (again)."""
        wizard = self.scaler.wizard
        data_file, model = wizard.data_file, wizard.model_source
        self.query_one("#data", Static).update(f"Reading {data_file} ...")

        def work() -> None:
            self.post_message(DataChecked(*run_check(data_file, model)))

        threading.Thread(target=work, name="data check", daemon=True).start()

    def action_scroll(self, lines: int) -> None:
        """Scroll the report."""
        self.query_one("#data-scroll", VerticalScroll).scroll_relative(y=lines, animate=False)

    def on_data_checked(self, message: DataChecked) -> None:
        """Show the report, or what is wrong with the file."""
        text = Text()
        if message.error is not None:
            text.append(f"{self.signs.no} {message.error.what}\n", "bold")
            text.append(f"{message.error.cause}\n\nNext: {message.error.next_step}\n")
        elif message.report is not None:
            text = self._report(message.report)
        self.query_one("#data", Static).update(text)

    def _report(self, report: dict[str, Any]) -> Text:
        text = Text("\n".join(report_lines(report, bar=self.signs.bar_full)))
        text.append("\n\nSample rows: what carries loss is underlined\n", "bold")
        for heading, runs in mask_rows(report):
            text.append(f"{heading}  ", "bold")
            for part, trained in runs:
                text.append(part, "bold underline" if trained else "dim")
            text.append("\n")
        return text
