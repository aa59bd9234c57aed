"""The options of a question: numbered, with hint, recommendation in words, and the reason where one is impossible.

Owns the look of options. The pointer may rest on an impossible one, so that its reason can be read in full; whoever
listens refuses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from scaler_tui.glyphs import Glyphs

if TYPE_CHECKING:
    from engine.advise.option_state import OptionState

QUIET = "$foreground 75%"


def option_line(number: int, state: OptionState, signs: Glyphs) -> Content:
    """ "2 Llama 3.2 3B  ★ recommended  the usual starting point"."""
    parts: list[Content | tuple[str, str] | str] = [(f"{number} ", "bold")]
    if not state.enabled:
        parts.append((f"{state.option.label}  {signs.no} not possible: {state.reason}", QUIET))
        return Content.assemble(*parts)
    parts.append(state.option.label)
    if state.recommended:
        parts.append((f"  {signs.star} recommended", "bold $text-success"))
    if state.option.hint:
        parts.append((f"  {state.option.hint}", QUIET))
    return Content.assemble(*parts)


class ChoiceList(OptionList):
    """Shows option states; `state` is the one under the pointer."""

    states: tuple[OptionState, ...] = ()

    def show(self, states: tuple[OptionState, ...], signs: Glyphs, *, pointer: int | None) -> None:
        """Replace the options; nothing is redrawn when they say the same."""
        lines = [option_line(number, state, signs) for number, state in enumerate(states, start=1)]
        same = len(lines) == self.option_count and all(
            isinstance(old.prompt, Content) and old.prompt.plain == new.plain and old.prompt.is_same(new)
            for old, new in zip(self.options, lines, strict=True)
        )
        self.states = states
        if not same:
            self.set_options([Option(line) for line in lines])
        if states and pointer is not None:
            self.highlighted = min(pointer, len(states) - 1)

    @property
    def state(self) -> OptionState | None:
        """The option under the pointer."""
        at = self.highlighted
        return self.states[at] if at is not None and at < len(self.states) else None
