"""The schedule before anything starts: learning rate, length, mix and parameters over the tokens, and its stages.

Owns the pointer, the shown curve and the field. Stages are changed here; layouts come from a thread, figures of memory
and time from the engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Input, Static

from engine.errors import EngineError
from engine.jobs.series import Bucket
from scaler_tui import schedule_curves, stage_edits
from scaler_tui.feeds.schedule_feed import SchedulePlanned, lay_out_text
from scaler_tui.screens.planning import PlanningScreen
from scaler_tui.widgets import stage_lines
from scaler_tui.widgets.chart_raster import ChartData, ChartLine, ChartMode
from scaler_tui.widgets.line_chart import LineChart
from scaler_tui.widgets.status_line import FixedText, clip, toned

if TYPE_CHECKING:
    from engine.advise.spec_stages import JobEstimate
    from engine.jobs.spec import JobSpec
    from engine.schedule.layout import JobSchedule

STYLES = Path(__file__).parent.parent / "styles"
WIDE, TALL = 110, 34
"""Cells and rows from which all four curves are shown; as the style sheet has them."""


class ScheduleScreen(PlanningScreen):
    """Curves above, stages below, the words of the pointed one at the end."""

    place = "schedule"
    CSS_PATH: ClassVar[list[str | PurePath]] = [STYLES / "chart.tcss"]
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "Review"),
        Binding("right,tab", "curve(1)", "Curve", key_display="←→"),
        Binding("left,shift+tab", "curve(-1)", "Curve before", show=False),
        Binding("a", "add", "Add stage", priority=True, tooltip="Add a stage after the pointed one"),
        Binding("d,delete", "remove", "Remove", key_display="d", tooltip="Remove the pointed stage"),
        Binding("t", "type('tokens')", "Tokens", priority=True, tooltip="Tokens of the pointed stage"),
        Binding("g", "type('growth')", "Growth", priority=True, tooltip="Grow the model before it: 2x, layers 12"),
        Binding("o", "type('stop')", "Stop rule", priority=True, tooltip="What ends it earlier: plateau 3, loss 2.1"),
        Binding("b,escape,backspace", "back", "Back", key_display="b"),
        Binding("l", "type('length')", "Length", show=False, priority=True, tooltip="Tokens of a sequence in it"),
        Binding("x", "type('mix')", "Mix", show=False, priority=True, tooltip="Weights of the sources in it"),
        Binding("r", "type('rate')", "Rate", show=False, priority=True, tooltip="Its peak learning rate"),
        Binding("n", "type('name')", "Name", show=False, priority=True, tooltip="Its name"),
        *[Binding(str(n), f"show_curve({n})", "Curve directly", show=False) for n in range(1, 5)],
        Binding("up,k", "move(-1)", "Stage", show=False),
        Binding("down,j", "move(1)", "Stage", show=False),
        Binding("pageup", "page(-1)", "Page", show=False),
        Binding("pagedown,space", "page(1)", "Page", show=False),
    ]

    def __init__(self, approach: str) -> None:
        super().__init__()
        self.approach = approach
        self.spec: JobSpec | None = None
        self.job: JobEstimate | None = None
        self.problem: EngineError | None = None
        self.pointer = 0
        self.curve = schedule_curves.CURVES[0]
        self.typing = ""
        self.refused = ""

    def body(self) -> Iterable[Widget]:
        """Tabs, four charts, table, field, words."""
        mode = ChartMode.BRAILLE if self.scaler.policy.unicode else ChartMode.ASCII
        yield FixedText(id="schedule-tabs")
        with Container(id="schedule-charts"):
            for name in schedule_curves.CURVES:
                with Vertical(classes="schedule-chart", id=f"curve-{name}"):
                    yield FixedText(id=f"legend-{name}", classes="schedule-legend")
                    yield LineChart(id=f"chart-{name}", mode=mode)
        yield Static(id="stage-table", markup=False)
        yield Input(id="stage-field", compact=True)
        with VerticalScroll(id="stage-scroll", can_focus=False):
            yield Static(id="stage-words", markup=False)

    def on_mount(self) -> None:
        """Lay it out."""
        self.query_one("#stage-field").display = False
        self.replan()

    def on_unmount(self) -> None:
        """The stages outlast the screen."""
        from scaler_tui.text_plan import keep

        if self.edits:
            keep(self.scaler.wizard.text.choice)

    def on_resize(self, event: Resize) -> None:
        """Another size, other charts."""
        self.call_after_refresh(self.show_schedule)

    def title_text(self) -> str:
        """Of what."""
        return f"schedule for {self.scaler.wizard.model_source}"

    # ── layout ───────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def edits(self) -> bool:
        """Whether stages can be changed here."""
        return self.scaler.wizard.trains_on_text

    def replan(self) -> None:
        """Make the spec and have it laid out."""
        wizard = self.scaler.wizard
        if wizard.machine is None or wizard.architecture is None:
            self.show_schedule()
            return
        try:
            self.spec = wizard.spec_for(self.approach, force=True)
        except EngineError as error:
            self.problem, self.spec, self.job = error, None, None
            self.show_schedule()
            return
        self.job = wizard.text.job(wizard.text_key(self.approach)) or self.job
        lay_out_text(self, wizard, self.approach, self.spec)
        self.show_schedule()

    def on_schedule_planned(self, message: SchedulePlanned) -> None:
        """The layout came; one about an older spec is dropped."""
        message.stop()
        wizard = self.scaler.wizard
        if message.key != wizard.text_key(self.approach):
            return
        self.problem, self.job = message.error, message.job
        if message.job is not None:
            wizard.text.laid_out = (message.key, message.job)
        self.pointer = min(self.pointer, max(self._count() - 1, 0))
        self.show_schedule()
        self.refresh_bindings()

    def _count(self) -> int:
        return len(self.job.stages) if self.job is not None else 0

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def show_schedule(self) -> None:
        """Draw everything for the present size."""
        if not self.is_mounted:
            return
        width = max(self.size.width - 2, 30)
        all_four = self.size.width >= WIDE and self.size.height >= TALL
        self.query_one("#schedule-charts").display = self.job is not None
        tabs = self.query_one("#schedule-tabs", FixedText)
        tabs.display = not all_four
        tabs.show(stage_lines.curve_tabs(self.curve))
        for name in schedule_curves.CURVES:
            self.query_one(f"#curve-{name}").display = all_four or name == self.curve
            if self.job is not None and (all_four or name == self.curve):
                self._draw(name, self.job.schedule, titled=all_four)
        table = Content("")
        if self.job is not None:
            table = stage_lines.stage_table(self.job, self.pointer, width, self.signs)
        self.query_one("#stage-table", Static).update(table)
        self.query_one("#stage-words", Static).update(self._words(width))

    def _draw(self, name: str, schedule: JobSchedule, *, titled: bool) -> None:
        total = schedule.tokens
        found = schedule_curves.curves(schedule, name)
        lines = [ChartLine(curve.letter, _points(curve.values, total)) for curve in found]
        chart = ChartData(
            total_steps=schedule_curves.PLACES,
            noun="tokens",
            lines=lines,
            tick=partial(schedule_curves.words_of_place, total=total),
        )
        self.query_one(f"#chart-{name}", LineChart).show(chart)
        words = schedule_curves.legend(found, name)
        title = f"{schedule_curves.TITLES[name]}: {words}" if titled else words
        room = self.size.width // (2 if titled else 1) - 2
        self.query_one(f"#legend-{name}", FixedText).show(toned(clip(title, room), "quiet"))

    def _words(self, width: int) -> Content:
        parts: list[Content] = []
        if self.refused:
            parts.append(Content.styled(f"{self.signs.no} {self.refused}", "$text-error"))
        if self.problem is not None:
            parts.append(stage_lines.refusal(self.problem, self.signs, width))
        elif self.job is None:
            parts.append(Content(self.scaler.wizard.waiting_for or "Laying it out ..."))
        else:
            parts += stage_lines.stage_words(self.job, self.pointer, width - 2, self.signs)
        return Content("\n").join(parts)

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what can be done."""
        typing = self.is_mounted and self.query_one("#stage-field", Input).has_focus
        if action in ("type", "add"):
            return self.edits and not typing and (True if self._stages_possible else None)
        if action == "remove":
            return self.edits and (True if self.scaler.wizard.text.choice.stages else None)
        if action == "curve":
            return not typing and (self.size.width < WIDE or self.size.height < TALL)
        if action == "choose":
            return True if self.spec is not None and self.problem is None else None
        return True

    @property
    def _stages_possible(self) -> bool:
        return self.spec is not None and not self.spec.task.trains_adapter

    def action_curve(self, by: int) -> None:
        """Another curve; left of the first one is where one came from."""
        at = schedule_curves.CURVES.index(self.curve) + by
        if at < 0:
            self.action_back()
            return
        self.action_show_curve(at % len(schedule_curves.CURVES) + 1)

    def action_show_curve(self, number: int) -> None:
        """A curve by its digit."""
        self.curve = schedule_curves.CURVES[number - 1]
        self.show_schedule()
        self.call_after_refresh(self.show_schedule)  # a chart that was hidden has no size before

    def action_move(self, by: int) -> None:
        """Another stage."""
        self.pointer = min(max(self.pointer + by, 0), max(self._count() - 1, 0))
        self.refused = ""
        self.show_schedule()
        self.query_one("#stage-scroll", VerticalScroll).scroll_home(animate=False)

    def action_page(self, pages: int) -> None:
        """Scroll the words by what is visible of them, less a line."""
        scroll = self.query_one("#stage-scroll", VerticalScroll)
        scroll.scroll_relative(y=pages * max(scroll.size.height - 1, 1), animate=False)

    def action_add(self) -> None:
        """A stage more."""
        plan = self.scaler.wizard.text
        stages = plan.choice.stages
        plan.decide(stages=stage_edits.with_added(stages, min(self.pointer, len(stages) - 1), plan.wanted_tokens))
        self.pointer += 1
        self.replan()

    def action_remove(self) -> None:
        """A stage less."""
        plan = self.scaler.wizard.text
        if plan.choice.stages:
            place = min(self.pointer, len(plan.choice.stages) - 1)
            plan.decide(stages=stage_edits.with_removed(plan.choice.stages, place))
            self.replan()

    def action_type(self, what: str) -> None:
        """Open the field for one of `stage_edits.FIELDS`."""
        field, stages = self.query_one("#stage-field", Input), self.scaler.wizard.text.choice.stages
        self.typing, self.refused = what, ""
        field.placeholder = f"{stage_edits.PLACEHOLDERS[what]}; Enter changes, Esc leaves"
        field.value = stage_edits.typed(stages[self.pointer], what) if self.pointer < len(stages) else ""
        field.display = True
        self.set_focus(field)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take what was typed, or say why not."""
        event.stop()
        plan = self.scaler.wizard.text
        before = plan.choice
        try:
            if self.typing == "tokens" and not before.stages:
                plan.decide(tokens=stage_edits.tokens_typed(event.value))
            else:
                stages = before.stages or stage_edits.whole(plan.wanted_tokens)
                plan.decide(stages=stage_edits.with_typed(stages, self.pointer, self.typing, event.value))
            self.scaler.wizard.spec_for(self.approach, force=True)
        except EngineError as error:
            plan.choice = before  # what cannot be leaves everything as it was
            self.refused = " ".join(part for part in (error.what, error.next_step) if part)
        self.scaler.wizard.count_text()
        self._close_field()
        self.replan()

    def _close_field(self) -> None:
        self.query_one("#stage-field").display = False
        self.set_focus(None)

    def action_back(self) -> None:
        """Out of the field, else one screen back."""
        if self.query_one("#stage-field").display:
            self._close_field()
        else:
            self.app.pop_screen()

    def action_choose(self) -> None:
        """On to the review; from there back to it."""
        if self.spec is None or self.problem is not None:
            return
        if any(getattr(screen, "place", "") == "review" for screen in self.app.screen_stack[:-1]):
            self.app.pop_screen()
        else:
            self.scaler.open_review(self.approach)


def _points(values: Iterable[tuple[float, float]], total: float) -> list[Bucket]:
    """Of (tokens, value)."""
    places = [(schedule_curves.placed(tokens, total), value) for tokens, value in values]
    return [Bucket(place, place, value, value, value, 1) for place, value in places]
