"""Which operator grows each axis of a plan: every one there is, what it keeps and loses, and why some cannot here.

Owns the list and the marks. Must not try an operator: the options are computed by the engine, in a thread.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from scaler_tui.screens.base import FramedScreen

if TYPE_CHECKING:
    from engine.advise.operator_options import OperatorOption

QUIET = "$foreground 75%"


class OperatorsScreen(FramedScreen):
    """Choose; each choice is tried on the plan at once, so that the list always says what is possible together."""

    place = "operators"
    AUTO_FOCUS = "#operators"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "choose", "Choose", key_display="Enter"),
        Binding("b,escape,backspace,left", "back", "Done", key_display="b", tooltip="Back to the plans"),
        Binding("r", "defaults", "Recommended", tooltip="The exact ones the planner chose"),
        Binding("j", "cursor(1)", "Move", show=False),
        Binding("k", "cursor(-1)", "Move", show=False),
    ]

    def __init__(
        self, plan: str, options: tuple[OperatorOption, ...], choose: Callable[[dict[str, str]], None]
    ) -> None:
        """`choose` takes the operators by axis; `show_options` brings what is possible then."""
        super().__init__()
        self.plan = plan
        self.options = options
        self._choose = choose

    def body(self) -> Iterable[Widget]:
        """List above, the pointed operator's words below."""
        yield OptionList(id="operators", compact=True)
        yield Static(id="operator-words", markup=False)

    def on_mount(self) -> None:
        """Fill the list."""
        self.show_options(self.options)

    def title_text(self) -> str:
        """Of which plan."""
        return f"operators of the {self.plan} plan"

    def on_resize(self, event: Resize) -> None:
        """The words wrap anew."""
        self.call_after_refresh(self._show_words)

    @property
    def list(self) -> OptionList:
        """The list."""
        return self.query_one("#operators", OptionList)

    def show_options(self, options: tuple[OperatorOption, ...]) -> None:
        """Draw what is possible now; the pointer stays where it is."""
        from engine.advise.operator_options import AXIS_WORDS

        self.options = options
        pointed = self.list.highlighted
        entries: list[Option] = []
        axis = ""
        for option in options:
            if option.axis != axis:
                axis = option.axis
                heading = AXIS_WORDS.get(axis, axis)
                entries.append(Option(Content.styled(f"{heading[:1].upper()}{heading[1:]}", "bold"), disabled=True))
            entries.append(Option(self._line(option), id=f"{option.axis}={option.name}"))
        self.list.set_options(entries)
        chosen = [index for index, entry in enumerate(entries) if entry.id and self._option(entry.id).chosen]
        self.list.highlighted = pointed if pointed is not None else chosen[0] if chosen else None
        self._show_words()

    def _option(self, entry: str) -> OperatorOption:
        return next(option for option in self.options if f"{option.axis}={option.name}" == entry)

    def _line(self, option: OperatorOption) -> Content:
        signs = self.signs
        mark = signs.on if option.chosen else signs.off
        name = Content.assemble(f"  {mark} ", (f"{option.title:<27}", "bold" if option.chosen else ""))
        if option.reason:
            return Content.assemble(name, (f" {signs.no} not possible: {option.reason}", QUIET))
        kept = (f" {signs.ok} exact", "$text-success") if option.exact else (f" {signs.warn} changes", "$text-warning")
        star = (f"  {signs.star} recommended", QUIET) if option.default else ""
        return Content.assemble(name, kept, star)

    @property
    def pointed(self) -> OperatorOption | None:
        """The operator under the pointer."""
        at = self.list.highlighted
        entry = self.list.get_option_at_index(at) if at is not None else None
        return self._option(entry.id) if entry is not None and entry.id else None

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Say more about it."""
        event.stop()
        self._show_words()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter."""
        event.stop()
        self.action_choose()

    def _show_words(self) -> None:
        option = self.pointed
        words = self.query_one("#operator-words", Static)
        if option is None:
            words.update("")
            return
        keeps = "The function is kept exactly." if option.exact else option.loses
        if option.exact and option.loses:
            keeps += f" {option.loses}"
        if option.reason:
            keeps = f"Not possible for these sizes: {option.reason}"
        width = max(self.size.width - 3, 20)
        lines = [*textwrap.wrap(keeps, width), *textwrap.wrap(f"Source: {option.source}", width)]
        words.update(Content.assemble((f"{option.title} ({option.name})\n", "bold"), "\n".join(lines)))

    def action_cursor(self, by: int) -> None:
        """vi keys."""
        (self.list.action_cursor_down if by > 0 else self.list.action_cursor_up)()

    def action_choose(self) -> None:
        """Take the pointed operator for its axis."""
        option = self.pointed
        if option is None or option.chosen:
            return
        if option.reason:
            self.notify(option.reason, title=f"{option.title} is not possible", severity="warning", markup=False)
            return
        self._choose({**self._chosen(), option.axis: option.name})

    def action_defaults(self) -> None:
        """The planner's own choice."""
        self._choose({})

    def _chosen(self) -> dict[str, str]:
        return {option.axis: option.name for option in self.options if option.chosen}
