"""What every screen of the wizard shares: a title line, the key footer, and the common keys.

Owns the frame around a screen's body. Must not know any question or run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static

from scaler_tui.glyphs import Glyphs, glyphs

if TYPE_CHECKING:
    from scaler_tui.app import ScalerApp

BACK_KEYS = "b,escape,backspace,left"


class TitleBar(Static):
    """One line: program, where we are, and the machine with a loud SIM when it is simulated."""

    def show(self, place: str, machine: str = "", *, simulated: bool = False) -> None:
        """Replace the line; nothing is sent when it is the same."""
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(" Scaler Wizard ", "bold")
        text.append(f" {place}")
        if machine:
            text.append(f"  on {machine}")
        if simulated:
            text.append("  ")
            text.append(" SIM ", "reverse bold")
        self.update(text)


class FramedScreen(Screen[None]):
    """A screen with title and footer; subclasses yield their body from `body`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,f1", "help", "Help", key_display="?"),
        Binding("q", "leave", "Leave"),
    ]
    place: ClassVar[str] = ""

    def compose(self) -> ComposeResult:
        """Title, body, footer."""
        yield TitleBar(id="title")
        yield from self.body()
        yield Footer(show_command_palette=False, compact=True)

    def body(self) -> Iterable[Widget]:
        """The screen's own widgets."""
        return ()

    @property
    def scaler(self) -> ScalerApp:
        """The app, typed."""
        return cast("ScalerApp", self.app)

    @property
    def signs(self) -> Glyphs:
        """The glyph set of this terminal."""
        return glyphs(self.scaler.policy.unicode)

    def on_screen_resume(self) -> None:
        """The title may have changed while another screen was in front."""
        self.refresh_title()

    def refresh_title(self) -> None:
        """Show place and machine."""
        machine = self.scaler.wizard.machine
        self.query_one(TitleBar).show(
            self.title_text(), machine.label if machine else "", simulated=bool(machine and machine.simulated)
        )

    def title_text(self) -> str:
        """What stands behind the program's name."""
        return self.place

    def action_help(self) -> None:
        """The keys of this screen."""
        from scaler_tui.screens.help import HelpScreen

        self.app.push_screen(HelpScreen.of(self))

    def action_leave(self) -> None:
        """Leave the program; runs go on."""
        self.scaler.leave()

    def action_back(self) -> None:
        """One screen back."""
        self.app.pop_screen()
