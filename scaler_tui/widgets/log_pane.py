"""The log of a run: bounded, wrapped, with a filter, a level, and a view that follows until one scrolls back.

Owns which lines are visible. Must not know where they come from.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input

from scaler_tui.widgets.status_line import FixedText, toned

LogLine = tuple[float, str, str]
"""Wall time, level, message."""

LEVELS = ("all", "warnings", "errors")
_SHOWN_LEVELS = {"all": None, "warnings": ("warning", "error"), "errors": ("error",)}
_SIGNS = {"error": ("✗", "x"), "warning": ("!", "!")}
_PREFIX_CELLS = 11


def matching(lines: Sequence[LogLine], level: str, needle: str) -> list[LogLine]:
    """Lines of at least `level` that contain every word of `needle`, whatever its case."""
    allowed = _SHOWN_LEVELS[level]
    words = needle.lower().split()
    return [
        line
        for line in lines
        if (allowed is None or line[1] in allowed) and all(word in line[2].lower() for word in words)
    ]


@lru_cache(maxsize=8192)
def wrapped(message: str, width: int) -> tuple[str, ...]:
    """The message in lines of at most `width` characters; nothing is left out."""
    lines: list[str] = []
    for part in message.splitlines() or [""]:
        lines += textwrap.wrap(part, max(width, 8), drop_whitespace=True) or [""]
    return tuple(lines)


class LogLines(ScrollView, can_focus=True):
    """The visible lines on the line API: only what is on screen is rendered."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "log-lines--time", "log-lines--info", "log-lines--warning", "log-lines--error",
    }  # fmt: skip

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.unicode = True
        self.following = True
        """Whether the view moves along with new lines."""
        self._lines: list[LogLine] = []
        self._rows: list[tuple[str, str, str]] = []

    def show(self, lines: list[LogLine]) -> None:
        """Replace the lines; stays where one has scrolled to, else follows the newest."""
        if lines == self._lines and self._rows:
            return
        self._lines = lines
        self._layout_rows()

    def _layout_rows(self) -> None:
        following = self.following
        width = max(self.scrollable_content_region.width - _PREFIX_CELLS, 8)
        rows: list[tuple[str, str, str]] = []
        for when, level, message in self._lines:
            sign = _SIGNS.get(level, (" ", " "))[0 if self.unicode else 1]
            prefix = f"{time.strftime('%H:%M:%S', time.localtime(when))} {sign} "
            for text in wrapped(message, width):
                rows.append((prefix, level, text))
                prefix = " " * _PREFIX_CELLS
        self._rows = rows
        self.virtual_size = Size(self.scrollable_content_region.width, len(rows))
        self.refresh()
        if following:
            self.following = True
            self.call_after_refresh(self._to_newest)

    def _to_newest(self) -> None:
        if self.following:
            self.scroll_end(animate=False, immediate=True)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Scrolling back stops following; reaching the end follows again."""
        super().watch_scroll_y(old_value, new_value)
        self.following = self.is_vertical_scroll_end

    def on_resize(self, event: events.Resize) -> None:
        self._layout_rows()

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        index = y + self.scroll_offset.y
        if index >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        prefix, level, text = self._rows[index]
        segments = [Segment(prefix, self._style("time")), Segment(text, self._style(level))]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _style(self, level: str) -> Style:
        known = level if level in ("time", "warning", "error") else "info"
        return self.get_component_rich_style(f"log-lines--{known}")


class FilterInput(Input):
    """Esc clears the filter and gives the keys back to the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "clear_filter", "Clear the filter", show=False)]

    def action_clear_filter(self) -> None:
        """Show everything again."""
        self.value = ""
        self.post_message(Input.Submitted(self, ""))


class LogPane(Vertical):
    """Heading with counts, an input for the filter when it is wanted, and the lines."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.level = LEVELS[0]
        self.needle = ""
        self.unicode = True
        self._all: Sequence[LogLine] = ()

    def compose(self) -> ComposeResult:
        yield FixedText(id="log-heading")
        field = FilterInput(placeholder="words that a line must contain; Enter keeps, Esc clears", id="log-filter")
        field.cursor_blink = False
        field.display = False
        yield field
        yield LogLines(id="log-lines")

    def show(self, lines: Sequence[LogLine], *, unicode: bool) -> None:
        """Take the newest log."""
        self.unicode = unicode
        self._all = lines
        self._apply()

    def open_filter(self) -> None:
        """Let the user type."""
        field = self.query_one("#log-filter", Input)
        field.display = True
        field.focus()

    def next_level(self) -> None:
        """All, warnings and errors, errors only."""
        self.level = LEVELS[(LEVELS.index(self.level) + 1) % len(LEVELS)]
        self._apply()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while typing."""
        event.stop()
        self.needle = event.value
        self._apply()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep the filter; keys go to the lines again."""
        event.stop()
        self.query_one("#log-filter", Input).display = bool(self.needle)
        self.query_one(LogLines).focus()

    def _apply(self) -> None:
        shown = matching(self._all, self.level, self.needle)
        lines = self.query_one(LogLines)
        lines.unicode = self.unicode
        lines.show(shown)
        of_all = f" of {len(self._all):,}" if len(shown) != len(self._all) else ""
        heading = f"{len(shown):,}{of_all} lines"
        parts = [f"level: {self.level}"]
        if self.needle:
            parts.append(f"filter: {self.needle}")
        quiet = "  l level  / filter"
        self.query_one("#log-heading", FixedText).show(
            Content.assemble(toned(f" {heading}  ", "strong"), "  ".join(parts), toned(quiet, "quiet"))
        )
