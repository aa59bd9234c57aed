"""The one place that depends on Textual's inside: this fails when Textual changes there, and checks the cell grid."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.app import App
from textual.geometry import Region, Size
from textual.screen import Screen
from textual.strip import Strip

from scaler_tui.lean_display import TEXTUAL_VERSION, CellGrid, LeanDisplay

KNOWN_SOURCES: dict[Callable[..., Any], str] = {
    App._display: "4b78dff6669a455c",
    App._on_resize: "62d14429be32aa53",
    Screen._compositor_refresh: "7a40efe563816a06",
    ChopsUpdate.render_segments: "4c1cdb567e0b8354",
    LayoutUpdate.render_segments: "ff329c722506c983",
}


def test_textual_is_the_version_the_display_was_written_for() -> None:
    assert version("textual") == TEXTUAL_VERSION


@pytest.mark.parametrize("function", KNOWN_SOURCES, ids=lambda function: function.__qualname__)
def test_the_replaced_and_imitated_methods_are_the_known_ones(function: Callable[..., Any]) -> None:
    digest = hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    assert digest == KNOWN_SOURCES[function], f"read {function.__qualname__} again, then adapt lean_display"


def test_the_replacement_takes_the_same_arguments() -> None:
    assert list(inspect.signature(LeanDisplay._display).parameters) == list(inspect.signature(App._display).parameters)


# ── a terminal small enough to check by hand ──────────────────────────────────────────────────────────────────────
class Screenlet:
    """Interprets the few sequences the grid writes; wide characters take two cells, as in a real terminal."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.cells = [[(" ", "")] * size.width for _ in range(size.height)]
        self.x = self.y = 0
        self.pen = ""

    def feed(self, data: str) -> None:
        for match in re.finditer(r"\x1b\[([0-9;]*)([A-Za-z])|\x1b\]8;[^\x1b]*\x1b\\|(.)", data, re.DOTALL):
            numbers, letter, character = match.groups()
            if letter == "H":
                self.y, self.x = (int(part) - 1 for part in numbers.split(";"))
            elif letter == "C":
                self.x += int(numbers or 1)
            elif letter == "m":
                self._sgr(numbers)
            elif character and character != "\n":
                self._put(character)

    def _sgr(self, numbers: str) -> None:
        state = dict(part.split("=", 1) for part in self.pen.split(" ") if part)
        codes = [int(code) for code in numbers.split(";")]
        while codes:
            code = codes.pop(0)
            if code == 0:
                state = {}
            elif code in (38, 48):
                kind, codes = codes[0], codes[1:]
                taken = 3 if kind == 2 else 1
                state["f" if code == 38 else "b"] = "-".join(map(str, codes[:taken]))
                codes = codes[taken:]
            elif code in (39, 49):
                state.pop("f" if code == 39 else "b", None)
            else:
                state[f"a{code}"] = "1"
        self.pen = " ".join(f"{key}={state[key]}" for key in sorted(state))

    def _put(self, character: str) -> None:
        from rich.cells import cell_len

        width = cell_len(character)
        row = self.cells[self.y]
        if width == 0:
            return
        for hit in range(self.x, min(self.x + width, self.size.width)):
            if row[hit][0] == "" and hit == self.x:
                row[hit - 1] = (" ", self.pen)
            if hit + 1 < self.size.width and row[hit + 1][0] == "":
                row[hit + 1] = (" ", self.pen)
        row[self.x] = (character, self.pen)
        for extra in range(1, width):
            row[self.x + extra] = ("", self.pen)
        self.x = min(self.x + width, self.size.width - 1)


SIZE = Size(12, 3)
STYLES = [
    Style(),
    Style.parse("bold #ff0000"),
    Style.parse("#00ff00 on #0000ff"),
    Style.parse("reverse on #101010"),
    Style.parse("italic underline #ff0000 on #0000ff"),
]
rows = st.lists(
    st.tuples(st.text(alphabet="ab 漢字─●", min_size=1, max_size=4), st.sampled_from(STYLES)), min_size=1, max_size=6
)
frames = st.lists(st.lists(rows, min_size=SIZE.height, max_size=SIZE.height), min_size=1, max_size=4)


def _update(frame: list[list[tuple[str, Style]]]) -> LayoutUpdate:
    strips = [[Strip([Segment(text, style) for text, style in row]).adjust_cell_length(SIZE.width)] for row in frame]
    return LayoutUpdate(strips, Region(0, 0, *SIZE))


@given(frames)
@settings(max_examples=150, deadline=None)
def test_differences_leave_the_terminal_as_stock_frames_would(story: list[list[list[tuple[str, Style]]]]) -> None:
    grid, lean = CellGrid(SIZE), Screenlet(SIZE)
    for frame in story:
        lean.feed(grid.difference(_update(frame), ColorSystem.TRUECOLOR))
        whole = Screenlet(SIZE)
        whole.feed(_update(frame).render_segments(Console(force_terminal=True, color_system="truecolor")))
        assert lean.cells == whole.cells
        assert ["".join(text for text, _ in row) for row in lean.cells] == [
            strips[0].text for strips in _update(frame).strips
        ]
        assert lean.pen == ""


def test_the_same_frame_again_sends_nothing() -> None:
    grid = CellGrid(SIZE)
    frame = [[("漢 ab", STYLES[1]), ("xyz", STYLES[2])]] * 3
    assert grid.difference(_update(frame), ColorSystem.TRUECOLOR)
    assert grid.difference(_update(frame), ColorSystem.TRUECOLOR) == ""


def test_a_change_of_one_cell_sends_a_move_a_style_and_that_cell() -> None:
    grid = CellGrid(SIZE)
    grid.difference(_update([[("aaaaaaaaaaaa", STYLES[1])]] * 3), ColorSystem.TRUECOLOR)
    sent = grid.difference(
        _update([[("aaaaaaaaaaaa", STYLES[1])], [("aaaabaaaaaaa", STYLES[1])], [("aaaaaaaaaaaa", STYLES[1])]]),
        ColorSystem.TRUECOLOR,
    )
    assert sent == "\x1b[2;5H\x1b[1;38;2;255;0;0mb\x1b[0m"


def test_text_over_half_a_wide_character_repairs_the_other_half() -> None:
    grid, terminal = CellGrid(SIZE), Screenlet(SIZE)
    for row in ("漢漢漢漢漢漢", "a漢漢漢漢漢b", "漢漢漢漢漢漢"):
        frame = [[(row, STYLES[0])]] * 3
        terminal.feed(grid.difference(_update(frame), ColorSystem.TRUECOLOR))
        assert "".join(text for text, _ in terminal.cells[0]) == row


async def test_the_switch_gives_the_stock_display_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(App, "_display", lambda self, screen, renderable: calls.append(renderable))
    app: LeanDisplay[None] = LeanDisplay(stock_display=True)
    app._display(None, "anything")  # type: ignore[arg-type]
    assert calls == ["anything"]
