"""The loss chart as a widget on the line API: it repaints only the columns that changed.

Owns when to redraw; `chart_raster` decides what. Must not know runs or journals. Styles: `styles/run.tcss`.
"""

from __future__ import annotations

from itertools import groupby
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from scaler_tui.widgets.chart_raster import ChartData, ChartMode, Picture, Role, draw

EMPTY_PICTURE = Picture(())


def changed_regions(old: Picture, new: Picture) -> list[Region]:
    """The rectangles, one per group of neighbouring changed columns, that differ between two equally large pictures."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for y, (before, after) in enumerate(zip(old.rows, new.rows, strict=True)):
        if before is after or before == after:
            continue
        for x, (was, now) in enumerate(zip(before, after, strict=True)):
            if was != now:
                first.setdefault(x, y)
                last[x] = y
    regions: list[Region] = []
    for x in sorted(first):
        if regions and regions[-1].right == x:
            previous = regions.pop()
            top, bottom = min(previous.y, first[x]), max(previous.bottom, last[x] + 1)
            regions.append(Region(previous.x, top, previous.width + 1, bottom - top))
        else:
            regions.append(Region(x, first[x], 1, last[x] + 1 - first[x]))
    return regions


class LineChart(Widget):
    """Training loss as a line, evaluation loss as marks."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"line-chart--{role.value}" for role in Role}

    def __init__(self, *, mode: ChartMode = ChartMode.BRAILLE, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.mode = mode
        self.data: ChartData | None = None
        """None until the first `show`: the area stays blank."""
        self.picture = EMPTY_PICTURE

    def show(self, data: ChartData) -> None:
        """Draw `data`; sends nothing when the picture stays the same."""
        self.data = data
        self._redraw()

    def on_resize(self, event: events.Resize) -> None:
        self._redraw()

    def _redraw(self) -> None:
        width, height = self.content_size
        if width <= 0 or height <= 0 or self.data is None:
            return
        old, self.picture = self.picture, draw(self.data, width, height, self.mode)
        same_shape = len(old.rows) == height and bool(old.rows) and len(old.rows[0]) == width
        if not same_shape:
            self.refresh()
            return
        regions = changed_regions(old, self.picture)
        if regions:
            offset = self.gutter.top_left
            self.refresh(*(region.translate(offset) for region in regions))

    def render_line(self, y: int) -> Strip:
        rows = self.picture.rows
        if y >= len(rows):
            return Strip.blank(self.content_size.width, self.rich_style)
        segments = [
            Segment("".join(character for character, _ in cells), self._role_style(role))
            for role, cells in ((role, list(group)) for role, group in groupby(rows[y], key=lambda cell: cell[1]))
        ]
        return Strip(segments, len(rows[y]))

    def _role_style(self, role: Role) -> Style:
        return self.get_component_rich_style(f"line-chart--{role.value}")
