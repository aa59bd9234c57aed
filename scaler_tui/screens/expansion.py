"""The ways to grow a model, side by side: shape, size, what training takes here, exact or not, and the best of them.

Owns the pointer, the wanted size and the choice. Plans and figures come from the engine, in threads; choosing leads to
the review, nothing is written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Input, Static

from engine.errors import EngineError
from engine.jobs.spec_section import Task
from engine.units import format_bytes, format_count
from scaler_tui import growth_text
from scaler_tui.feeds.growth_feed import (
    GrowthPlanned,
    OperatorsTried,
    plan_in_thread,
    rechoose_in_thread,
    try_operators_in_thread,
)
from scaler_tui.feeds.startup import StartupNews
from scaler_tui.screens.base import FramedScreen
from scaler_tui.screens.operators import OperatorsScreen
from scaler_tui.spec_growth_text import LEARNS
from scaler_tui.widgets.plan_columns import PlanColumns

if TYPE_CHECKING:
    from engine.advise.growth import GrowthOption
    from engine.expansion.planner import Source

QUIET = "$foreground 75%"
ROWS_OF_WORDS = 6
"""Bars get what the words leave: figures never go."""


class ExpansionScreen(FramedScreen):
    """Columns above, the words of the pointed plan below."""

    place = "plans"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "Choose"),
        Binding("b,escape,backspace", "back", "Back", key_display="b"),
        Binding("right", "move(1)", "Plan", key_display="←→"),
        Binding("left", "move(-1)", "Plan before; from the first one back", show=False),
        Binding("t", "type", "Size", priority=True, tooltip="Type another size: 7B, 900M, 2x"),
        Binding("o", "operators", "Operators", tooltip="How each axis grows, and what each way keeps"),
        Binding("l", "learns", "What learns", tooltip="Which parameters are trained afterwards"),
        Binding("r", "recommended", "Recommended"),
        *[Binding(str(n), f"pick({n})", "Plan directly", show=False) for n in range(1, 7)],
        Binding("up,k", "scroll(-1)", "Scroll", show=False),
        Binding("down,j", "scroll(1)", "Scroll", show=False),
        Binding("pageup", "page(-1)", "Page", show=False),
        Binding("pagedown,space", "page(1)", "Page", show=False),
    ]

    def __init__(self, approach: str) -> None:
        super().__init__()
        self.approach = approach
        self.source: Source | None = None
        self.options: tuple[GrowthOption, ...] = ()
        self.problem: EngineError | None = None
        self.size_text = ""
        """What was typed; "" follows the answers."""
        self._asked = 0
        self._waits = True

    def body(self) -> Iterable[Widget]:
        """Columns, the field for another size, words."""
        yield PlanColumns(id="plans")
        yield Input(id="size", compact=True, placeholder="parameters to reach: 7B, 900M, 2x; Enter plans, Esc leaves")
        with VerticalScroll(id="plan-scroll", can_focus=False):
            yield Static(id="plan-words", markup=False)

    def on_mount(self) -> None:
        """Ask for plans."""
        self.query_one("#size").display = False
        self.ask()

    def on_screen_resume(self) -> None:
        """Another machine may be planned for than when the figures were made."""
        super().on_screen_resume()
        if self.options and self.options[0].found.machine != self.scaler.wizard.machine:
            self.ask()

    def on_startup_news(self, news: StartupNews) -> None:
        """Machine or model arrived."""
        if (news.machine is not None or news.model) and not self.options:
            self.refresh_title()
            self.ask()

    def on_resize(self, event: Resize) -> None:
        """Another width, another number of columns."""
        self.call_after_refresh(self.show_plans)

    def title_text(self) -> str:
        """Which model grows to what."""
        wizard = self.scaler.wizard
        target = self.options[0].choice.target_parameters if self.options else 0
        to = f" {self.signs.arrow} about {format_count(target)}" if target else ""
        return f"grow {wizard.model_source}{to}"

    # ── plans ────────────────────────────────────────────────────────────────────────────────────────────────────
    def ask(self) -> None:
        """Plan in a thread."""
        setting = self.scaler.wizard.growth_setting(self.approach)
        if setting is None:
            self.show_plans()
            return
        self._asked += 1
        self._waits = True
        plan_in_thread(self, self._asked, setting, self.source, self.size_text)
        self.show_plans()

    def on_growth_planned(self, message: GrowthPlanned) -> None:
        """The planner has answered."""
        message.stop()
        if message.asked != self._asked:
            return
        self._waits = False
        first = not self.options
        self.source, self.problem = message.source, message.error
        self.options = message.options or self.options
        if self.options and (first or self.pointer >= len(self.options) or self.size_text):
            self._point(self._begin())
        self.refresh_title()
        self.show_plans()
        self.refresh_bindings()
        if isinstance(self.app.screen, OperatorsScreen) and self.option is not None and self.source is not None:
            try_operators_in_thread(self, self.source, self.option)

    def _begin(self) -> int:
        """The plan chosen before, else the recommended one."""
        chosen = self.scaler.wizard.grown.get(self.approach)
        for index, option in enumerate(self.options):
            if chosen is not None and option.choice.plan == chosen.choice.plan:
                return index
        return next((index for index, option in enumerate(self.options) if option.choice.recommended), 0)

    @property
    def pointer(self) -> int:
        """Index of the pointed plan; the first column is the model as it is."""
        return self.query_one(PlanColumns).pointer - 1

    @property
    def option(self) -> GrowthOption | None:
        """The pointed plan."""
        return self.options[self.pointer] if 0 <= self.pointer < len(self.options) else None

    def _point(self, index: int) -> None:
        self.query_one(PlanColumns).pointer = index + 1

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def show_plans(self) -> None:
        """Draw columns and words."""
        if not self.is_mounted:
            return
        table = self.query_one(PlanColumns)
        table.display = bool(self.options)
        if self.options and self.source is not None:
            columns = self._columns(self.source)
            rows = 2 + len(columns[0].shape) + len(columns[0].measures)
            table.bars = max(self.size.height - 3 - rows - ROWS_OF_WORDS, 0)
            table.columns = columns
        self.query_one("#plan-words", Static).update(self._words())

    def _columns(self, source: Source) -> tuple[growth_text.PlanColumn, ...]:
        needs, on_gpu, tokens = {}, False, 0.0
        for option in self.options:
            found = option.found
            on_gpu, tokens = not found.plan.devices.on_cpu, found.load.tokens[1]
            if option.grown.task.trains:
                needs[option.choice.id] = growth_text.Need(
                    found.memory.likely, found.hours.likely, found.judgement.memory.value
                )
        return growth_text.plan_columns(
            source,
            [option.choice for option in self.options],
            needs,
            place="VRAM" if on_gpu else "RAM",
            tokens=tokens,
        )

    def _words(self) -> Content:
        wizard, option = self.scaler.wizard, self.option
        parts: list[Content | str | tuple[str, str]] = []
        if self.problem is not None:
            parts += [(f"{self.signs.no} {self.problem.what} ", "bold $text-error")]
            parts += [f"{self.problem.cause} {self.problem.next_step}\n".replace("  ", " ")]
        if option is None:
            if self.problem is None:
                parts.append(wizard.waiting_for or "Planning ...")
            return Content.assemble(*parts)
        choice = option.choice
        exact = "the function is kept exactly" if choice.exact else "the function changes"
        parts += [("Learns  ", "bold"), f"{LEARNS[option.grown.task]}\n"]
        parts += [("Grows   ", "bold"), f"{growth_text.operators_words(choice.plan.operators)}: {exact}\n"]
        if choice.recommended:
            parts.append((f"{self.signs.star} Recommended. ", "bold"))
        parts.append(f"{choice.reason}\n" if choice.reason else "")
        parts += [("Fits?   ", "bold"), f"{self._fits(option)}\n"]
        shown = {choice.reason}
        for sentence in growth_text.plan_words(choice)[1:]:
            if sentence not in shown and not sentence.startswith("Grows "):
                parts.append(f"{self.signs.warn} {sentence}\n")
        parts.append(self._frank(option))
        return Content.assemble(*parts)

    def _fits(self, option: GrowthOption) -> str:
        if not option.grown.task.trains:
            return f"{format_bytes(option.choice.disk_bytes)} of disk, and 1.5 GiB of RAM at any size"
        packed = "; counted as if the old part had 16 bits" if option.grown.task is Task.QLORA_GROWN else ""
        return f"{option.found.verdict}: {option.found.judgement.reason}{packed}"

    def _frank(self, option: GrowthOption) -> Content:
        """What must be known before; the review asks for agreement once."""
        parts: list[str | tuple[str, str]] = []
        for word in self.scaler.wizard.frank_words(self.approach, option.grown):
            parts += [(f"{self.signs.warn} {word.label}: ", "bold $text-warning"), f"{word.text}\n"]
        return Content.assemble(*parts)

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what can be done."""
        if action in ("choose", "learns", "operators"):
            return True if self.is_mounted and self.option is not None and not self._waits else None
        if action == "type":
            return not (self.is_mounted and self.query_one("#size", Input).has_focus)
        return True

    def action_move(self, by: int) -> None:
        """Another plan; left of the first one is where one came from."""
        if self.pointer + by < 0:
            self.action_back()
        elif self.pointer + by < len(self.options):
            self._point(self.pointer + by)
            self._show_pointed()

    def action_pick(self, number: int) -> None:
        """Digits point directly."""
        if 1 <= number <= len(self.options):
            self._point(number - 1)
            self._show_pointed()

    def action_recommended(self) -> None:
        """Pointer to the recommended plan."""
        for index, option in enumerate(self.options):
            if option.choice.recommended:
                self.action_pick(index + 1)

    def _show_pointed(self) -> None:
        self.show_plans()
        self.refresh_bindings()
        self.query_one("#plan-scroll", VerticalScroll).scroll_home(animate=False)

    def action_scroll(self, lines: int) -> None:
        """Scroll the words."""
        self.query_one("#plan-scroll", VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_page(self, pages: int) -> None:
        """Scroll the words by what is visible of them, less a line."""
        self.action_scroll(pages * max(self.query_one("#plan-scroll").size.height - 1, 1))

    def action_type(self) -> None:
        """Another size."""
        field = self.query_one("#size", Input)
        field.display = True
        field.value = self.size_text
        self.set_focus(field)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Plan for what was typed."""
        event.stop()
        self.size_text = event.value.strip()
        self._close_field()
        self.ask()

    def _close_field(self) -> None:
        self.query_one("#size").display = False
        self.set_focus(None)

    def action_back(self) -> None:
        """Out of the field, else one screen back."""
        if self.query_one("#size").display:
            self._close_field()
        else:
            self.app.pop_screen()

    def action_learns(self) -> None:
        """The next way to train this plan."""
        from engine.advise.grown import tasks_for
        from engine.advise.growth import option_of

        option, setting = self.option, self.scaler.wizard.growth_setting(self.approach)
        if option is None or setting is None:
            return
        tasks = tasks_for(option.choice.plan)
        task = tasks[(tasks.index(option.grown.task) + 1) % len(tasks)]
        new = option_of(setting, option.choice, task)
        self.options = tuple(new if one is option else one for one in self.options)
        self.show_plans()

    def action_operators(self) -> None:
        """Which operator grows what."""
        if self.option is not None and self.source is not None:
            try_operators_in_thread(self, self.source, self.option)

    def on_operators_tried(self, message: OperatorsTried) -> None:
        """Show them; a list that is open is brought up to date."""
        message.stop()
        if message.error is not None:
            self.scaler.show_error(message.error)
        elif isinstance(self.app.screen, OperatorsScreen):
            self.app.screen.show_options(message.options)
        elif self.option is not None:
            screen = OperatorsScreen(self.option.choice.title.lower(), message.options, self._take_operators)
            self.app.push_screen(screen)

    def _take_operators(self, operators: Mapping[str, str]) -> None:
        setting, option = self.scaler.wizard.growth_setting(self.approach), self.option
        if setting is None or option is None or self.source is None:
            return
        self._asked += 1
        rechoose_in_thread(self, self._asked, setting, self.source, self.options, (option.choice.id, operators))

    def action_choose(self) -> None:
        """This plan: on to the review."""
        if self.option is None or self._waits:
            return
        self.scaler.wizard.grown[self.approach] = self.option.grown
        self.scaler.open_decided(self.approach)
