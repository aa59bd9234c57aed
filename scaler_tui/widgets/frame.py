"""The two lines around every wizard screen: where we are and for which machine; and which keys do what.

Owns how both shrink on a narrow terminal: whole words go, SIM and Help never do. Must not know any screen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textual import actions
from textual.app import RenderResult
from textual.binding import Binding, BindingsMap
from textual.content import Content
from textual.reactive import reactive
from textual.screen import Screen
from textual.style import Style
from textual.widget import Widget
from textual.widgets import Input

KEY_NAMES = {
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
    "home": "Home",
    "end": "End",
    "f1": "F1",
    "tab": "Tab",
    "shift+tab": "Shift+Tab",
}
_IN_FIELD = (("Enter", "Accept"), ("Esc", "Leave the field"), ("F1", "Help"))
_LAST = ("help", "leave")


def key_name(key: str) -> str:
    """ "question_mark" -> "?", "ctrl+t" -> "Ctrl+T"."""
    if key.startswith("ctrl+") and len(key) == 6:
        return f"Ctrl+{key[-1].upper()}"
    return KEY_NAMES.get(key, key.replace("ctrl+", "Ctrl+"))


@dataclass(frozen=True, slots=True)
class KeyItem:
    """One hint: the key, what it does, and whether it would do it now."""

    key: str
    text: str
    action: str
    enabled: bool = True


def own_bindings(screen: Screen[Any]) -> list[Binding]:
    """The bindings the screen's classes declare, those of the subclass first, inherited Textual ones left out."""
    found: list[Binding] = []
    for kind in type(screen).__mro__:
        if not kind.__module__.startswith("scaler_tui"):
            continue
        declared = vars(kind).get("BINDINGS", [])
        for key, binding in BindingsMap(declared).key_to_bindings.items():
            del key
            found += binding
    return sorted(found, key=lambda binding: binding.action in _LAST)


def key_items(screen: Screen[Any]) -> list[KeyItem]:
    """What the key line offers on `screen` now, most important first."""
    own = getattr(screen.focused, "FIELD_KEYS", None)
    if own is not None:
        return [KeyItem(key, text, "") for key, text in own]
    if isinstance(screen.focused, Input):
        return [KeyItem(key, text, "") for key, text in _IN_FIELD]
    items: dict[str, KeyItem] = {}
    for binding in own_bindings(screen):
        if not binding.show or not binding.description or binding.action in items:
            continue
        _, name, parameters = actions.parse(binding.action)
        allowed = screen.check_action(name, parameters)
        if allowed is not False:
            shown = binding.key_display or key_name(binding.key)
            items[binding.action] = KeyItem(shown, binding.description, binding.action, bool(allowed))
    return list(items.values())


class KeyLine(Widget):
    """One line of keys. It is drawn from the bindings, so it cannot drift from what the keys do."""

    DEFAULT_CSS = "KeyLine { height: 1; dock: bottom; }"
    auto_links = False  # hints can be clicked, but are not drawn as links

    def on_mount(self) -> None:
        """Follow the bindings of the screen."""
        self.screen.bindings_updated_signal.subscribe(self, lambda _: self.refresh())

    def render(self) -> RenderResult:
        """As many hints as fit whole."""
        items = key_items(self.screen)
        width = self.size.width
        while len(items) > 1 and sum(len(i.key) + len(i.text) + 3 for i in items) > width:
            items.pop(-2 if items[-1].action == "help" or items[-1].key == "F1" else -1)
        parts: list[Content] = []
        for item in items:
            click = Style.from_meta({"@click": f"screen.{item.action}"}) if item.action and item.enabled else Style()
            tone = "" if item.enabled else "$foreground 50%"
            key = Content.styled(f" {item.key}", "bold $accent" if item.enabled else tone)
            parts.append(Content.assemble(key, Content.styled(f" {item.text} ", tone)).stylize(click))
        return Content.assemble(*parts)


class TitleBar(Widget):
    """One line: program and place on the left, the machine that is planned for on the right, SIM when simulated."""

    DEFAULT_CSS = "TitleBar { height: 1; dock: top; }"

    place = reactive("")
    machine = reactive("")
    simulated = reactive(False)

    def show(self, place: str, machine: str = "", *, simulated: bool = False) -> None:
        """Replace the line; nothing is sent when it is the same."""
        self.place, self.machine, self.simulated = place, machine, simulated

    def render(self) -> RenderResult:
        """Left and right part; the machine's name goes first when there is no room."""
        width = self.size.width
        name = " Scaler Wizard" if width >= 50 else " Scaler"
        left = Content.assemble((name, "bold"), f"  {self.place}")
        sim = Content.styled(" SIM ", "bold $background on $warning") if self.simulated else Content("")
        machine = f"{self.machine} " if self.machine else ""
        room = width - left.cell_length - sim.cell_length - 2
        if len(machine) > room:
            machine = f"{self.machine[: room - 2]}… " if room > 8 and self.machine else ""
        gap = max(width - left.cell_length - sim.cell_length - len(machine), 1)
        return Content.assemble(left, " " * gap, Content.styled(machine, "$foreground 80%"), sim)
