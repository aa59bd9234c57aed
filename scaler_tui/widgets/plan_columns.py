"""Plans side by side: one column each, shape in figures, needs as bars on one scale per row, the pointer on a column.

Owns the drawing of columns it is given. Must not know how a plan was made; every figure is text that is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from scaler_tui.glyphs import Glyphs, glyphs
from scaler_tui.growth_text import PlanColumn

LEAST_CELLS = 12
MOST_CELLS = 26
LABEL_CELLS = 11
QUIET = "$foreground 75%"


def columns_shown(count: int, pointed: int, width: int) -> tuple[int, range]:
    """(cells of a column, which columns): all where they fit, else a window that holds the pointed one."""
    room = width - LABEL_CELLS
    fit = max(min(room // (LEAST_CELLS + 1), count), 1)
    first = min(max(pointed - fit + 1, 0), count - fit) if pointed >= fit else 0
    return min(room // fit - 1, MOST_CELLS), range(first, first + fit)


def bar(share: float, base_share: float, cells: int, *, unicode: bool) -> Content:
    """A bar of `share` of `cells`, with a mark where the model is that is grown."""
    full, mark = ("█", "┃") if unicode else ("#", "|")
    filled = min(max(round(share * cells), 1 if share > 0 else 0), cells)
    text = Content.assemble((full * filled, "$primary"), " " * (cells - filled))
    if base_share <= 0:
        return text
    at = min(max(round(base_share * cells) - 1, 0), cells - 1)
    tone = "$background on $primary" if at < filled else "$foreground"
    return Content.assemble(text[:at], (mark, tone), text[at + 1 :])


class PlanColumns(Widget):
    """The plans; `pointer` is the column the keys are about. The first column is the model as it is."""

    DEFAULT_CSS = "PlanColumns { height: auto; width: 1fr; }"

    columns: reactive[tuple[PlanColumn, ...]] = reactive((), layout=True)
    pointer: reactive[int] = reactive(0)
    bars: reactive[int] = reactive(99, layout=True)
    """How many needs have a bar, the most telling first: where there is no room the figures stay."""

    def render(self) -> RenderResult:
        """Headings, shape, needs."""
        if not self.columns:
            return Content("")
        policy = getattr(self.app, "policy", None)
        unicode = policy.unicode if policy else True
        width = self.content_size.width or 78
        cells, shown = columns_shown(len(self.columns), self.pointer, width)
        drawer = _Drawer(self.columns, shown, cells, self.pointer, glyphs(unicode), unicode)
        return Content("\n").join(drawer.lines(bars=self.bars))


class _Drawer:
    """One drawing of some columns."""

    def __init__(
        self,
        columns: Sequence[PlanColumn],
        shown: range,
        cells: int,
        pointer: int,
        signs: Glyphs,
        unicode: bool,
    ) -> None:
        self.columns = columns
        self.shown = shown
        self.cells = cells
        self.pointer = pointer
        self.signs = signs
        self.unicode = unicode

    def lines(self, *, bars: int) -> list[Content]:
        """Every line; bars for that many needs."""
        first = self.columns[self.shown[0]]
        with_bar = {index for index, measure in enumerate(first.measures) if measure.rank < bars}
        lines = [self._headings()]
        for index, (label, _) in enumerate(first.shape):
            lines.append(self._row(label, [self.columns[at].shape[index][1] for at in self.shown]))
        for index, measure in enumerate(first.measures):
            lines.append(self._row(measure.label, [self.columns[at].measures[index].text for at in self.shown]))
            if index in with_bar:
                lines.append(self._bars(index))
        lines.append(self._row("Function", [self.columns[at].exact for at in self.shown], strong=True))
        return lines

    def _headings(self) -> Content:
        parts: list[Content] = [Content(" " * (LABEL_CELLS - 1))]
        parts.append(Content(self.signs.left if self.shown[0] > 0 else " ") if self.unicode else Content(" "))
        for at in self.shown:
            column = self.columns[at]
            star = f"{self.signs.star} " if column.recommended else ""
            pointer = f"{self.signs.pointer} " if at == self.pointer else ""
            text = f"{pointer}{star}{column.title}"[: self.cells].ljust(self.cells)
            parts.append(Content.styled(text, "reverse bold" if at == self.pointer else "bold"))
            parts.append(Content(" "))
        if self.shown[-1] + 1 < len(self.columns) and self.unicode:
            parts[-1] = Content(self.signs.right)
        return Content.assemble(*parts)

    def _row(self, label: str, texts: Sequence[str], *, strong: bool = False) -> Content:
        parts: list[Content] = [Content.styled(f"{label:<{LABEL_CELLS}}"[:LABEL_CELLS], QUIET)]
        for at, text in zip(self.shown, texts, strict=True):
            tone = "bold" if at == self.pointer or strong else ""
            cell = f"{text:<{self.cells}} "
            parts.append(Content.styled(cell, tone) if tone else Content(cell))
        return Content.assemble(*parts)

    def _bars(self, index: int) -> Content:
        parts: list[Content] = [Content(" " * LABEL_CELLS)]
        base = self.columns[0].measures[index].share
        for at in self.shown:
            share = self.columns[at].measures[index].share
            mark = base if at else 0.0
            parts += [bar(share, mark, self.cells - 1, unicode=self.unicode), Content("  ")]
        return Content.assemble(*parts)
