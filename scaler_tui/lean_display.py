"""Sends the terminal only what changed, and never waits for a terminal that does not read.

Owns the one private method of Textual that this program replaces, `App._display`: every update is compared, cell by
cell, with what was sent before, and only the differences go out; while the driver still has unsent frames queued, new
frames are skipped and one fresh frame follows as soon as the queue is empty. Must not know screens or widgets.
Written for exactly Textual 8.2.8 (`tests/tui/test_run_lean_display.py` fails when that changes); `stock_display=True`
switches it off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from rich.cells import cell_len, split_graphemes
from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.app import App
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.strip import SGR_STYLES

if TYPE_CHECKING:
    from rich.console import RenderableType
    from textual import events
    from textual.driver import Driver
    from textual.screen import Screen

TEXTUAL_VERSION = "8.2.8"
"""The release whose `App._display` is replaced here."""

QUEUED_WRITES_LIMIT = 2
"""With this many unsent writes waiting, a frame is skipped."""

CATCH_UP_SECONDS = 0.1
"""How often to look whether the terminal reads again."""

LONGEST_REWRITTEN_GAP = 3
"""Unchanged cells between two changes are sent again when that is shorter than moving the cursor."""

SYNC_START, SYNC_END = "\x1b[?2026h", "\x1b[?2026l"
RIGHT_HALF = ""
"""What the grid holds for the right half of a wide character."""

ReturnType = TypeVar("ReturnType")


class Pen(NamedTuple):
    """The terminal's drawing state: SGR codes of attributes, foreground and background, and a hyperlink."""

    attributes: str = ""
    foreground: str = ""
    background: str = ""
    link: str = ""


PLAIN = Pen()


@lru_cache(maxsize=16384)
def _pen_of(style: Style, color_system: ColorSystem) -> Pen:
    bits = style._attributes & style._set_attributes
    attributes = ";".join(SGR_STYLES[offset] for offset in range(bits.bit_length()) if bits & (1 << offset))
    foreground = background = ""
    if style._color is not None:
        foreground = ";".join(style._color.downgrade(color_system).get_ansi_codes())
    if style._bgcolor is not None:
        background = ";".join(style._bgcolor.downgrade(color_system).get_ansi_codes(False))
    link = f"id={style._link_id};{style._link}" if style._link else ""
    return Pen(attributes, foreground, background, link)


def _pen_change(old: Pen, new: Pen) -> str:
    """The shortest escape sequence that turns `old` into `new`."""
    if old == new:
        return ""
    parts: list[str] = []
    if old.attributes and old.attributes != new.attributes:
        parts = ["0", *(code for code in new[:3] if code)]
    else:
        if old.attributes != new.attributes:
            parts.append(new.attributes)
        if old.foreground != new.foreground:
            parts.append(new.foreground or "39")
        if old.background != new.background:
            parts.append(new.background or "49")
    link = f"\x1b]8;{new.link or ';'}\x1b\\" if old.link != new.link else ""
    return (f"\x1b[{';'.join(parts)}m" if parts else "") + link


