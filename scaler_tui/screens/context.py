"""A longer window: how long, by which method, trained how; what each takes here, and which programs read the result.

Owns the pointer and the choice. Plans come from a thread, figures of methods from a race on a screen of its own;
choosing leads to the review, nothing is written here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Input, Static

from engine.errors import EngineError
from engine.jobs.spec_context import AUTO
from engine.units import format_count
from scaler_tui.feeds.context_feed import WindowAsked, WindowPlanned, plan_window_in_thread
from scaler_tui.feeds.race_feed import RaceNews
from scaler_tui.race_state import RaceState, progress_words
from scaler_tui.screens.planning import PlanningScreen
from scaler_tui.widgets import context_words
from scaler_tui.window import APPROACH, TRAININGS, RaceKey, trained
from scaler_tui.window_choices import Option, length_options, method_options, training_options
from scaler_tui.window_facts import SEARCHED, WindowFacts

if TYPE_CHECKING:
    from engine.advise.matrix import ApproachRow

FIELDS = ("Length", "Method", "Training")


class ContextScreen(PlanningScreen):
    """Three fields above; below, the values of the pointed one, and who reads the result."""

    place = "longer window"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "Review"),
        Binding("right", "change(1)", "Change", key_display="←→"),
        Binding("left", "change(-1)", "Value before", show=False),
        Binding("m", "measure", "Measure", tooltip="Race every method on this model, without training: minutes"),
        Binding("s", "search", "Search", tooltip="Search factors for this model (LongRoPE2)"),
        Binding("t", "type", "Length", priority=True, tooltip="Type another length: 32k, 100000"),
        Binding("b,escape,backspace", "back", "Back", key_display="b"),
        Binding("r", "recommended", "Recommended", show=False, tooltip="Leave method and training to the program"),
        Binding("up,k", "move(-1)", "Field", show=False),
        Binding("down,j", "move(1)", "Field", show=False),
        *[Binding(str(n), f"pick({n})", "Value directly", show=False) for n in range(1, 10)],
        Binding("pageup", "page(-1)", "Page", show=False),
        Binding("pagedown,space", "page(1)", "Page", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.facts: WindowFacts | None = None
        self.problem: EngineError | None = None
        self.pointer = 1
        self.rows: dict[str, ApproachRow] = {}
        """Way of training -> what it takes here."""
        self._asked: WindowAsked | None = None

    def body(self) -> Iterable[Widget]:
        """Fields, the one for another length, values and words."""
        yield Static(id="window-fields", markup=False)
        yield Input(
            id="length", compact=True, placeholder="tokens to read at once: 32k, 100000; Enter plans, Esc leaves"
        )
        with VerticalScroll(id="window-scroll", can_focus=False):
            yield Static(id="window-words", markup=False)

    def on_mount(self) -> None:
        """Plan."""
        self.query_one("#length").display = False
        self.replan()

    def on_race_news(self, message: RaceNews) -> None:
        """A race goes on in the background."""
        self.show_window()

    def on_resize(self, event: Resize) -> None:
        """The words wrap anew."""
        self.call_after_refresh(self.show_window)

    def title_text(self) -> str:
        """Which model, to what."""
        wizard = self.scaler.wizard
        window = wizard.architecture.context_length if wizard.architecture else 0
        to = f" {window:,} {self.signs.arrow} {self.target:,}" if window and self.target else ""
        return f"longer window: {wizard.model_source}{to}"

    # ── plans ────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def target(self) -> int:
        """Tokens of the longer window."""
        return self.scaler.wizard.window_length

    @property
    def key(self) -> RaceKey:
        """The race for the chosen length."""
        return RaceKey(self.scaler.wizard.model_source, self.target)

    @property
    def race(self) -> RaceState:
        """What was measured for it."""
        return self.scaler.wizard.window.race(self.key)

    def replan(self) -> None:
        """Plan in a thread; estimates at once, they are arithmetic."""
        wizard = self.scaler.wizard
        if wizard.machine is not None and wizard.architecture is not None:
            self._estimate()
            factors = RaceKey(wizard.model_source, self.target, SEARCHED).factors
            asked = WindowAsked(wizard.model_source, self.target, str(factors) if factors.is_file() else "")
            if asked != self._asked:
                self._asked = asked
                plan_window_in_thread(self, asked)
        self.refresh_title()
        self.show_window()

    def _estimate(self) -> None:
        wizard = self.scaler.wizard
        found = {how: wizard.window_row(trained(wizard.window.choice, how)) for how in TRAININGS}
        self.rows = {how: row for how, row in found.items() if row is not None}

    def on_window_planned(self, message: WindowPlanned) -> None:
        """The planner has answered."""
        message.stop()
        if message.asked != self._asked:
            return
        self.facts, self.problem = message.facts, message.error
        self.show_window()
        self.refresh_bindings()

    # ── values ───────────────────────────────────────────────────────────────────────────────────────────────────
    def options(self, field: int) -> tuple[Option, ...]:
        """What a field may be."""
        if field == 2:
            return training_options(self.rows)
        if self.facts is None:
            return ()
        if field == 0:
            return length_options(self.facts.original, self.target)
        return method_options(self.facts, self.race, "key s")

    def value(self, field: int) -> str:
        """What a field is; training that was left open is what the program would take."""
        window = self.scaler.wizard.window
        if field == 0:
            return str(self.target)
        if field == 1:
            return window.choice.method
        return window.training() or self.scaler.wizard.gentlest_window

    def _set(self, field: int, value: str) -> None:
        window = self.scaler.wizard.window
        if field == 0:
            window.choice = replace(window.choice, length=int(value))
            self.replan()
        elif field == 1:
            window.choice = replace(window.choice, method=value)
        else:
            window.train(value)
        self.show_window()
        self.refresh_bindings()

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def show_window(self) -> None:
        """Draw fields and words."""
        if not self.is_mounted:
            return
        width = max(self.size.width - 3, 30)
        fields, words = self.query_one("#window-fields", Static), self.query_one("#window-words", Static)
        if self.problem is not None or not self.rows:
            fields.update("")
            words.update(self._waiting())
            return
        shown = [(name, self._shown(index)) for index, name in enumerate(FIELDS)]
        fields.update(context_words.field_lines(shown, self.pointer, width, self.signs))
        options, value = self.options(self.pointer), self.value(self.pointer)
        parts = [context_words.option_lines(options, value, width, self.signs)]
        if self.facts is not None:
            parts.append(context_words.readers(self.facts, self._method(), width, self.signs))
            parts.append(context_words.notes(self.facts, self._method(), width, self.signs))
        if self.race.running or self.race.rows:
            parts.insert(1, context_words.wrapped_line(f"Race: {progress_words(self.race)}.", width))
        words.update(Content("\n\n").join(part for part in parts if part.plain))

    def _waiting(self) -> Content:
        if self.problem is None:
            return Content(self.scaler.wizard.waiting_for or "Planning ...")
        return context_words.refusal(self.problem, self.signs)

    def _method(self) -> str:
        """The method the words about readers are for: a race's winner where all were measured."""
        wizard = self.scaler.wizard
        return wizard.window_choice.method

    def _shown(self, field: int) -> Option:
        value = self.value(field)
        found = next((option for option in self.options(field) if option.value == value), None)
        return found or Option(value, f"{format_count(float(value))} tokens" if field == 0 else value, "")

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what can be done."""
        if action in ("choose", "measure", "change"):
            return True if self.facts is not None and self.problem is None else None
        if action == "search":
            return True if self.facts is not None and self.facts.of(SEARCHED) is not None else None
        if action == "type":
            return not (self.is_mounted and self.query_one("#length", Input).has_focus)
        return True

    def action_move(self, by: int) -> None:
        """Another field; it stops at both ends."""
        self.pointer = min(max(self.pointer + by, 0), len(FIELDS) - 1)
        self.show_window()
        self.query_one("#window-scroll", VerticalScroll).scroll_home(animate=False)

    def action_change(self, by: int) -> None:
        """Another value of the pointed field, over those that cannot be chosen."""
        options = [option for option in self.options(self.pointer) if not option.why_not]
        values = [option.value for option in options]
        at = values.index(self.value(self.pointer)) if self.value(self.pointer) in values else 0
        if options and 0 <= at + by < len(options):
            self._set(self.pointer, values[at + by])

    def action_pick(self, number: int) -> None:
        """Digits choose directly; one that cannot be says why."""
        options = self.options(self.pointer)
        if not 1 <= number <= len(options):
            return
        option = options[number - 1]
        if option.why_not:
            self.notify(option.why_not, title=f"{option.title} cannot be chosen", severity="warning", markup=False)
        else:
            self._set(self.pointer, option.value)

    def action_recommended(self) -> None:
        """Method and training as the program would choose them."""
        window = self.scaler.wizard.window
        window.choice = replace(window.choice, method=AUTO, window="", train=True)
        self.show_window()

    def action_page(self, pages: int) -> None:
        """Scroll the words by what is visible of them, less a line."""
        scroll = self.query_one("#window-scroll", VerticalScroll)
        scroll.scroll_relative(y=pages * max(scroll.size.height - 1, 1), animate=False)

    def action_type(self) -> None:
        """Another length."""
        field = self.query_one("#length", Input)
        field.display = True
        field.value = ""
        self.set_focus(field)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Plan for what was typed."""
        event.stop()
        from engine.advise.questions import load_graph, parse_answer

        text = event.value.strip()
        self._close_field()
        if not text:
            return
        try:
            length = parse_answer(load_graph().question("context"), text)
        except EngineError as error:
            self.notify(error.what, title="Not a length", severity="warning", markup=False)
            return
        self._set(0, str(length))

    def _close_field(self) -> None:
        self.query_one("#length").display = False
        self.set_focus(None)

    def action_back(self) -> None:
        """Out of the field, else one screen back."""
        if self.query_one("#length").display:
            self._close_field()
        else:
            self.app.pop_screen()

    def action_measure(self) -> None:
        """The race of all methods."""
        from scaler_tui.screens.race import RaceScreen

        if self.facts is not None:
            self.app.push_screen(RaceScreen(self.key, self.facts))

    def action_search(self) -> None:
        """The search of factors."""
        from scaler_tui.screens.search import SearchScreen

        if self.facts is not None:
            self.app.push_screen(SearchScreen(replace(self.key, method=SEARCHED)))

    def action_choose(self) -> None:
        """On to the review."""
        if self.facts is not None and self.problem is None:
            self.scaler.open_decided(APPROACH)
