"""The first screen: what one can do now, the most likely thing first.

Owns the menu. Must not start anything by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widget import Widget
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from scaler_tui.feeds.startup import StartupNews
from scaler_tui.screens.base import FramedScreen

if TYPE_CHECKING:
    from engine.jobs.store import RunSummary

_INTRO = (
    "More out of an open language model, on the machine you have. The wizard looks at the machine, asks a few "
    "questions, compares every approach, runs the one you choose in the background, and measures the result."
)


class WelcomeScreen(FramedScreen):
    """Menu of starting points; filled in as the machine and the runs are read."""

    place = "welcome"
    AUTO_FOCUS = "#menu"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "Choose"),
        *[Binding(str(n), f"pick({n})", "Choose directly", show=False) for n in range(1, 10)],
        Binding("j", "cursor_down", "Move", show=False),
        Binding("k", "cursor_up", "Move", show=False),
        Binding("ctrl+t", "next_theme", "Theme", tooltip="Next colour theme"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._runs: list[RunSummary] = []
        self._saved_step = ""

    def body(self) -> Iterable[Widget]:
        """Intro, menu, what the machine is."""
        yield Static(_INTRO, id="intro")
        notice = Static(id="notice", markup=False)
        notice.display = False
        yield notice
        yield OptionList(id="menu", compact=True)
        yield Static("Looking at the machine ...", id="machine-facts", markup=False)

    def on_mount(self) -> None:
        """The menu is there at once; runs and machine arrive when they are read."""
        self._fill()

    def on_screen_resume(self) -> None:
        """Coming back: answers and runs may have changed."""
        super().on_screen_resume()
        self._show_machine()
        self.call_after_refresh(self.scaler.look_again)

    def on_startup_news(self, news: StartupNews) -> None:
        """Machine or runs were read."""
        if news.runs is not None:
            self._runs = news.runs
            self._saved_step = news.saved_step
            self._fill()
            if news.saved_message:
                notice = self.query_one("#notice", Static)
                notice.update(f"{self.signs.warn} {news.saved_message}")
                notice.display = True
        self.refresh_title()
        if news.machine is not None:
            self._show_machine()

    def _show_machine(self) -> None:
        machine = self.scaler.wizard.machine
        if machine is None:
            return
        from scaler_tui.screens.hardware import describe

        self.query_one("#machine-facts", Static).update(describe(machine, notes=False))

    def _entries(self) -> list[tuple[str, str, str]]:
        entries = []
        live = [run for run in self._runs if run.state.is_live]
        if live:
            run = live[0]
            steps = f"step {run.step}/{run.total_steps}" if run.total_steps else str(run.state)
            entries.append((f"attach:{run.id}", "Re-attach to the run that is working", f"{run.id}, {steps}"))
        if self.scaler.start.demo:
            entries.append(("demo", "Fine-tune the demo model now", "a real QLoRA of a small model, a few minutes"))
        if self._saved_step:
            entries.append(("continue", "Continue the wizard", f"at {self._saved_step}"))
        entries.append(("new", "Plan something new", "a few questions; the matrix moves with each"))
        if not self.scaler.start.demo:
            entries.append(("demo", "Try the demo", "a real QLoRA of a small model, a few minutes"))
        count = len(self._runs)
        entries.append(("runs", "All runs", f"{count} so far" if count else "none yet"))
        entries.append(("hardware", "This machine", "what was found; or plan for another card"))
        entries.append(("adapters", "Adapters", "mixed with sliders or by a search; merged"))
        entries.append(("labs", "Labs", "approaches held against each other, and which won"))
        return entries

    def _fill(self) -> None:
        menu = self.query_one("#menu", OptionList)
        entries = self._entries()
        before = [option.id for option in menu.options]
        at = menu.highlighted if before == [entry[0] for entry in entries] else None
        if before and at is None and menu.highlighted is not None:  # stay on the line the user is on
            ids = [entry[0] for entry in entries]
            held = before[menu.highlighted]
            at = ids.index(held) if held in ids and menu.highlighted > 0 else 0
        options = []
        for number, (identity, title, hint) in enumerate(entries, start=1):
            line = Content.assemble((f"{number} {title}", "bold"), (f"  {hint}", "$foreground 75%"))
            options.append(Option(line, id=identity))
        menu.set_options(options)
        menu.highlighted = at or 0

    def action_next_theme(self) -> None:
        """The next palette."""
        self.scaler.action_next_theme()

    def action_cursor_down(self) -> None:
        """vi keys work too."""
        self.query_one("#menu", OptionList).action_cursor_down()

    def action_cursor_up(self) -> None:
        """vi keys work too."""
        self.query_one("#menu", OptionList).action_cursor_up()

    def action_choose(self) -> None:
        """Enter on the menu is handled by the list itself."""
        self.query_one("#menu", OptionList).action_select()

    def action_pick(self, number: int) -> None:
        """A digit picks a line directly."""
        entries = self._entries()
        if 1 <= number <= len(entries):
            self._go(entries[number - 1][0])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Go where the line says."""
        event.stop()
        self._go(event.option.id or "")

    def _go(self, target: str) -> None:
        app = self.scaler
        if target.startswith("attach:"):
            app.attach(target.removeprefix("attach:"))
        elif target == "demo":
            app.open_demo_review()
        elif target == "continue":
            app.open_wizard(fresh=False)
        elif target == "new":
            app.open_wizard(fresh=True)
        elif target == "runs":
            app.open_runs()
        elif target == "hardware":
            app.open_hardware()
        elif target == "adapters":
            from scaler_tui.screens.adapters import AdaptersScreen

            app.push_screen(AdaptersScreen())
        elif target == "labs":
            from scaler_tui.screens.labs import LabsScreen

            app.push_screen(LabsScreen())
