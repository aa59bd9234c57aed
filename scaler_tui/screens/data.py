"""The report on the training rows: what is kept, dropped and cut, and which tokens carry loss.

Owns its drawing. The report is made in a process of its own (`feeds.data_check`) and kept by the wizard.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from scaler_tui.data_text import mask_rows, report_lines
from scaler_tui.feeds.data_check import DataChecked
from scaler_tui.screens.base import BACK_KEYS, FramedScreen


class DataScreen(FramedScreen):
    """The report, scrollable."""

    place = "training data"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(BACK_KEYS, "back", "Back", key_display="b"),
        Binding("pagedown,space", "scroll(10)", "Page"),
        Binding("pageup", "scroll(-10)", "Page", show=False),
        Binding("f", "check_file", "Check again"),
        Binding("up,k", "scroll(-1)", "Scroll", show=False),
        Binding("down,j", "scroll(1)", "Scroll", show=False),
        Binding("home", "scroll(-100000)", "To the start", show=False),
        Binding("end", "scroll(100000)", "To the end", show=False),
    ]

    def body(self) -> Iterable[Widget]:
        """One scrolling text."""
        with VerticalScroll(id="data-scroll", can_focus=False):
            yield Static(id="data", markup=False)

    def on_mount(self) -> None:
        """The report that is known, or a new check."""
        if self.scaler.wizard.data_is_checked:
            self.show_report()
        else:
            self.action_check_file()

    def action_check_file(self) -> None:
        """Read the file (again)."""
        wizard = self.scaler.wizard
        if not wizard.data_file:
            text = "No data file was named yet: go back and answer which data it should learn from."
            self.query_one("#data", Static).update(text)
            return
        self.query_one("#data", Static).update(f"Reading {wizard.data_file} for {wizard.model_source} ...")
        self.scaler.check_data(again=True)

    def action_scroll(self, lines: int) -> None:
        """Scroll the report."""
        self.query_one("#data-scroll", VerticalScroll).scroll_relative(y=lines, animate=False)

    def on_data_news(self, message: DataChecked) -> None:
        """The check has ended."""
        self.show_report()

    def show_report(self) -> None:
        """The report, or what is wrong with the file."""
        wizard = self.scaler.wizard
        error = wizard.data_problem
        if error is not None:
            text = Content.assemble(
                (f"{self.signs.no} {error.what}\n", "bold $text-error"),
                f"{error.cause}\n\nNext: {error.next_step}\n\nf checks again; b goes back to name another file.",
            )
            self.query_one("#data", Static).update(text)
        elif wizard.data_report is not None:
            self.query_one("#data", Static).update(self._report(wizard.data_report))

    def _report(self, report: dict[str, Any]) -> Content:
        parts: list[str | tuple[str, str]] = ["\n".join(report_lines(report, bar=self.signs.bar_full))]
        parts.append(("\n\nSample rows: what carries loss is bold and underlined\n", "bold"))
        for heading, runs in mask_rows(report):
            parts.append((f"{heading}  ", "bold"))
            parts += [(part, "bold underline" if trained else "$foreground 70%") for part, trained in runs]
            parts.append("\n")
        return Content.assemble(*parts)
