"""Everything that was decided, on one page, before anything is spent: the only screen that starts a run.

Owns the drawing of the page. Must not choose a value: `engine.advise.plan` made the spec.
"""

from __future__ import annotations

import re
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

from engine.errors import EngineError, ExitCode
from engine.estimate.estimate import Verdict
from scaler_tui.feeds.data_check import DataChecked
from scaler_tui.feeds.startup import StartupNews
from scaler_tui.screens.base import BACK_KEYS, FramedScreen
from scaler_tui.widgets.fit_bar import FitBar
from scaler_tui.widgets.spec_words import data_line, price_lines, setting_lines

if TYPE_CHECKING:
    from engine.advise.matrix import ApproachRow
    from engine.jobs.spec import JobSpec

LABEL_CELLS = 10
QUIET = "$foreground 75%"


class ReviewScreen(FramedScreen):
    """Choices, costs, the command; Enter starts."""

    place = "review"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "start", "Start the run"),
        Binding(BACK_KEYS, "back", "Back", key_display="b"),
        Binding("w", "write", "Write spec.toml", tooltip="Write the spec into the current folder, never over a file"),
        Binding("d", "data", "Data report"),
        Binding("m", "matrix", "Matrix"),
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

    def body(self) -> Iterable[Widget]:
        """One scrolling page with the memory bar in it."""
        with VerticalScroll(id="review-scroll", can_focus=False):
            yield Static(id="review", markup=False)
            yield FitBar(id="fit")
            yield Static(id="review-rest", markup=False)

    def on_mount(self) -> None:
        """Make the spec."""
        self.make_spec()

    def on_screen_resume(self) -> None:
        """The machine may have been changed."""
        super().on_screen_resume()
        self.make_spec()

    def on_startup_news(self, news: StartupNews) -> None:
        """Machine or model arrived."""
        if news.machine is not None or news.model:
            self.make_spec()
            self.refresh_title()

    def on_data_news(self, message: DataChecked) -> None:
        """The rows were counted: hours and money follow."""
        self.make_spec()

    def on_resize(self, event: Resize) -> None:
        """The lines wrap anew."""
        self.call_after_refresh(self.show_page)

    def on_engine_failed(self) -> None:
        """It could not be started; the page is as it was."""
        self.show_page()

    def make_spec(self) -> None:
        """Ask the engine for the spec of the chosen approach."""
        wizard = self.scaler.wizard
        if wizard.machine is not None and wizard.architecture is not None:
            try:
                self.spec, self.refusal = wizard.spec_for(self.approach), None
            except EngineError as error:
                self.spec, self.refusal = None, error
            if self.spec is not None:
                self.scaler.check_data(only_local=True)
        elif wizard.model_problem is not None:
            self.spec, self.refusal = None, wizard.model_problem
        self.show_page()
        self.refresh_bindings()

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def row(self) -> ApproachRow | None:
        """The matrix row under review."""
        matrix = self.scaler.wizard.matrix
        return matrix.row(self.approach) if matrix else None

    def show_page(self) -> None:
        """Draw everything."""
        top, bar, rest = (
            self.query_one("#review", Static),
            self.query_one(FitBar),
            self.query_one("#review-rest", Static),
        )
        row, machine = self.row, self.scaler.wizard.machine
        bar.display = row is not None and machine is not None and not self.scaler.launching
        if row is not None and machine is not None:
            from scaler_tui.wizard import free_bytes_for

            on_gpu = row.vram.likely > 0
            bar.legend = self.size.width >= 76
            bar.show(row.vram if on_gpu else row.ram, free_bytes_for(row.id, machine), "VRAM" if on_gpu else "RAM")
        if self.scaler.launching:
            top.update("Starting the run in the background ...")
            rest.update("")
        elif self.refusal is not None:
            top.update(self._refused(self.refusal))
            rest.update(self._answers())
        elif self.spec is None:
            top.update(self.scaler.wizard.waiting_for or "Looking at the machine and the model ...")
            rest.update("")
        else:
            top.update(self._lines(self._before_bar(self.spec))[:-1])
            rest.update(Content.assemble(self._lines(self._after_bar(self.spec)), self._end(), self._answers()))

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
        lines += [("Machine", wizard.machine.label + sim), data_line(spec, wizard.data_words)]
        return lines + setting_lines(spec)

    def _after_bar(self, spec: JobSpec) -> list[tuple[str, str]]:
        row, wizard = self.row, self.scaler.wizard
        lines = [("Fits?", f"{row.verdict}: {row.verdict_reason}")] if row else []
        lines += price_lines(spec, row)
        if wizard.data_problem is not None and wizard.data_is_checked:
            lines.append(("Problem", f"{wizard.data_problem.what} {wizard.data_problem.next_step}"))
        return lines

    def _end(self) -> Content:
        name = self.written.name if self.written else "spec.toml"
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

    def _refused(self, error: EngineError) -> Content:
        """What, cause, and every proposed fix on a line of its own."""
        fixes = re.split(r"\s*\(\d+\)\s+", error.next_step)
        steps = [f"  {number}. {fix}\n" for number, fix in enumerate(fixes[1:], start=1)]
        parts: list[Content | str | tuple[str, str]] = [(f"{self.signs.no} {error.what}\n", "bold $text-error")]
        if error.cause:
            parts.append(f"{error.cause}\n")
        if steps:
            parts.append(("\nWhat would make it fit, gentlest first\n", "bold"))
            parts += [*([f"{fixes[0]}\n"] if fixes[0] else []), *steps]
        elif error.next_step:
            parts.append(f"{error.next_step}\n")
        return Content.assemble(*parts, "\n")

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what makes sense for this plan."""
        wizard = self.scaler.wizard
        if action in ("start", "write"):
            return True if self.spec is not None and not self.scaler.launching else None
        if action == "name_data":
            return self.refusal is not None and self.refusal.code == "plan.no_data"
        if action == "this_machine":
            return wizard.machine is not None and wizard.machine.simulated
        if action == "data":
            return bool(wizard.data_file)
        return True

    def action_scroll(self, lines: int) -> None:
        """Scroll the page."""
        self.query_one("#review-scroll", VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_data(self) -> None:
        """The report on the rows."""
        self.scaler.open_data()

    def action_matrix(self) -> None:
        """The full matrix."""
        self.scaler.open_matrix()

    def action_name_data(self) -> None:
        """To the question about data."""
        self.scaler.open_question("data")

    def action_this_machine(self) -> None:
        """Give up the what-if."""
        self.scaler.wizard.plan_for_this()
        self.refresh_title()
        self.make_spec()

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

    def action_start(self) -> None:
        """Start; what cannot run here says why."""
        if self.spec is None or self.scaler.launching:
            return
        refusal = self._not_startable()
        if refusal is not None:
            self.scaler.show_error(refusal)
            return
        self.scaler.start_run(self.spec)
        self.show_page()
        self.refresh_bindings()

    def _not_startable(self) -> EngineError | None:
        wizard, row = self.scaler.wizard, self.row
        if wizard.machine is not None and wizard.machine.simulated:
            return EngineError(
                "review.simulated",
                "This plan is for a simulated machine, so it cannot start here.",
                next_step="Write the spec (w), copy it to that machine, and run: scaler-wizard run spec.toml. "
                "Or plan for this machine (x).",
            )
        if row is not None and row.verdict is Verdict.NO:
            return EngineError(
                "fit.no",
                f"{row.title} does not fit this machine.",
                cause=row.verdict_reason,
                next_step="Choose a row that fits, a smaller model, or another card.",
                exit_code=ExitCode.DOES_NOT_FIT,
            )
        if wizard.data_problem is not None and wizard.data_is_checked:
            return wizard.data_problem
        return None
