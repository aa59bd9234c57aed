"""The comparison matrix as a table that drops whole columns by priority and never cuts a number.

Owns layout of rows and columns. Must not know how any figure was computed: it prints the estimates it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text
from textual.app import RenderResult
from textual.geometry import Size
from textual.reactive import reactive
from textual.widget import Widget

from engine.advise.matrix import ApproachRow, Matrix
from engine.estimate.estimate import Estimate, Verdict
from engine.units import format_bytes, format_count, format_hours, format_range, format_usd
from scaler_tui.glyphs import Glyphs, glyphs

_VERDICT_STYLE = {Verdict.FITS: "fits", Verdict.TIGHT: "tight", Verdict.NO: "no"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading and how a row prints in it. Columns further down the list are dropped first."""

    id: str
    heading: str
    text: Callable[[ApproachRow, Glyphs], str]
    right: bool = True


def _memory(row: ApproachRow) -> Estimate:
    return row.vram if row.vram.likely > 0 else row.ram


def verdict_text(row: ApproachRow, signs: Glyphs) -> str:
    """ "✓ fits", "! tight", "✗ no": glyph and word, colour comes on top."""
    if row.obstacle:
        return f"{signs.no} {row.obstacle}"
    glyph = {Verdict.FITS: signs.ok, Verdict.TIGHT: signs.warn, Verdict.NO: signs.no}[row.verdict]
    return f"{glyph} {row.verdict}"


def _of_plan(text: Callable[[ApproachRow], str]) -> Callable[[ApproachRow, Glyphs], str]:
    """A figure; nothing for a plan that cannot be."""
    return lambda row, _: "" if row.obstacle else text(row)


def _usd_range(row: ApproachRow) -> str:
    return format_range(format_usd(row.cost_usd.low), format_usd(row.cost_usd.high))


def _parameters(row: ApproachRow, signs: Glyphs) -> str:
    base, final = format_count(row.base_parameters), format_count(row.final_parameters)
    return base if base == final else f"{base}{signs.arrow}{final}"


COLUMNS = (
    Column("verdict", "Fits?", verdict_text, right=False),
    Column("memory", "Memory", _of_plan(lambda row: format_bytes(_memory(row).likely))),
    Column("hours", "Time", _of_plan(lambda row: format_hours(row.hours.likely))),
    Column("cost", "Cost", _of_plan(lambda row: format_usd(row.cost_usd.likely))),
    Column("parameters", "Parameters", _parameters, right=False),
    Column("disk", "Disk", _of_plan(lambda row: format_bytes(row.disk.likely))),
    Column(
        "hours_range",
        "Time range",
        _of_plan(lambda row: format_range(format_hours(row.hours.low), format_hours(row.hours.high))),
    ),
    Column("cost_range", "Cost range", _of_plan(_usd_range)),
    Column("capacity", "Effective capacity", lambda row, _: row.effective_capacity, right=False),
    Column("ram", "RAM", _of_plan(lambda row: format_bytes(row.ram.likely))),
)
"""In order of priority."""


def visible_columns(rows: tuple[ApproachRow, ...], width: int, signs: Glyphs) -> list[tuple[Column, int]]:
    """The columns that fit into `width` cells beside the titles, each with its full width in cells."""
    used = 2 + max((len(row.title) for row in rows), default=8)
    chosen: list[tuple[Column, int]] = []
    for column in COLUMNS:
        cells = max([len(column.heading), *(len(column.text(row, signs)) for row in rows)])
        if used + 2 + cells > width:
            break
        used += 2 + cells
        chosen.append((column, cells))
    return chosen


class MatrixTable(Widget):
    """The matrix, one line per approach; `cursor` marks the row under the pointer, None shows no pointer."""

    DEFAULT_CSS = """
    MatrixTable { height: auto; width: 1fr; }
    """
    COMPONENT_CLASSES = {
        "matrix--heading",
        "matrix--fits",
        "matrix--tight",
        "matrix--no",
        "matrix--cursor",
        "matrix--recommended",
        "matrix--dim",
    }

    matrix: reactive[Matrix | None] = reactive(None, layout=True)
    cursor: reactive[int | None] = reactive(None)
    opened: reactive[str] = reactive("")
    """The column whose cell is open in the pointed row; "" for none."""
    limit: reactive[int] = reactive(99, layout=True)
    """How many rows there is room for: the recommended one comes first, the rest in the engine's order."""
    waiting: reactive[str] = reactive("Looking at the machine and the model ...", layout=True)
    """What it says as long as there is no matrix."""

    def shown_rows(self) -> list[int]:
        """Indices of the rows that are drawn."""
        if self.matrix is None:
            return []
        ids = [row.id for row in self.matrix.rows]
        if self.limit >= len(ids):
            return list(range(len(ids)))
        first = ids.index(self.matrix.recommended)
        return sorted([first, *[index for index in range(len(ids)) if index != first][: max(self.limit - 1, 0)]])

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """One line per row and the heading, whatever the width: while the table is hidden its columns are not chosen
        for the width it is about to get, so the lines of `render` cannot be counted."""
        if self.matrix is None:
            return super().get_content_height(container, viewport, width)
        return 1 + len(self.shown_rows())

    def render(self) -> RenderResult:
        """Heading and rows."""
        if self.matrix is None:
            return Text(self.waiting)
        policy = getattr(self.app, "policy", None)
        signs = glyphs(policy.unicode if policy else True)
        width = self.content_size.width or 80
        columns = visible_columns(self.matrix.rows, width, signs)
        title_cells = max(len(row.title) for row in self.matrix.rows)
        text = Text(no_wrap=True, overflow="crop")
        heading = "  " + "Approach".ljust(title_cells)
        for column, cells in columns:
            heading += "  " + (column.heading.rjust(cells) if column.right else column.heading.ljust(cells))
        text.append(heading.rstrip(), self.get_component_rich_style("matrix--heading", partial=True))
        for index in self.shown_rows():
            line = self._line(self.matrix.rows[index], index, columns, title_cells, signs)
            if index == self.cursor:
                line.pad_right(max(width - line.cell_len, 0))
                line.stylize(self.get_component_rich_style("matrix--cursor", partial=True))
            text.append("\n")
            text.append_text(line)
        return text

    def _line(
        self, row: ApproachRow, index: int, columns: list[tuple[Column, int]], title_cells: int, signs: Glyphs
    ) -> Text:
        recommended = self.matrix is not None and row.id == self.matrix.recommended
        pointer = signs.pointer if index == self.cursor else signs.star if recommended else " "
        line = Text()
        title_style: Style | str = ""
        verdict = Verdict.NO if row.obstacle else row.verdict
        if recommended or verdict is Verdict.NO:
            name = "matrix--recommended" if recommended else "matrix--dim"
            title_style = self.get_component_rich_style(name, partial=True)
        line.append(f"{pointer} ", title_style)
        line.append(row.title.ljust(title_cells), title_style)
        for column, cells in columns:
            cell = column.text(row, signs)
            style = (
                self.get_component_rich_style(f"matrix--{_VERDICT_STYLE[verdict]}", partial=True)
                if column.id == "verdict"
                else title_style
                if verdict is Verdict.NO
                else ""
            )
            line.append("  ")
            line.append(cell.rjust(cells) if column.right else cell.ljust(cells), style)
            if index == self.cursor and column.id == self.opened:
                start = len(line) - (len(cell) if column.right else cells)
                line.stylize("bold underline", start, start + len(cell))
        return line
