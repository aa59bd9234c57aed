"""What the race and the search have in common: a process of its own that goes on while other screens are in front.

Owns following it, stopping it and going on. Must not know what is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.events import Resize

from scaler_tui.feeds.race_feed import RaceNews
from scaler_tui.race_state import RaceState
from scaler_tui.screens.base import FramedScreen

if TYPE_CHECKING:
    from scaler_tui.window import RaceKey


class MeasuringScreen(FramedScreen):
    """Shows what is measured under `key`; subclasses draw."""

    AUTO_FOCUS = ""

    def __init__(self, key: RaceKey) -> None:
        super().__init__()
        self.key = key

    @property
    def race(self) -> RaceState:
        """What was measured so far."""
        return self.scaler.wizard.window.race(self.key)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to measure."""
        raise NotImplementedError

    def show_race(self) -> None:
        """Draw everything for the present size."""
        raise NotImplementedError

    def on_mount(self) -> None:
        """Begin, or go on where the log ends, unless all is measured."""
        if not self.complete and not self.race.running:
            self.scaler.start_race(self.key)
        self.call_after_refresh(self.show_race)

    def on_race_news(self, message: RaceNews) -> None:
        """Lines came."""
        if message.key == self.key:
            self.show_race()
            self.refresh_bindings()

    def on_resize(self, event: Resize) -> None:
        """Another size, another drawing."""
        self.call_after_refresh(self.show_race)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what can be done now."""
        if action == "cancel":
            return self.race.running
        if action == "go_on":
            return not self.race.running and not self.complete
        return True

    def action_cancel(self) -> None:
        """Stop; a second Escape goes back."""
        if self.race.running:
            self.scaler.cancel_race(self.key)
        else:
            self.action_back()

    def action_go_on(self) -> None:
        """Measure what is missing."""
        if not self.race.running:
            self.scaler.start_race(self.key)
            self.show_race()
            self.refresh_bindings()
