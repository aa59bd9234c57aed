"""What every screen of the wizard shares: a title line, the key line, and the common keys.

Owns the frame around a screen's body. Must not know any question or run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import DescendantBlur, DescendantFocus
from textual.screen import Screen
from textual.widget import Widget

from scaler_tui.glyphs import Glyphs, glyphs
from scaler_tui.widgets.frame import KeyLine, TitleBar

if TYPE_CHECKING:
    from scaler_tui.app import ScalerApp

BACK_KEYS = "b,escape,backspace,left"


class FramedScreen(Screen[None]):
    """A screen with title and key line; subclasses yield their body from `body`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,f1", "help", "Help", key_display="?"),
        Binding("q", "leave", "Leave", tooltip="Leave the program; runs go on"),
    ]
    place: ClassVar[str] = ""

    def compose(self) -> ComposeResult:
        """Title, body, keys."""
        yield TitleBar(id="title")
        yield from self.body()
        yield KeyLine(id="keys")

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

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """Other keys work inside a field."""
        self.query_one(KeyLine).refresh()

    def on_descendant_blur(self, event: DescendantBlur) -> None:
        """The screen's keys work again."""
        self.query_one(KeyLine).refresh()

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
