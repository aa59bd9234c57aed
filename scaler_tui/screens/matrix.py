"""The comparison matrix on a screen of its own: walk the rows, explain every figure, choose one.

Owns nothing but the pointer. Figures and explanations come from the engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from engine.advise.matrix import ApproachRow
from scaler_tui.screens.base import BACK_KEYS, FramedScreen
from scaler_tui.widgets.matrix_table import MatrixTable

_EXPLAINED = ("vram", "ram", "hours", "cost", "disk")


class MatrixScreen(FramedScreen):
    """Rows above, the chosen row's words or parts below."""

    place = "compare approaches"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("e,space", "explain", "Explain figures", key_display="e"),
        Binding("r", "recommended", "Recommended"),
        Binding("enter", "choose", "Choose this"),
        Binding(BACK_KEYS, "back", "Back", key_display="b"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._explaining = False

    def body(self) -> Iterable[Widget]:
        """Table and detail."""
        yield MatrixTable(id="matrix")
        with VerticalScroll(id="detail-scroll", can_focus=False):
            yield Static(id="detail")

    def on_mount(self) -> None:
        """Start on the recommended row."""
        self.show_matrix()

    def on_screen_resume(self) -> None:
        """The machine may have been changed."""
        super().on_screen_resume()
        self.show_matrix()

    def show_matrix(self) -> None:
        """Take the matrix from the wizard."""
        table = self.query_one(MatrixTable)
        matrix = self.scaler.wizard.matrix
        table.matrix = matrix
        if matrix is not None and table.cursor is None:
            table.cursor = [row.id for row in matrix.rows].index(matrix.recommended)
        self._show_detail()

    @property
    def _row(self) -> ApproachRow | None:
        table = self.query_one(MatrixTable)
        if table.matrix is None or table.cursor is None:
            return None
        return table.matrix.rows[table.cursor]

    def action_move(self, by: int) -> None:
        """Move the pointer; it stops at both ends."""
        table = self.query_one(MatrixTable)
        if table.matrix is not None:
            table.cursor = min(max((table.cursor or 0) + by, 0), len(table.matrix.rows) - 1)
            self._show_detail()

    def action_recommended(self) -> None:
        """Pointer to the recommended row."""
        table = self.query_one(MatrixTable)
        if table.matrix is not None:
            table.cursor = [row.id for row in table.matrix.rows].index(table.matrix.recommended)
            self._show_detail()

    def action_explain(self) -> None:
        """Words or parts."""
        self._explaining = not self._explaining
        self._show_detail()

    def action_choose(self) -> None:
        """Review the chosen approach; one that cannot run from here says why instead."""
        row = self._row
        if row is None:
            return
        if not row.runnable:
            self.notify(row.not_runnable_reason or "This version cannot run it.", title=row.title, severity="warning")
            return
        self.scaler.open_review(row.id)

    def _show_detail(self) -> None:
        row, matrix = self._row, self.scaler.wizard.matrix
        if row is None or matrix is None:
            return
        text = self._parts(row) if self._explaining else self._words(row)
        self.query_one("#detail", Static).update(text)

    def _words(self, row: ApproachRow) -> Text:
        matrix = self.scaler.wizard.matrix
        assert matrix is not None
        text = Text()
        text.append(f"{row.title}", "bold")
        text.append(f": {row.reason}\n")
        text.append(f"Fits? {row.verdict}: {row.verdict_reason}\n")
        if row.settings:
            text.append(f"Assumes: {row.settings}\n")
        text.append(f"Capacity: {row.effective_capacity}\nExpected: {row.performance}\n")
        if not row.runnable:
            text.append(f"Runs from here: no. {row.not_runnable_reason}\n")
        if row.id == matrix.recommended:
            text.append(f"Recommended: {matrix.recommendation}\n", "bold")
        elif row.id in matrix.otherwise:
            text.append(f"Instead of the recommended one: {matrix.otherwise[row.id]}\n")
        for warning in matrix.warnings:
            text.append(f"{self.signs.warn} {warning}\n")
        return text

    def _parts(self, row: ApproachRow) -> Text:
        from engine.advise.explain import explain

        text = Text(no_wrap=True)
        for column in _EXPLAINED:
            lines = explain(row, column)
            if not lines:
                continue
            text.append(f"{row.title}: {column}\n", "bold")
            for line in lines:
                text.append(f"  {line.label:<20} {line.value:>11}  ")
                text.append(f"{line.formula}{f'  [{line.source}]' if line.source else ''}\n", "dim")
        return text
