"""Everything that was decided, on one page, before anything is spent: the only screen that starts a run.

Owns the drawing of the page. Must not choose a value: `engine.advise.plan` made the spec.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Static

from engine.advise.approaches import frank_line
from engine.advise.refined import is_long
from engine.errors import EngineError
from engine.estimate.estimate import Verdict
from scaler_tui.feeds.data_check import DataChecked
from scaler_tui.feeds.estimate_feed import TIERS, EstimateRefined, refine_in_thread
from scaler_tui.feeds.schedule_feed import SchedulePlanned, lay_out_text
from scaler_tui.frank import agree, must_agree
from scaler_tui.screens.base import BACK_KEYS
from scaler_tui.screens.planning import PlanningScreen
from scaler_tui.widgets.fit_bar import FitBar
from scaler_tui.widgets.review_words import (
    REFUSED,
    not_startable,
    refined_words,
    refused_content,
    savings_content,
)
from scaler_tui.widgets.spec_words import data_line, growth_price_lines, price_lines, setting_lines

if TYPE_CHECKING:
    from engine.advise.figures import Refined
    from engine.advise.matrix import ApproachRow
    from engine.jobs.spec import JobSpec

LABEL_CELLS = 10
QUIET = "$foreground 75%"


class ReviewScreen(PlanningScreen):
    """Choices, costs, the command; Enter starts."""

    place = "review"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "start", "Start the run"),
        Binding("a", "agree", "I have read it", tooltip="Agree to the warnings; asked once"),
        Binding(BACK_KEYS, "back", "Back", key_display="b"),
        Binding("F", "force", "Force", tooltip="Plan it although it does not fit; the journal will say so"),
        Binding("w", "write", "Write spec", tooltip="Write the spec into the current folder, never over a file"),
        Binding(
            "e", "elsewhere", "Elsewhere", tooltip="Run it on another machine, or write a job file for a rented one"
        ),
        Binding("d", "data", "Data report"),
        Binding("y", "refine('dry-run')", "Dry run", tooltip="Rehearse it on fake tensors: exact memory, in seconds"),
        Binding("p", "refine('probe')", "Probe", tooltip="Measure memory and speed on this machine, about a minute"),
        Binding("m", "matrix", "Matrix"),
        Binding("s", "text_part('schedule')", "Schedule", tooltip="Rate, length, mix, size over the tokens"),
        Binding("l", "text_part('limits')", "Limits", tooltip="Benchmarks, what may be lost, loss spikes, processes"),
        Binding("f", "name_data", "Name a file", tooltip="Back to the question about data"),
        Binding("x", "this_machine", "This machine", tooltip="Plan for the real machine instead of the simulated one"),
        Binding("up,k", "scroll(-1)", "Scroll", show=False),
        Binding("down,j", "scroll(1)", "Scroll", show=False),
        Binding("pageup", "scroll(-10)", "Page", show=False),
        Binding("pagedown,space", "scroll(10)", "Page", show=False),
    ]

    def __init__(self, approach: str) -> None:
        super().__init__()
        self.approach = approach
        self.spec: JobSpec | None = None
        self.refusal: EngineError | None = None
        self.written: Path | None = None
        self.forced = False
        """Whether the user insists on what does not fit."""
        self.refined: dict[str, Refined | EngineError | None] = {}
        """What dry run and probe answered about this very spec; None while one is at work."""
        self._refined_hash = ""

    def body(self) -> Iterable[Widget]:
        """One scrolling page with the memory bar in it."""
        with VerticalScroll(id="review-scroll", can_focus=False):
            yield Static(id="review", markup=False)
            yield FitBar(id="fit")
            yield Static(id="review-rest", markup=False)

    def on_mount(self) -> None:
        """Make the spec."""
        self.replan()

    def on_data_news(self, message: DataChecked) -> None:
        """The rows were counted: hours and money follow."""
        self.replan()

    def on_resize(self, event: Resize) -> None:
        """The lines wrap anew."""
        self.call_after_refresh(self.show_page)

    def on_engine_failed(self) -> None:
        """It could not be started; the page is as it was."""
        self.show_page()

    def replan(self) -> None:
        """Ask the engine for the spec of the chosen approach."""
        wizard = self.scaler.wizard
        if wizard.machine is not None and wizard.architecture is not None:
            try:
                self.spec, self.refusal = wizard.spec_for(self.approach, force=self.forced), None
            except EngineError as error:
                self.spec, self.refusal = None, error
            if self.spec is not None:
                self._forget_stale_figures(self.spec)
                self.scaler.check_data(only_local=True)
                if wizard.trains_on_text:
                    lay_out_text(self, wizard, self.approach, self.spec)
        elif wizard.model_problem is not None:
            self.spec, self.refusal = None, wizard.model_problem
        self.show_page()
        self.refresh_bindings()

    def _forget_stale_figures(self, spec: JobSpec) -> None:
        """Figures of a dry run or probe are about one spec on one machine."""
        from engine.jobs.spec_toml import spec_hash

        key = f"{spec_hash(spec)} {self.scaler.wizard.card}"
        if key != self._refined_hash:
            self._refined_hash, self.refined = key, {}

    def on_estimate_refined(self, message: EstimateRefined) -> None:
        """Dry run or probe answered; an answer about other settings is dropped."""
        if self._refined_hash.startswith(message.spec_hash) and message.tier in self.refined:
            self.refined[message.tier] = message.figures or message.error
            self.show_page()
            self.refresh_bindings()

    def on_schedule_planned(self, message: SchedulePlanned) -> None:
        """The stages were estimated: memory, hours and money follow."""
        message.stop()
        if message.key == self.scaler.wizard.text_key(self.approach):
            if message.job is not None:
                self.scaler.wizard.text.laid_out = (message.key, message.job)
                self.replan()
            elif message.error is not None:
                self.spec, self.refusal = None, message.error
                self.show_page()

    @property
    def better(self) -> Refined | None:
        """The best figures so far: the probe's, else the dry run's."""
        from engine.advise.figures import Refined

        found = [self.refined.get(tier) for tier in ("probe", "dry-run")]
        return next((figures for figures in found if isinstance(figures, Refined)), None)

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def row(self) -> ApproachRow | None:
        """The row under review, for a run on the data that was answered."""
        return self.scaler.wizard.run_row(self.approach)

    def show_page(self) -> None:
        """Draw everything."""
        top, rest = self.query_one("#review", Static), self.query_one("#review-rest", Static)
        bar = self.query_one(FitBar)
        row, machine = self.row, self.scaler.wizard.machine
        trains = self.spec is None or self.spec.needs_data or self.spec.context.extends
        bar.display = row is not None and machine is not None and not self.scaler.launching and trains
        if row is not None and machine is not None:
            from scaler_tui.machines import free_bytes_for

            on_gpu = row.vram.likely > 0
            bar.legend = self.size.width >= 76
            memory = self.better.memory if self.better else row.vram if on_gpu else row.ram
            bar.show(memory, free_bytes_for(row.id, machine), "VRAM" if on_gpu else "RAM")
        if self.scaler.launching:
            top.update("Starting the run in the background ...")
            rest.update("")
        elif self.refusal is not None:
            top.update(refused_content(self.refusal, self.signs.no, self.size.width - 3))
            rest.update(self._answers())
        elif self.spec is None:
            top.update(self.scaler.wizard.waiting_for or "Looking at the machine and the model ...")
            rest.update("")
        else:
            top.update(Content.assemble(self._warnings(), self._lines(self._before_bar(self.spec)))[:-1])
            after = self._lines(self._after_bar(self.spec))
            rest.update(
                Content.assemble(after, self._end(), savings_content(self.row, self.size.width - 3), self._answers())
            )

    def _warnings(self) -> Content:
        """Frank words, until they were agreed to once; afterwards in one line."""
        if not self.scaler.wizard.frank_words(self.approach):
            return Content("")
        if not must_agree(self.approach):
            return self._lines([("Research", frank_line().partition(": ")[2])])
        words = [(word.label, word.text) for word in self.scaler.wizard.frank_words(self.approach)]
        return Content.assemble(
            ("Before you start: read this; a agrees, once and for all\n", "bold $text-warning"),
            self._lines(words),
            "\n",
        )

    def _lines(self, lines: list[tuple[str, str]]) -> Content:
        """Labels in bold, words wrapped beside them."""
        width = max(self.size.width - 3 - LABEL_CELLS, 20)
        parts: list[str | tuple[str, str]] = []
        for label, words in lines:
            wrapped = f"\n{' ' * LABEL_CELLS}".join(textwrap.wrap(words, width, break_on_hyphens=False))
            parts += [(f"{label:<{LABEL_CELLS}}", "bold"), f"{wrapped}\n"]
        return Content.assemble(*parts)

    def _before_bar(self, spec: JobSpec) -> list[tuple[str, str]]:
        wizard, row = self.scaler.wizard, self.row
        assert wizard.machine is not None
        sim = "  SIM: not this machine, so it cannot start here" if wizard.machine.simulated else ""
        lines = [("Approach", f"{row.title if row else spec.task} on {spec.model.source}")]
        lines.append(("Machine", wizard.machine.label + sim))
        own = Path(spec.data.train).name == Path(wizard.data_file).name  # not where another demo set is trained on
        lines += [data_line(spec, wizard.data_words if own else "")] if spec.needs_data and not spec.streams else []
        return lines + setting_lines(spec)

    def _after_bar(self, spec: JobSpec) -> list[tuple[str, str]]:
        row, wizard = self.row, self.scaler.wizard
        if not spec.needs_data and not spec.context.extends:
            return growth_price_lines(self.scaler.wizard.grown.get(self.approach))
        lines = [("Fits?", f"{row.verdict}: {row.verdict_reason}")] if row else []
        lines += [(TIERS[tier], refined_words(answer)) for tier, answer in self.refined.items()]
        if self.forced and row is not None and row.verdict is Verdict.NO:
            lines.append(("Forced", "it was refused. Enter starts it all the same, and the journal will say so."))
        lines += price_lines(spec, row, self.better)
        if row is not None and not self.refined and is_long(row.hours):
            here = ", p measures it here in a minute" if self._can_probe(spec) else ""
            lines.append(("Before", f"a long run: y rehearses its memory in seconds{here}."))
        if wizard.data_problem is not None and wizard.data_is_checked:
            lines.append(("Problem", f"{wizard.data_problem.what} {wizard.data_problem.next_step}"))
        return lines

    def _end(self) -> Content:
        name = shlex.quote(self.written.name) if self.written else "spec.toml"
        before = "" if self.written else "w writes the spec; then "
        return Content.assemble(
            ("Command   ", "bold"), f"{before}scaler-wizard run {name}\n",
            ("Enter starts it in the background. It survives this terminal.\n", "bold"),
        )  # fmt: skip

    def _answers(self) -> Content:
        from engine.advise.questions import format_answer

        session = self.scaler.wizard.session
        told = [
            f"\n  {question.text}  {format_answer(question, session.value(question.id))}"
            + ("" if session.is_answered(question.id) else " (not asked: the default)")
            for question in session.visible
        ]
        return Content.assemble(("Answers", "bold"), ("".join(told), QUIET))

    def _can_probe(self, spec: JobSpec) -> bool:
        """Whether there is something to measure here: a model that is still to be grown cannot be."""
        machine = self.scaler.wizard.machine
        return machine is not None and not machine.simulated and not spec.grows

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what makes sense for this plan."""
        wizard = self.scaler.wizard
        if action == "refine":
            tier = str(parameters[0])
            if self.spec is None or (tier == "probe" and not self._can_probe(self.spec)) or not self.spec.needs_data:
                return False
            return None if self.scaler.launching or None in self.refined.values() else True
        if action == "agree":
            return self.spec is not None and must_agree(self.approach)
        if action == "force":
            return self.refusal is not None and self.refusal.code == REFUSED
        if action in ("start", "write"):
            return True if self.spec is not None and not self.scaler.launching else None
        if action == "elsewhere":  # what does not fit here may fit there
            return self.spec is not None or (self.refusal is not None and self.refusal.code == REFUSED)
        if action == "name_data":
            return self.refusal is not None and self.refusal.code == "plan.no_data"
        if action == "this_machine":
            return wizard.machine is not None and wizard.machine.simulated
        if action == "data":
            return bool(wizard.data_file)
        if action == "text_part":
            return wizard.trains_on_text
        return True

    def action_scroll(self, lines: int) -> None:
        """Scroll the page."""
        self.query_one("#review-scroll", VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_refine(self, tier: str) -> None:
        """Ask the twin for better figures; they come as EstimateRefined."""
        if self.spec is None:
            return
        self.refined[tier] = None
        refine_in_thread(self, tier, self.spec, self.scaler.wizard.card)
        self.show_page()
        self.refresh_bindings()

    def action_agree(self) -> None:
        """The warnings were read."""
        agree()
        self.show_page()
        self.refresh_bindings()
        self.query_one("#review-scroll", VerticalScroll).scroll_home(animate=False)

    def action_force(self) -> None:
        """Plan what does not fit all the same; nothing starts before Enter."""
        self.forced = True
        self.replan()

    def action_data(self) -> None:
        """The report on the rows."""
        self.scaler.open_data()

    def action_text_part(self, part: str) -> None:
        """The schedule, drawn; or benchmarks, limits, processes."""
        from scaler_tui.screens.limits import LimitsScreen
        from scaler_tui.screens.schedule import ScheduleScreen

        self.app.push_screen((ScheduleScreen if part == "schedule" else LimitsScreen)(self.approach))

    def action_matrix(self) -> None:
        """The full matrix."""
        self.scaler.open_matrix()

    def action_name_data(self) -> None:
        """To the question about data."""
        self.scaler.open_question("data")

    def action_this_machine(self) -> None:
        """Give up the what-if."""
        self.forced = False
        self.scaler.wizard.plan_for_this()
        self.refresh_title()
        self.replan()

    def action_write(self) -> None:
        """Write the spec next to where the user is, never over something."""
        from engine.jobs.spec_toml import dump_spec

        if self.spec is None:
            return
        for number in range(1, 1000):
            path = Path.cwd() / ("spec.toml" if number == 1 else f"spec-{number}.toml")
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(dump_spec(self.spec))
            except FileExistsError:
                continue
            except OSError as error:
                cause = error.strerror or str(error)
                self.scaler.show_error(EngineError("file.unwritable", f"Cannot write {path}.", cause=cause))
                return
            self.written = path
            self.show_page()
            self.notify(f"Wrote {path}", timeout=6, markup=False)
            return

    def action_elsewhere(self) -> None:
        """Another machine over ssh, or a job file."""
        from scaler_tui.screens.elsewhere import ElsewhereScreen

        self.app.push_screen(ElsewhereScreen(self.approach, forced=self.forced))

    def action_start(self) -> None:
        """Start; what cannot run here says why."""
        if self.spec is None or self.scaler.launching:
            return
        refusal = not_startable(self.scaler.wizard, self.spec, self.row, self.approach, forced=self.forced)
        if refusal is not None:
            self.scaler.show_error(refusal)
            return
        self.scaler.start_run(self.spec, force=self.forced)
        self.show_page()
        self.refresh_bindings()
