"""What is asked of the model while it trains, what it may lose, and on how many cards: fields with values.

Owns the pointer and the keys. Values and their words are in `scaler_tui.limit_choices`; figures are the engine's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Input, Static

from engine.errors import EngineError
from scaler_tui import limit_choices
from scaler_tui.limit_choices import FIELDS, TITLES
from scaler_tui.screens.planning import PlanningScreen
from scaler_tui.text_plan import TextPlan, keep
from scaler_tui.widgets import context_words
from scaler_tui.window_choices import Option

if TYPE_CHECKING:
    from engine.advise.sharded import CardCount


class LimitsScreen(PlanningScreen):
    """Fields above; the values of the pointed one below."""

    place = "limits"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "back", "Done"),
        Binding("right", "change(1)", "Change", key_display="←→"),
        Binding("left", "change(-1)", "Value before", show=False),
        Binding("t", "type", "Type", priority=True, tooltip="Name benchmarks of lm-eval, or their .yaml files"),
        Binding("b,escape,backspace", "back", "Back", key_display="b"),
        Binding("up,k", "move(-1)", "Field", show=False),
        Binding("down,j", "move(1)", "Field", show=False),
        *[Binding(str(n), f"pick({n})", "Value directly", show=False) for n in range(1, 10)],
        Binding("pageup", "page(-1)", "Page", show=False),
        Binding("pagedown,space", "page(1)", "Page", show=False),
    ]

    def __init__(self, approach: str) -> None:
        super().__init__()
        self.approach = approach
        self.pointer = 0
        self.counts: tuple[CardCount, ...] = ()
        self.sequences = 0
        """Of a step; 0 while unknown."""

    def body(self) -> Iterable[Widget]:
        """Fields, the one for typing, values."""
        yield Static(id="limit-fields", markup=False)
        yield Input(id="limit-field", compact=True, placeholder="lm-eval names or .yaml files, by commas; Enter takes")
        with VerticalScroll(id="limit-scroll", can_focus=False):
            yield Static(id="limit-words", markup=False)

    @property
    def plan(self) -> TextPlan:
        """The choice."""
        return self.scaler.wizard.text

    @property
    def field(self) -> str:
        """The pointed field."""
        return FIELDS[self.pointer]

    def on_mount(self) -> None:
        """Estimates at once: they are arithmetic."""
        self.query_one("#limit-field").display = False
        self.replan()

    def on_unmount(self) -> None:
        """The choice outlasts the screen."""
        keep(self.plan.choice)

    def on_resize(self, event: Resize) -> None:
        """The words wrap anew."""
        self.call_after_refresh(self.show_limits)

    def title_text(self) -> str:
        """Of what."""
        return f"limits for {self.scaler.wizard.model_source}"

    def replan(self) -> None:
        """What several cards would give."""
        wizard = self.scaler.wizard
        self.counts = limit_choices.count_rows(wizard.run_row(self.approach))
        if wizard.machine is not None and wizard.architecture is not None:
            with contextlib.suppress(EngineError):  # a spec that cannot be is explained where it is reviewed
                training = wizard.spec_for(self.approach, force=True).training
                self.sequences = training.batch_size * training.gradient_accumulation
        self.show_limits()

    def options(self, field: str) -> tuple[Option, ...]:
        """What a field may be."""
        return limit_choices.options(self.plan, field, self.counts, self.sequences)

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def show_limits(self) -> None:
        """Draw fields and values."""
        if not self.is_mounted:
            return
        width = max(self.size.width - 3, 30)
        shown = [(TITLES[field], self._shown(field)) for field in FIELDS]
        self.query_one("#limit-fields", Static).update(
            context_words.field_lines(shown, self.pointer, width, self.signs)
        )
        value = limit_choices.value_of(self.plan, self.field)
        parts = [context_words.option_lines(self.options(self.field), value, width, self.signs)]
        if self.field == "processes" and not self.counts:
            words = "This machine has no card, so there are no figures: several processes share its cores."
            parts.append(context_words.wrapped_line(words, width))
        self.query_one("#limit-words", Static).update(Content("\n\n").join(parts))

    def _shown(self, field: str) -> Option:
        value = limit_choices.value_of(self.plan, field)
        return next((one for one in self.options(field) if one.value == value), Option(value, value, ""))

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what can be done."""
        if action == "type":
            return self.is_mounted and self.field == FIELDS[0] and not self.query_one("#limit-field", Input).has_focus
        return True

    def action_move(self, by: int) -> None:
        """Another field; it stops at both ends."""
        self.pointer = min(max(self.pointer + by, 0), len(FIELDS) - 1)
        self.show_limits()
        self.refresh_bindings()
        self.query_one("#limit-scroll", VerticalScroll).scroll_home(animate=False)

    def action_change(self, by: int) -> None:
        """Another value of the pointed field, over those that cannot be chosen."""
        values = [option.value for option in self.options(self.field) if not option.why_not]
        now = limit_choices.value_of(self.plan, self.field)
        at = values.index(now) if now in values else 0
        if values and 0 <= at + by < len(values):
            self._set(values[at + by])

    def action_pick(self, number: int) -> None:
        """Digits choose directly; one that cannot be says why."""
        options = self.options(self.field)
        if not 1 <= number <= len(options):
            return
        option = options[number - 1]
        if option.why_not:
            self.notify(option.why_not, title=f"{option.title} cannot be chosen", severity="warning", markup=False)
        else:
            self._set(option.value)

    def _set(self, value: str) -> None:
        limit_choices.choose(self.plan, self.field, value)
        self.show_limits()

    def action_page(self, pages: int) -> None:
        """Scroll the values by what is visible of them, less a line."""
        scroll = self.query_one("#limit-scroll", VerticalScroll)
        scroll.scroll_relative(y=pages * max(scroll.size.height - 1, 1), animate=False)

    def action_type(self) -> None:
        """Name benchmarks."""
        field = self.query_one("#limit-field", Input)
        field.value = ", ".join(self.plan.choice.tasks)
        field.display = True
        self.set_focus(field)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the names; whether they are known is found before training."""
        event.stop()
        self._set(event.value.strip() or limit_choices.NOTHING)
        self._close_field()

    def _close_field(self) -> None:
        self.query_one("#limit-field").display = False
        self.set_focus(None)

    def action_back(self) -> None:
        """Out of the field, else one screen back."""
        if self.query_one("#limit-field").display:
            self._close_field()
        else:
            self.app.pop_screen()
