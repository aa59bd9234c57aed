"""Dialogs: an error with what, cause and next step; a question with yes and no; a terminal that is too small."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Resize
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.widgets import Static

from engine.errors import EngineError

SMALLEST = (40, 12)
"""Columns and rows below which only the size that is needed can be shown."""


class ProblemScreen(ModalScreen[None]):
    """One error. Nothing is lost by closing it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,escape,b,q", "close", "Close", key_display="Enter"),
        Binding("s", "save", "Save details to a file"),
    ]

    def __init__(self, error: EngineError) -> None:
        super().__init__()
        self.error = error

    def compose(self) -> ComposeResult:
        """What, cause, next step, keys."""
        text = Text()
        text.append(f"{self.error.what}\n", "bold")
        if self.error.cause:
            text.append(f"\nCause: {self.error.cause}\n")
        if self.error.next_step:
            text.append(f"\nNext: {self.error.next_step}\n")
        text.append("\nEnter closes this; s saves the details to a file.", "dim")
        with VerticalScroll(id="problem"):
            yield Static(text, id="problem-text")

    def action_close(self) -> None:
        """Back to where one was."""
        self.dismiss()

    def action_save(self) -> None:
        """Copying from a terminal over SSH often fails, so the text goes to a file."""
        from engine.paths import state_home

        path = state_home() / "last-problem.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [self.error.code, self.error.what, self.error.cause, self.error.next_step]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            self.notify(f"Could not write {path}: {error.strerror}", severity="error", markup=False)
            return
        self.notify(f"Saved: {path}", markup=False)


class ConfirmScreen(ModalScreen[bool]):
    """A yes/no question; yes needs the letter y, so that Enter held down starts nothing."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", "Yes"),
        Binding("n,escape,enter,b,q", "no", "No", key_display="n"),
    ]

    def __init__(self, question: str, detail: str = "") -> None:
        super().__init__()
        self._question = question
        self._detail = detail

    def compose(self) -> ComposeResult:
        """Question, consequence, keys."""
        text = Text()
        text.append(f"{self._question}\n", "bold")
        if self._detail:
            text.append(f"\n{self._detail}\n")
        text.append("\ny yes   n no", "bold")
        with VerticalScroll(id="confirm"):
            yield Static(text)

    def action_yes(self) -> None:
        """Agreed."""
        self.dismiss(True)

    def action_no(self) -> None:
        """Not agreed."""
        self.dismiss(False)


def is_too_small(size: Size) -> bool:
    """Whether nothing useful can be drawn in `size`."""
    return size.width < SMALLEST[0] or size.height < SMALLEST[1]


class TooSmallScreen(ModalScreen[None]):
    """Shown while the terminal is smaller than anything could be drawn in; goes by itself when it grows."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q", "app.leave", "Leave")]
    _going = False

    def compose(self) -> ComposeResult:
        """One line that fits in 20 columns."""
        yield Static(f"Need {SMALLEST[0]}x{SMALLEST[1]}. q leaves", id="too-small")

    def on_resize(self, event: Resize) -> None:
        """Large enough again?"""
        self._go_if_large()

    def on_screen_resume(self) -> None:
        """A dialog above this one was closed."""
        self.call_after_refresh(self._go_if_large)

    def _go_if_large(self) -> None:
        if self.app.screen is self and not self._going and not is_too_small(self.app.size):
            self._going = True
            self.dismiss()
