"""Labs: approaches held against each other, how far each is, and what it found in words.

Owns the pointer, the keys and the words around figures. Reading, sizing and starting are the feed's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Static

from engine.errors import EngineError
from engine.units import format_count, format_duration
from scaler_tui.feeds.labs_feed import LabEnded, LabRow, LabSized, LabsListed, list_in_thread, size_in_thread, start_lab
from scaler_tui.screens.base import BACK_KEYS, FramedScreen
from scaler_tui.screens.problem import ConfirmScreen
from scaler_tui.widgets.context_words import QUIET, wrapped_line

LOOK_SECONDS = 3.0
STATE_CELLS = 22


class LabsScreen(FramedScreen):
    """A line per lab; words of the pointed one below."""

    place = "labs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "verdicts", "Verdicts", tooltip="What its report says, in words; again for the question"),
        Binding("s", "start", "Start", tooltip="Figures first, then start it (or go on) in the background"),
        Binding("r", "runs", "Runs", tooltip="Its runs are among all runs"),
        Binding(BACK_KEYS, "back", "Back", key_display="b"),
        Binding("up,k", "move(-1)", "Lab above", show=False),
        Binding("down,j", "move(1)", "Lab below", show=False),
        Binding("pageup", "page(-1)", "Page", show=False),
        Binding("pagedown,space", "page(1)", "Page", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.rows: tuple[LabRow, ...] | None = None
        self.pointer = 0
        self.reading = False
        """The verdicts are shown."""
        self.sizing = ""
        """The lab whose figures are awaited."""

    def body(self) -> Iterable[Widget]:
        """Labs and words."""
        yield Static(id="labs", markup=False)
        with VerticalScroll(id="lab-scroll", can_focus=False):
            yield Static(id="lab-words", markup=False)

    def on_mount(self) -> None:
        """Look now and then: runs finish meanwhile."""
        self.show_labs()
        self.look()
        self.set_interval(LOOK_SECONDS, self.look)

    def look(self) -> None:
        """Read, where somebody sees it."""
        if self.app.screen is self:
            list_in_thread(self)

    def on_resize(self, event: Resize) -> None:
        """The words wrap anew."""
        self.call_after_refresh(self.show_labs)

    @property
    def pointed(self) -> LabRow | None:
        """The lab under the pointer."""
        return self.rows[self.pointer] if self.rows else None

    def on_labs_listed(self, message: LabsListed) -> None:
        """They were read."""
        message.stop()
        if message.rows != self.rows:
            self.rows = message.rows
            self.pointer = min(self.pointer, max(len(self.rows) - 1, 0))
            self.show_labs()
            self.refresh_bindings()

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def show_labs(self) -> None:
        """Draw both parts."""
        if not self.is_mounted:
            return
        width = max(self.size.width - 3, 30)
        lines = [self._line(row, width) for row in self.rows or ()]
        self.query_one("#labs", Static).update(Content("\n").join(lines) if lines else Content("Looking ..."))
        row = self.pointed
        words = self._words(row, width) if row is not None else []
        self.query_one("#lab-words", Static).update(Content("\n\n").join(words))

    def _line(self, row: LabRow, width: int) -> Content:
        pointed = row is self.pointed
        room = max(width - STATE_CELLS - 2, 16)
        head = f"{self.signs.pointer if pointed else ' '} {row.title[: room - 1]:<{room}}"
        return Content.assemble((head, "reverse bold" if pointed else "bold"), (f" {state_words(row)}", QUIET))

    def _words(self, row: LabRow, width: int) -> list[Content]:
        if row.trouble:
            return [wrapped_line(row.trouble, width, tone="$text-warning")]
        if self.sizing == row.name:
            return [Content("Counting steps, tokens and time ...")]
        if self.reading and row.verdicts:
            part = "" if row.finished == row.total else f" (so far, of {row.finished} runs)"
            found = [
                Content.assemble((f"{goal}{part}\n", "bold"), wrapped_line(words, width))
                for goal, words in row.verdicts
            ]
            return [*found, wrapped_line(f"As a page: {row.folder / 'report.html'}", width, tone=QUIET)]
        told = [wrapped_line(row.question, width), wrapped_line(f"Arms: {'; '.join(row.arms)}.", width)]
        if row.verdicts:
            told.append(wrapped_line("Enter shows what it found.", width, tone="bold"))
        elif row.ready and not row.working:
            told.append(wrapped_line("s says what it takes, and starts it if you like.", width, tone="bold"))
        if not row.ready and not row.working:
            told.append(wrapped_line("It goes on from its file: scaler-wizard lab FILE.toml", width))
        return told

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What the pointed lab allows."""
        row = self.pointed
        if action == "verdicts":
            return True if row is not None and row.verdicts else None
        if action == "start":
            can = row is not None and row.ready and not row.working and not self.sizing and row.finished < row.total
            return True if can else None
        return True

    def action_move(self, by: int) -> None:
        """Another lab; it stops at both ends."""
        self.pointer = min(max(self.pointer + by, 0), max(len(self.rows or ()) - 1, 0))
        self.reading = False
        self.show_labs()
        self.refresh_bindings()

    def action_page(self, pages: int) -> None:
        """Scroll the words."""
        scroll = self.query_one("#lab-scroll", VerticalScroll)
        scroll.scroll_relative(y=pages * max(scroll.size.height - 1, 1), animate=False)

    def action_verdicts(self) -> None:
        """The report's verdicts, or the question again."""
        self.reading = not self.reading
        self.show_labs()

    def action_runs(self) -> None:
        """All runs."""
        self.scaler.open_runs()

    def action_start(self) -> None:
        """Its figures; LabSized follows."""
        if self.pointed is not None:
            self.sizing = self.pointed.name
            size_in_thread(self, self.pointed)
            self.show_labs()
            self.refresh_bindings()

    def on_lab_sized(self, message: LabSized) -> None:
        """Show what it takes, and start it when that is agreed to."""
        message.stop()
        self.sizing = ""
        self.show_labs()
        self.refresh_bindings()
        if message.error is not None:
            self.scaler.show_error(message.error)
        elif message.told is not None:
            row = message.row

            def answered(yes: bool | None) -> None:
                if yes:
                    self._start(row)

            self.app.push_screen(ConfirmScreen(f"Start {row.title}?", size_words(row, message.told)), answered)

    def _start(self, row: LabRow) -> None:
        try:
            start_lab(self, row)
        except EngineError as error:
            self.scaler.show_error(error)
        else:
            self.notify("It works in the background; its runs are among the runs.", timeout=6)
            self.look()

    def on_lab_ended(self, message: LabEnded) -> None:
        """A refusal is said; what was found is read."""
        message.stop()
        self.look()
        if message.error is not None:
            self.scaler.show_error(message.error)


def state_words(row: LabRow) -> str:
    """How far it is."""
    if row.working:
        return f"working, {row.finished} of {row.total}"
    if row.total and row.finished == row.total:
        return f"all {row.total} runs finished"
    return f"{row.finished} of {row.total} runs" if row.finished else "not started"


def size_words(row: LabRow, told: dict[str, Any]) -> str:
    """The figures of a dry run: all of it, then a line per arm."""
    lines = [
        f"{told['runs']} runs ({len(told['seeds'])} seeds), one after the other: about "
        f"{format_duration(float(told['seconds']))} here"
        + (f"; {row.finished} are finished already." if row.finished else ".")
    ]
    lines += [
        f"{arm['name']}: {format_count(arm['parameters'])} parameters, {arm['steps']:,} steps, "
        f"{arm['tokens']:,} tokens, {format_duration(float(arm['seconds']))}"
        for arm in told["arms"]
    ]
    return "\n".join([*lines, "", "It goes on when this terminal is closed."])