class CellGrid:
    """What the terminal shows, as far as we sent it; turns updates into the bytes that are still missing."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self._texts: list[list[str | None]] = [[None] * size.width for _ in range(size.height)]
        self._pens: list[list[Pen | None]] = [[None] * size.width for _ in range(size.height)]
        self._out: list[str] = []
        self._pen = PLAIN
        self._x = self._y = -1

    def difference(self, update: LayoutUpdate | ChopsUpdate, color_system: ColorSystem) -> str:
        """The escape sequences that bring the terminal from what it shows to `update`; "" when nothing changed."""
        self._out, self._pen, self._x, self._y = [], PLAIN, -1, -1
        width, height = self.size
        for x, y, segments in placed_segments(update):
            if 0 <= y < height:
                self._put_segments(x, y, width, segments, color_system)
        if self._out:
            self._out.append(_pen_change(self._pen, PLAIN))
        return "".join(self._out)

    def _put_segments(self, x: int, y: int, width: int, segments: Iterable[Segment], color_system: ColorSystem) -> None:
        texts, pens = self._texts[y], self._pens[y]
        for text, style, _ in segments:
            pen = PLAIN if style is None else _pen_of(style, color_system)
            length = len(text)
            if text.isascii() and x >= 0 and x + length <= width:
                end = x + length
                if texts[x:end] != list(text) or pens[x:end].count(pen) != length:
                    for offset, character in enumerate(text, x):
                        if texts[offset] != character or pens[offset] != pen:
                            self._put(offset, y, character, 1, pen)
                x = end
                continue
            for character, cells in _cells(text):
                if x >= 0 and x + cells <= width and not self._shows(x, y, character, cells, pen):
                    self._put(x, y, character, cells, pen)
                x += cells

    def _shows(self, x: int, y: int, text: str, cells: int, pen: Pen) -> bool:
        texts = self._texts[y]
        if texts[x] != text or self._pens[y][x] != pen:
            return False
        return all(texts[x + extra] == RIGHT_HALF for extra in range(1, cells))

    def _put(self, x: int, y: int, text: str, cells: int, pen: Pen) -> None:
        """Write one character and note it; halves of wide characters it destroys become unknown."""
        texts, pens = self._texts[y], self._pens[y]
        self._move_to(x, y)
        if pen != self._pen:
            self._out.append(_pen_change(self._pen, pen))
            self._pen = pen
        self._out.append(text)
        left = x
        while texts[left] == RIGHT_HALF and left > 0:
            left -= 1
            if texts[left] != RIGHT_HALF:
                texts[left] = None
        after = x + cells
        while after < self.size.width and texts[after] == RIGHT_HALF:
            texts[after] = None
            after += 1
        texts[x] = text
        pens[x] = pen
        for extra in range(1, cells):
            texts[x + extra], pens[x + extra] = RIGHT_HALF, pen
        # Terminals disagree on where the cursor is after the last column and after joined characters.
        certain = len(text) == 1 and x + cells < self.size.width
        self._x, self._y = (x + cells, y) if certain else (-1, -1)

    def _move_to(self, x: int, y: int) -> None:
        if self._y == y and self._x == x:
            return
        gap = x - self._x
        if self._y != y or gap < 0:
            self._out.append(f"\x1b[{y + 1};{x + 1}H")
            return
        texts, pens = self._texts[y][self._x : x], self._pens[y][self._x : x]
        if gap <= LONGEST_REWRITTEN_GAP and pens.count(self._pen) == gap:
            known = [text for text in texts if text is not None and len(text) == 1 and cell_len(text) == 1]
            if len(known) == gap:
                self._out.extend(known)
                return
        self._out.append(f"\x1b[{gap}C" if gap > 1 else "\x1b[C")


def _cells(text: str) -> Iterator[tuple[str, int]]:
    """The graphemes of `text` with their width in cells; those of width 0 join the one before."""
    spans, _ = split_graphemes(text)
    for start, end, cells in spans:
        if cells:
            yield text[start:end], cells


def placed_segments(update: LayoutUpdate | ChopsUpdate) -> Iterator[tuple[int, int, Iterable[Segment]]]:
    """The (x, y, segments) that `update.render_segments` would write, in its order."""
    if isinstance(update, LayoutUpdate):
        for y, line in enumerate(update.strips, update.region.y):
            x = update.region.x
            for part in line:
                yield x, y, part
                x += part.cell_length
        return
    for y, x1, x2 in update.spans:
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if strip is None or x > x2 or end <= x1:
                continue
            inside = x2 > x >= x1 and end <= x2
            yield x, y, strip if inside else strip.crop(0, min(end, x2) - x)


def _queued_writes(driver: Driver) -> int:
    """How many writes the driver has not yet handed to the terminal; 0 for drivers without a queue."""
    queue = getattr(getattr(driver, "_writer_thread", None), "_queue", None)
    return int(queue.qsize()) if queue is not None else 0


class LeanDisplay(App[ReturnType]):
    """An App that sends differences and skips frames; a base class for the real one."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+l", "redraw", "Redraw", show=False, id="app.redraw")]

    def __init__(self, *args: Any, stock_display: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stock_display = stock_display
        self.frames_skipped = 0
        """Frames not sent because the terminal had not read the ones before."""
        self._grid: CellGrid | None = None
        self._grid_writer: object = None
        self._catching_up = False

    def action_redraw(self) -> None:
        """Send the whole screen again, whatever the terminal is believed to show."""
        self.forget_terminal()
        self.screen.refresh(layout=True)

    def forget_terminal(self) -> None:
        """The next frame is sent in full."""
        self._grid = None

    async def _on_resize(self, event: events.Resize) -> None:
        self.forget_terminal()
        await super()._on_resize(event)

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        driver = self._driver
        lean = isinstance(renderable, LayoutUpdate | ChopsUpdate) and not self.stock_display
        ready = self._running and not self._closed and not self.is_headless and not self._batch_count
        if not (lean and ready) or driver is None or driver.is_inline:
            if renderable is not None and not isinstance(renderable, CompositorUpdate):
                self.forget_terminal()
            super()._display(screen, renderable)
            return
        assert isinstance(renderable, LayoutUpdate | ChopsUpdate)
        try:
            self._send_difference(driver, renderable)
        finally:
            self.post_display_hook()

    def _send_difference(self, driver: Driver, update: LayoutUpdate | ChopsUpdate) -> None:
        if _queued_writes(driver) >= QUEUED_WRITES_LIMIT:
            self.frames_skipped += 1
            self._catch_up_later()
            return
        writer = getattr(driver, "_writer_thread", None)
        if self._grid is None or self._grid.size != self.size or self._grid_writer is not writer:
            # A new writer thread means the terminal was left and entered again (suspend, Ctrl+Z).
            self._grid, self._grid_writer = CellGrid(self.size), writer
        try:
            sequence = self._grid.difference(update, self.console._color_system or ColorSystem.TRUECOLOR)
        except Exception as error:
            self._handle_exception(error)
            return
        cursor = self.screen.outer_size.clamp_offset(self.cursor_position)
        if not sequence and cursor == self._previous_cursor_position:
            return
        self._previous_cursor_position = cursor
        sequence += f"\x1b[{cursor.y + 1};{cursor.x + 1}H"
        driver.write(f"{SYNC_START}{sequence}{SYNC_END}" if self._sync_available else sequence)
        driver.flush()

    def _catch_up_later(self) -> None:
        if not self._catching_up:
            self._catching_up = True
            self.set_timer(CATCH_UP_SECONDS, self._catch_up)

    def _catch_up(self) -> None:
        """Show the newest state once the terminal reads again."""
        self._catching_up = False
        if self._driver is not None and _queued_writes(self._driver) >= QUEUED_WRITES_LIMIT:
            self._catch_up_later()
            return
        self.screen.refresh()
