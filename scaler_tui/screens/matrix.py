"""The comparison matrix on a screen of its own: walk the rows, explain every figure, choose one.

Owns nothing but the pointer. Figures and explanations come from the engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Static

from engine.advise.matrix import ApproachRow
from engine.estimate.estimate import Estimate
from scaler_tui.feeds.data_check import DataChecked
from scaler_tui.screens.planning import PlanningScreen
from scaler_tui.widgets.breakdown import Cell, breakdown_content
from scaler_tui.widgets.fit_bar import FitBar
from scaler_tui.widgets.matrix_table import MatrixTable

_CELLS = {
    "memory": ("vram", "Memory"),
    "ram": ("ram", "RAM"),
    "hours": ("hours", "Time"),
    "cost": ("cost", "Money"),
    "disk": ("disk", "Disk"),
    "verdict": ("verdict", "Verdict"),
    "parameters": ("parameters", "Parameters"),
    "capacity": ("capacity", "Effective capacity"),
}
"""Cells that open, from left to right as the pointer walks: column of the table -> (engine's name, heading)."""


class MatrixScreen(PlanningScreen):
    """Rows above, the chosen row's memory bar and words, or all its figures, below."""

    place = "compare approaches"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "Choose"),
        Binding("b,escape,backspace", "back", "Back", key_display="b"),
        Binding("e", "explain", "Explain figures", tooltip="Open the cell: its parts, the formula and source of each"),
        Binding("right", "cell(1)", "Next cell", key_display="←→", show=False),
        Binding("left", "cell(-1)", "Cell before", show=False),
        Binding("r", "recommended", "Recommended"),
        Binding("w", "hardware", "Other card"),
        Binding("up,k", "move(-1)", "Row", show=False),
        Binding("down,j", "move(1)", "Row", show=False),
        Binding("pagedown,space", "scroll(5)", "Scroll the words below", show=False),
        Binding("pageup", "scroll(-5)", "Scroll the words below", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._cell = ""
        """The cell that is open; "" shows words."""

    def body(self) -> Iterable[Widget]:
        """Table, bar and detail."""
        yield MatrixTable(id="matrix")
        with VerticalScroll(id="detail-scroll", can_focus=False):
            yield FitBar(id="fit")
            yield Static(id="detail")

    def on_mount(self) -> None:
        """Start on the recommended row."""
        self.replan()

    def on_data_news(self, message: DataChecked) -> None:
        """The rows were counted."""
        self.replan()

    def on_resize(self, event: Resize) -> None:
        """The words wrap anew."""
        self.call_after_refresh(self.replan)

    def replan(self) -> None:
        """Take the matrix from the wizard."""
        wizard = self.scaler.wizard
        table = self.query_one(MatrixTable)
        matrix = wizard.matrix
        table.waiting = wizard.waiting_for
        table.matrix = matrix
        if matrix is not None and table.cursor is None:
            table.cursor = [row.id for row in matrix.rows].index(matrix.recommended)
        room = self.size.height - 2 - 4
        table.limit = room if matrix and room < len(matrix.rows) + 1 and room >= 3 else 99
        self._show_detail()

    @property
    def row(self) -> ApproachRow | None:
        """The row under the pointer."""
        table = self.query_one(MatrixTable)
        if table.matrix is None or table.cursor is None:
            return None
        return table.matrix.rows[table.cursor]

    def action_move(self, by: int) -> None:
        """Move the pointer; it stops at both ends."""
        table = self.query_one(MatrixTable)
        rows = table.shown_rows()
        if rows and table.cursor is not None:
            at = rows.index(table.cursor) if table.cursor in rows else 0
            table.cursor = rows[min(max(at + by, 0), len(rows) - 1)]
            self._show_detail()
            self.query_one("#detail-scroll", VerticalScroll).scroll_home(animate=False)

    def action_scroll(self, lines: int) -> None:
        """Scroll what is below the table."""
        self.query_one("#detail-scroll", VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_recommended(self) -> None:
        """Pointer to the recommended row."""
        table = self.query_one(MatrixTable)
        if table.matrix is not None:
            table.cursor = [row.id for row in table.matrix.rows].index(table.matrix.recommended)
            self._show_detail()

    def action_explain(self) -> None:
        """Open the row's memory, or close what is open."""
        self._open("" if self._cell else self._cells()[0])

    def action_cell(self, by: int) -> None:
        """Open the next cell of the row, or the one before; left of the first one is where one came from."""
        cells = self._cells()
        if not self._cell and by < 0:
            self.action_back()
            return
        at = cells.index(self._cell) + by if self._cell in cells else 0
        self._open("" if at < 0 else cells[min(at, len(cells) - 1)])

    def _open(self, cell: str) -> None:
        self._cell = cell
        self._show_detail()
        self.query_one("#detail-scroll", VerticalScroll).scroll_home(animate=False)

    def _cells(self) -> list[str]:
        """What can be opened; RAM is the memory itself on a machine without a GPU."""
        on_cpu = self.row is not None and not self.row.vram.likely
        return [cell for cell in _CELLS if not (cell == "ram" and on_cpu)]

    def action_hardware(self) -> None:
        """Plan for another card."""
        self.scaler.open_hardware()

    def action_choose(self) -> None:
        """Review the chosen approach; one that cannot run from here says why instead."""
        row = self.row
        if row is None:
            return
        if not row.runnable:
            self.notify(row.not_runnable_reason or "This version cannot run it.", title=row.title, severity="warning")
            return
        self.scaler.choose_approach(row.id)

    def _show_detail(self) -> None:
        row, machine = self.row, self.scaler.wizard.machine
        bar = self.query_one(FitBar)
        if row is None or machine is None:
            bar.display = False
            self.query_one("#detail", Static).update("")
            return
        from scaler_tui.machines import free_bytes_for

        on_gpu = row.vram.likely > 0
        bar.display = not (self._cell or row.obstacle)
        self.query_one(MatrixTable).opened = self._cell
        bar.legend = self.size.height >= 23
        bar.show(row.vram if on_gpu else row.ram, free_bytes_for(row.id, machine), "VRAM" if on_gpu else "RAM")
        self.query_one("#detail", Static).update(self._figures(row) if self._cell else self._words(row))

    def _words(self, row: ApproachRow) -> Content:
        matrix, wizard = self.scaler.wizard.matrix, self.scaler.wizard
        assert matrix is not None
        bold = "bold"
        parts: list[Content | str | tuple[str, str]] = [(row.title, bold), f": {row.reason}\n"]
        if not row.obstacle:
            parts += [("Fits? ", bold), f"{row.verdict}: {row.verdict_reason}\n"]
        if not row.runnable:
            parts += [("Runs from here: no. ", bold), f"{row.not_runnable_reason}\n"]
        if row.id == matrix.recommended:
            parts += [(f"{self.signs.star} Recommended: ", bold), f"{matrix.recommendation}\n"]
        elif row.id in matrix.otherwise:
            parts += [("Instead of the recommended one: ", bold), f"{matrix.otherwise[row.id]}\n"]
        parts += [("Capacity: ", bold), f"{row.effective_capacity}\n", ("Expected: ", bold), f"{row.performance}\n"]
        if row.settings:
            parts += [("Assumes: ", bold), f"{row.settings}\n"]
        if wizard.data_words:
            parts += [("Data: ", bold), f"{wizard.data_words}\n"]
        parts += [f"{self.signs.warn} {warning}\n" for warning in matrix.warnings]
        return Content.assemble(*parts)

    def _figures(self, row: ApproachRow) -> Content:
        """The open cell taken apart."""
        from engine.advise.explain import Column, explain
        from scaler_tui.machines import free_bytes_for

        column, heading = _CELLS[self._cell]
        if column == "vram" and not row.vram.likely:
            column = "ram"
        figures: dict[str, Estimate] = {
            "vram": row.vram, "ram": row.ram, "hours": row.hours, "cost": row.cost_usd, "disk": row.disk
        }  # fmt: skip
        machine = self.scaler.wizard.machine
        free = math.inf
        if self._cell == "memory" and machine is not None:
            free = free_bytes_for(row.id, machine)
        signs = self.signs
        hint = f"{signs.left} {signs.right} other cells"
        cell = Cell(f"{heading} of {row.title}", hint, explain(row, Column(column)), figures.get(column), free)
        return breakdown_content(cell, max(self.size.width - 4, 30), unicode=self.scaler.policy.unicode)
