"""Everything that was decided, on one page, before anything is spent: the only screen that starts a run.

Owns the drawing of the spec. Must not choose a value: `engine.advise.plan` made the spec.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from engine.errors import EngineError, ExitCode
from engine.estimate.estimate import Verdict
from engine.units import format_bytes, format_duration, format_hours, format_range, format_usd
from scaler_tui.feeds.startup import StartupNews
from scaler_tui.screens.base import BACK_KEYS, FramedScreen

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec


class ReviewScreen(FramedScreen):
    """Choices, costs, the command; Enter starts."""

    place = "review"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "start", "Start the run"),
        Binding("w", "write", "Write spec.toml"),
        Binding("d", "data", "Data report"),
        Binding("m", "matrix", "Matrix"),
        Binding("up,k", "scroll(-1)", "Up", show=False),
        Binding("down,j", "scroll(1)", "Down", show=False),
        Binding("pageup", "scroll(-10)", show=False),
        Binding("pagedown,space", "scroll(10)", "Page down", show=False),
        Binding(BACK_KEYS, "back", "Back", key_display="b"),
    ]

    def __init__(self, approach: str) -> None:
        super().__init__()
        self.approach = approach
        self.spec: JobSpec | None = None
        self.refusal: EngineError | None = None
        self._starting = False

    def body(self) -> Iterable[Widget]:
        """One scrolling page."""
        with VerticalScroll(id="review-scroll", can_focus=False):
            yield Static("Looking at the machine and the model ...", id="review")

    def on_mount(self) -> None:
        """Make the spec."""
        self.make_spec()

    def on_screen_resume(self) -> None:
        """The machine may have been changed."""
        super().on_screen_resume()
        self.make_spec()

    def on_startup_news(self, news: StartupNews) -> None:
        """Machine or model arrived."""
        if news.machine is not None or news.architecture is not None:
            self.make_spec()
            self.refresh_title()

    def make_spec(self) -> None:
        """Ask the engine for the spec of the chosen approach."""
        wizard = self.scaler.wizard
        if wizard.machine is None or wizard.architecture is None:
            return
        try:
            self.spec, self.refusal = wizard.spec_for(self.approach), None
        except EngineError as error:
            self.spec, self.refusal = None, error
        self.query_one("#review", Static).update(self._page())

    def _page(self) -> Text:
        text = Text()
        if self.refusal is not None:
            text.append(f"{self.signs.no} {self.refusal.what}\n", "bold")
            text.append(f"{self.refusal.cause}\n\n{self.refusal.next_step}\n")
            return text
        spec, wizard = self.spec, self.scaler.wizard
        assert spec is not None
        assert wizard.machine is not None
        matrix = wizard.matrix
        row = matrix.row(self.approach) if matrix else None

        def line(label: str, value: str) -> None:
            text.append(f"{label:<13}", "bold")
            text.append(f"{value}\n")

        line("Approach", row.title if row else str(spec.task))
        line("Model", spec.model.source)
        line("Machine", wizard.machine.label + ("  SIM: not this machine" if wizard.machine.simulated else ""))
        line(
            "Data", f"{spec.data.train}; held-out: {spec.data.heldout or f'{spec.data.heldout_fraction:.0%} set aside'}"
        )
        line(
            "Sequence",
            f"{spec.data.max_length} tokens, {'packed' if spec.data.packing else 'padded'}, "
            f"loss on {spec.data.train_on}",
        )
        line(
            "Adapter",
            f"rank {spec.adapter.rank}, alpha {spec.adapter.alpha:g}, on {', '.join(spec.adapter.targets)}"
            + (", rsLoRA" if spec.adapter.rslora else "")
            + (", DoRA" if spec.adapter.dora else ""),
        )
        base = (
            "unquantised"
            if spec.quantization_kind == "none"
            else (
                f"4-bit {spec.quantization_kind.upper()}{', double quantisation' if spec.quantization.double else ''}"
            )
        )
        line("Base", f"{base}, compute {spec.training.dtype}")
        passes = f"{spec.training.max_steps} steps" if spec.training.max_steps else f"{spec.training.epochs:g} epochs"
        line(
            "Training",
            f"{passes}, batch {spec.training.batch_size} x {spec.training.gradient_accumulation}, "
            f"rate {spec.training.learning_rate:g} {spec.training.schedule}",
        )
        line(
            "Saved",
            f"every {spec.checkpoint.every_steps} steps, {spec.checkpoint.keep} kept"
            + ("; merged model at the end" if spec.output.merge else ""),
        )
        p = spec.prediction
        if p.memory_bytes_high:
            line(
                "Memory",
                f"{format_range(format_bytes(p.memory_bytes_low), format_bytes(p.memory_bytes_high))} [{p.origin}]",
            )
        if p.seconds_high:
            line(
                "Time", f"{format_range(format_duration(p.seconds_low), format_duration(p.seconds_high))} [{p.origin}]"
            )
        if row is not None:
            line(
                "Cost",
                format_range(format_usd(row.cost_usd.low), format_usd(row.cost_usd.high))
                + (f", stops at {format_usd(spec.cost.budget_usd)}" if spec.cost.budget_usd else ""),
            )
            line("Disk", format_bytes(row.disk.likely))
            line("Fits?", f"{row.verdict}: {row.verdict_reason}")
            if row.hours.high > 24 * 3:
                line("Note", f"the whole run may take {format_hours(row.hours.high)}")
        text.append("\nThe same without the wizard: write the spec (w), then\n", "dim")
        text.append("  scaler-wizard run spec.toml\n", "dim")
        text.append("\nEnter starts it in the background. It survives this terminal.\n", "bold")
        return text

    def action_scroll(self, lines: int) -> None:
        """Scroll the page."""
        self.query_one("#review-scroll", VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_data(self) -> None:
        """The report on the rows."""
        self.scaler.open_data()

    def action_matrix(self) -> None:
        """The full matrix."""
        self.scaler.open_matrix()

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
                self.scaler.show_error(
                    EngineError("file.unwritable", f"Cannot write {path}.", cause=error.strerror or str(error))
                )
                return
            self.notify(f"Wrote {path}", timeout=6)
            return

    def action_start(self) -> None:
        """Start; what cannot run here says why."""
        wizard = self.scaler.wizard
        if self.spec is None:
            if self.refusal is not None:
                self.scaler.show_error(self.refusal)
            return
        if wizard.machine is not None and wizard.machine.simulated:
            self.scaler.show_error(
                EngineError(
                    "review.simulated",
                    "This plan is for a simulated machine, so it cannot start here.",
                    next_step="Write the spec (w), copy it to that machine, and run: scaler-wizard run spec.toml. "
                    "Or go back to the real machine: press w on the hardware screen, then x.",
                )
            )
            return
        row = wizard.matrix.row(self.approach) if wizard.matrix else None
        if row is not None and row.verdict is Verdict.NO:
            self.scaler.show_error(
                EngineError(
                    "fit.no",
                    f"{row.title} does not fit this machine.",
                    cause=row.verdict_reason,
                    next_step="Choose a row that fits, a smaller model, or another card.",
                    exit_code=ExitCode.DOES_NOT_FIT,
                )
            )
            return
        if self._starting:
            return
        self._starting = True
        self.query_one("#review", Static).update("Starting the run in the background ...")
        self.scaler.start_run(self.spec)
