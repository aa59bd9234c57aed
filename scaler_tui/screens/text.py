"""Large text to train on: which sources, how much of each, what was found in them.

Owns the pointer, the keys and the field. Text is read by the `corpus` command in processes of its own; choosing leads
to the schedule, nothing is written here but the choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Input, Static

from engine.errors import EngineError
from engine.units import format_count, parse_count
from scaler_tui.feeds.corpus_check import SourceChecked, check_source_in_thread
from scaler_tui.screens.planning import PlanningScreen
from scaler_tui.text_plan import WEIGHT_STEP, TextPlan
from scaler_tui.widgets.text_lines import source_table, source_words

QUIET = "$foreground 75%"
PLACEHOLDERS = {
    "add": "a file, a folder, a pattern, or hub:owner/name; Enter adds, Esc leaves",
    "path": "its path; Enter changes, Esc leaves",
    "name": "its name, as curves and reports call it; Enter changes, Esc leaves",
    "weight": "its weight beside the others, such as 0.7; Enter changes, Esc leaves",
    "field": "key or column that holds a document's text; Enter changes, Esc leaves",
    "tokens": "tokens to train on: 20M, 1.5B; 0 is every token once; Enter changes, Esc leaves",
}


class TextScreen(PlanningScreen):
    """Table of sources above, what was found in the pointed one below."""

    place = "text"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "Schedule"),
        Binding("a", "type('add')", "Add", priority=True, tooltip="Add a source: a file, a folder, hub:owner/name"),
        Binding("right", "weigh(1)", "Weight", key_display="←→"),
        Binding("left", "weigh(-1)", "Less of it", show=False),
        Binding("t", "type('tokens')", "Tokens", priority=True, tooltip="How many tokens to train on"),
        Binding("d,delete", "remove", "Remove", key_display="d", tooltip="Leave the pointed source out"),
        Binding("s", "by_size", "By size", tooltip="As much of each source as there is of it"),
        Binding("l", "limits", "Limits", tooltip="Benchmarks, what may be lost, loss spikes, processes"),
        Binding("b,escape,backspace", "back", "Back", key_display="b"),
        Binding("p", "type('path')", "Path", show=False, priority=True, tooltip="Change its path"),
        Binding("n", "type('name')", "Name", show=False, priority=True, tooltip="Change its name"),
        Binding("w", "type('weight')", "Weight", show=False, priority=True, tooltip="Type its weight"),
        Binding("f", "type('field')", "Field", show=False, priority=True, tooltip="Key or column of the text"),
        Binding("0", "zero", "Weight 0", show=False, tooltip="Weight 0: it is not read"),
        Binding("r", "read_again", "Read again", show=False, tooltip="Check the pointed source again"),
        Binding("up,k", "move(-1)", "Source", show=False),
        Binding("down,j", "move(1)", "Source", show=False),
        Binding("pageup", "page(-1)", "Page", show=False),
        Binding("pagedown,space", "page(1)", "Page", show=False),
    ]

    def __init__(self, approach: str) -> None:
        super().__init__()
        self.approach = approach
        self.pointer = 0
        self.typing = ""
        """What the field changes; a key of PLACEHOLDERS."""
        self.refused = ""
        """Why the last thing typed was not taken."""

    def body(self) -> Iterable[Widget]:
        """Table, field, words."""
        yield Static(id="text-total", markup=False)
        yield Static(id="text-table", markup=False)
        yield Input(id="text-field", compact=True)
        with VerticalScroll(id="text-scroll", can_focus=False):
            yield Static(id="text-words", markup=False)

    @property
    def plan(self) -> TextPlan:
        """The choice."""
        return self.scaler.wizard.text

    def on_mount(self) -> None:
        """Check what was not checked yet."""
        self.query_one("#text-field").display = False
        self.replan()

    def on_unmount(self) -> None:
        """The choice outlasts the screen."""
        from scaler_tui.text_plan import keep

        keep(self.plan.choice)

    def on_resize(self, event: Resize) -> None:
        """Another width."""
        self.call_after_refresh(self.show_text)

    def title_text(self) -> str:
        """Which model reads it."""
        return f"text for {self.scaler.wizard.model_source}"

    # ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────
    def replan(self) -> None:
        """Have every unread source read by the model's tokenizer."""
        wizard, plan = self.scaler.wizard, self.plan
        plan.forget_checks(wizard.model_source)
        if wizard.model_is_local:
            for source in plan.unread():
                plan.begin_check(source)
                check_source_in_thread(self, wizard.model_source, source)
        self.show_text()

    def on_source_checked(self, message: SourceChecked) -> None:
        """A report came."""
        message.stop()
        if message.model == self.plan.model:
            self.plan.end_check(message.source, message.found)
            self.scaler.wizard.count_text()
            self.show_text()
            self.refresh_bindings()

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def show_text(self) -> None:
        """Draw table and words."""
        if not self.is_mounted:
            return
        plan, width = self.plan, max(self.size.width - 2, 30)
        self.pointer = min(self.pointer, max(len(plan.sources) - 1, 0))
        self.query_one("#text-total", Static).update(self._total())
        self.query_one("#text-table", Static).update(source_table(plan, self.pointer, width, self.signs))
        parts: list[Content] = []
        if self.refused:
            parts.append(Content.styled(f"{self.signs.no} {self.refused}", "$text-error"))
        if plan.sources and plan.obstacle and not self.refused:
            parts.append(Content.styled(f"{self.signs.warn} {plan.obstacle}", "$text-warning"))
        if plan.sources:
            parts.append(source_words(plan, self.pointer, width - 2, self.signs))
        if not self.scaler.wizard.model_is_local:
            parts.append(Content.styled("Tokens are counted once the model's tokenizer is on this disk.", QUIET))
        self.query_one("#text-words", Static).update(Content("\n").join(parts))

    def _total(self) -> Content:
        plan = self.plan
        if plan.choice.tokens:
            return Content.assemble(("Trains on ", QUIET), (f"{format_count(plan.choice.tokens)} tokens", "bold"))
        known = plan.known_tokens
        counted = f"every token once: {format_count(known)}" if known else "every token once, when they are counted"
        if not known and not self.scaler.wizard.model_is_local:
            counted = f"about {format_count(plan.answered_tokens)} tokens, as answered"
        return Content.assemble(("Trains on ", QUIET), (counted, "bold"), ("  t types another number", QUIET))

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what can be done."""
        typing = self.is_mounted and self.query_one("#text-field", Input).has_focus
        if action == "type":
            about_one = parameters[0] not in ("add", "tokens")
            return not typing and (bool(self.plan.sources) or not about_one)
        if action in ("weigh", "remove", "by_size", "zero", "read_again"):
            return True if self.plan.sources else None
        if action == "choose":
            return None if self.plan.obstacle else True
        return True

    def action_move(self, by: int) -> None:
        """Another source."""
        self.pointer = min(max(self.pointer + by, 0), max(len(self.plan.sources) - 1, 0))
        self.refused = ""
        self.show_text()
        self.query_one("#text-scroll", VerticalScroll).scroll_home(animate=False)

    def action_page(self, pages: int) -> None:
        """Scroll the words by what is visible of them, less a line."""
        scroll = self.query_one("#text-scroll", VerticalScroll)
        scroll.scroll_relative(y=pages * max(scroll.size.height - 1, 1), animate=False)

    def action_weigh(self, by: int) -> None:
        """More or less of the pointed source."""
        self.plan.weigh(self.pointer, by * WEIGHT_STEP)
        self._changed()

    def action_zero(self) -> None:
        """Nothing of it."""
        self.plan.change(self.pointer, weight=0.0)
        self._changed()

    def action_by_size(self) -> None:
        """The natural mix."""
        if not self.plan.weigh_by_size():
            self.refused = "The sources are not all counted yet."
        self._changed()

    def action_remove(self) -> None:
        """Leave it out; the files stay where they are."""
        self.plan.remove(self.pointer)
        self._changed()

    def action_read_again(self) -> None:
        """After the files were changed."""
        source = self.plan.sources[self.pointer]
        self.plan.begin_check(source)
        check_source_in_thread(self, self.plan.model, source)
        self.show_text()

    def _changed(self) -> None:
        self.scaler.wizard.count_text()
        self.show_text()
        self.refresh_bindings()

    def action_type(self, what: str) -> None:
        """Open the field for one of PLACEHOLDERS."""
        field = self.query_one("#text-field", Input)
        self.typing, self.refused = what, ""
        source = self.plan.sources[self.pointer] if self.plan.sources else None
        values = {"tokens": str(self.plan.choice.tokens or "")}
        if source is not None and what not in ("add", "tokens"):
            values[what] = f"{getattr(source, what):g}" if what == "weight" else str(getattr(source, what))
        field.placeholder = PLACEHOLDERS[what]
        field.value = values.get(what, "")
        field.display = True
        self.set_focus(field)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take what was typed, or say why not."""
        event.stop()
        text = event.value.strip()
        try:
            self._take(text)
        except EngineError as error:
            self.refused = " ".join(part for part in (error.what, error.next_step) if part)
        self._close_field()
        self.replan()
        self._changed()

    def _take(self, text: str) -> None:
        plan = self.plan
        if self.typing == "add":
            if text:
                self.pointer = plan.add(text)
        elif self.typing == "tokens":
            plan.decide(tokens=int(parse_count(text)) if text else 0)
        elif self.typing == "weight":
            plan.change(self.pointer, weight=_number(text))
        elif text:
            plan.change(self.pointer, **{self.typing: text})

    def _close_field(self) -> None:
        self.query_one("#text-field").display = False
        self.set_focus(None)

    def action_back(self) -> None:
        """Out of the field, else one screen back."""
        if self.query_one("#text-field").display:
            self._close_field()
        else:
            self.app.pop_screen()

    def action_limits(self) -> None:
        """Benchmarks, limits, processes."""
        from scaler_tui.screens.limits import LimitsScreen

        self.app.push_screen(LimitsScreen(self.approach))

    def action_choose(self) -> None:
        """On to the schedule."""
        from scaler_tui.screens.schedule import ScheduleScreen

        if self.plan.obstacle:
            self.refused = self.plan.obstacle
            self.show_text()
        else:
            self.app.push_screen(ScheduleScreen(self.approach))


def _number(text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise EngineError("text.weight", f"{text!r} is no number.", next_step="Type one such as 0.7.") from None
