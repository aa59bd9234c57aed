"""The keys of the screen one came from, read from its bindings, so that help can never drift from the truth."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

_NAMES = {
    "question_mark": "?",
    "slash": "/",
    "escape": "Esc",
    "enter": "Enter",
    "space": "Space",
    "backspace": "Backspace",
    "left": "Left",
    "right": "Right",
    "up": "Up",
    "down": "Down",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "f1": "F1",
    "tab": "Tab",
    "shift+tab": "Shift+Tab",
}


def _key_name(key: str) -> str:
    return _NAMES.get(key, key.replace("ctrl+", "Ctrl+"))


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
        """Help for `screen`: its own keys first, then those of the app."""
        by_action: dict[str, tuple[str, list[str]]] = {}
        for active in screen.active_bindings.values():
            binding = active.binding
            if not binding.description:
                continue
            text, keys = by_action.setdefault(binding.action, (binding.tooltip or binding.description, []))
            keys.append(_key_name(binding.key))
            by_action[binding.action] = (text, keys)
        return cls(
            getattr(screen, "place", "") or type(screen).__name__.removesuffix("Screen"),
            [(", ".join(dict.fromkeys(keys)), text) for text, keys in by_action.values()],
        )

    def compose(self) -> ComposeResult:
        """Keys, one a line, then what never changes."""
        text = Text()
        text.append(f"Keys: {self._title}\n\n", "bold")
        width = min(24, max((len(keys) for keys, _ in self._keys), default=4))
        for keys, description in self._keys:
            text.append(f"  {keys.ljust(width)}  ", "bold")
            text.append(f"{description}\n")
        text.append("\nLeaving never stops a run: it works in the background.\n")
        text.append("Every figure is an estimate with a range; e on the matrix shows its parts.\n")
        with VerticalScroll(id="help"):
            yield Static(text)

    def action_dismiss_help(self) -> None:
        """Close."""
        self.dismiss()
