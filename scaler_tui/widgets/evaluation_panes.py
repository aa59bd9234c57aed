"""Two panes of the run screen: bits per byte of every text over the run, and what became of the model's abilities.

Own their layout and the scale of the curves; wording is in `evaluation_words`. Must not know files or threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content

from scaler_tui.widgets import evaluation_words
from scaler_tui.widgets.chart_raster import ChartData, ChartMode
from scaler_tui.widgets.line_chart import LineChart
from scaler_tui.widgets.status_line import FixedText, clip, toned

if TYPE_CHECKING:
    from scaler_tui.feeds.journal_feed import RunSnapshot

WIDE = 110
"""Cells from which the table stands beside the chart; as the style sheet has it."""


class EvaluationPane(Container):
    """Curves of suites, and their figures."""

    def __init__(self, *, unicode: bool, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._unicode = unicode
        self.relative = False
        """Whether the curves show their change instead of their value."""

    def compose(self) -> ComposeResult:
        with Vertical(id="suites"):
            yield FixedText(id="suite-legend")
            yield LineChart(id="suite-chart", mode=ChartMode.BRAILLE if self._unicode else ChartMode.ASCII)
        yield FixedText(id="suite-table")

    def on_mount(self) -> None:
        self.query_one("#suites").border_title = "Evaluation"

    def show(self, snapshot: RunSnapshot) -> None:
        """Draw the newest figures."""
        width, height = self.app.size
        table, legend = self.query_one("#suite-table", FixedText), self.query_one("#suite-legend", FixedText)
        beside = width >= WIDE
        room = max(table.content_size.width if beside else width - 2, 30)
        most = height - 8 if beside else max(height // 2 - 3, 4)
        content = evaluation_words.suite_table(snapshot, room, most, unicode=self._unicode)
        if beside:
            content = self._with_benchmarks(content, snapshot, room)
        table.display = bool(content.plain)
        table.show(content)
        words = f" {evaluation_words.suite_legend(snapshot, relative=self.relative)}"
        legend.show(toned(clip(words, legend.content_size.width or width, unicode=self._unicode), "quiet"))
        lines = evaluation_words.suite_lines(snapshot, relative=self.relative)
        chart = ChartData(lines=lines, total_steps=snapshot.state.total_steps, empty="No text was measured yet.")
        self.query_one(LineChart).show(chart)

    def _with_benchmarks(self, table: Content, snapshot: RunSnapshot, room: int) -> Content:
        lines = evaluation_words.benchmark_lines(snapshot.state.findings.benchmarks, room, unicode=self._unicode)
        blocks = [table, Content("\n").join(lines)]
        return Content("\n\n").join(block for block in blocks if block.plain)


class RetentionPane(VerticalScroll):
    """Against the parent model, benchmarks, recoveries."""

    def __init__(self, *, unicode: bool, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._unicode = unicode

    def compose(self) -> ComposeResult:
        yield FixedText(id="retention-text")

    def show(self, snapshot: RunSnapshot) -> None:
        """Write the newest findings."""
        width = max(self.app.size.width - 4, 30)  # with room for the scroll bar, whether or not it is there yet
        self.query_one(FixedText).show(evaluation_words.retention_content(snapshot, width, unicode=self._unicode))
