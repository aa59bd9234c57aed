"""The keys of the screen one came from, read from its bindings, so that help can never drift from the truth."""

from __future__ import annotations

from typing import Any, ClassVar

from textual import actions
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from scaler_tui.widgets.frame import key_name, own_bindings

_ALWAYS = (
    ("Up, Down", "Move, where there is a list"),
    ("Ctrl+T", "Next colour theme"),
    ("Ctrl+C", "Leave: asks once"),
)


def keys_of(screen: Screen[Any]) -> list[tuple[str, str]]:
    """(keys, what they do) of the screen's own bindings that work now; several keys of one action share a line."""
    by_text: dict[str, list[str]] = {}
    for binding in own_bindings(screen):
        _, name, parameters = actions.parse(binding.action)
        if not binding.description or screen.check_action(name, parameters) is False:
            continue
        by_text.setdefault(binding.tooltip or binding.description, []).append(key_name(binding.key))
    return [(_joined(list(dict.fromkeys(keys))), text) for text, keys in by_text.items()]


def _joined(keys: list[str]) -> str:
    digits = [key for key in keys if key.isdigit()]
    return f"{digits[0]}-{digits[-1]}" if len(digits) > 2 and digits == keys else ", ".join(keys)


class HelpScreen(ModalScreen[None]):
    """A scrollable sheet; any of its keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,f1,q,b,enter", "dismiss_help", "Close", key_display="Esc")
    ]

    def __init__(self, title: str, keys: list[tuple[str, str]]) -> None:
        super().__init__()
        self._title = title
        self._keys = keys

    @classmethod
    def of(cls, screen: Screen[Any]) -> HelpScreen:
        """Help for `screen`: its own keys first, then those that work everywhere."""
        title = getattr(screen, "place", "") or type(screen).__name__.removesuffix("Screen")
        own = keys_of(screen)
        told = {text for _, text in own}
        return cls(title, [*own, *(line for line in _ALWAYS if line[1] not in told)])

    def compose(self) -> ComposeResult:
        """Keys, one a line, then what never changes."""
        width = min(26, max(len(keys) for keys, _ in self._keys))
        parts: list[str | tuple[str, str]] = [(f"Keys: {self._title}\n\n", "bold")]
        for keys, description in self._keys:
            parts += [(f"{keys:<{width}}  ", "bold"), f"{description}\n"]
        parts.append("\nLeaving never stops a run: it works in the background.\n")
        parts.append("Every figure is an estimate with a range; e on the matrix shows its parts.\n")
        parts.append("Esc closes this.")
        with VerticalScroll(id="help"):
            yield Static(Content.assemble(*parts))

    def on_mount(self) -> None:
        """The sheet scrolls with the arrow keys."""
        self.query_one("#help").focus()

    def action_dismiss_help(self) -> None:
        """Close."""
        self.dismiss()
