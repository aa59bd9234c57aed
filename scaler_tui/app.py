"""The Textual app: which screen follows which, the theme, the error boundary, and the engine thread.

Owns navigation. Must not know formulas, files of a run, or torch; it shows what the engine says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding, BindingType
from textual.events import Resize

from engine.errors import EngineError
from scaler_tui.crash_boundary import CrashBoundary
from scaler_tui.feeds.engine_thread import EngineDone, EngineFailed, engine_thread_of
from scaler_tui.feeds.startup import StartupNews, read_in_thread, read_machine, read_model, read_runs
from scaler_tui.lean_display import LeanDisplay
from scaler_tui.preferences import Preferences, load_preferences, save_preferences
from scaler_tui.screens.problem import SMALLEST, ConfirmScreen, ProblemScreen, TooSmallScreen
from scaler_tui.screens.welcome import WelcomeScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.themes import NO_COLOR_THEME, THEMES
from scaler_tui.wizard import Wizard

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

_STYLES = Path(__file__).parent / "styles"


@dataclass(frozen=True, slots=True)
class Start:
    """How the app was asked to open."""

    demo: bool = False
    gpu: str = ""
    run_dir: Path | None = None
    theme: str = ""


class ScalerApp(LeanDisplay[None], CrashBoundary):
    """One app for the whole story; screens come and go, runs do not depend on it."""

    TITLE = "Scaler Wizard"
    CSS_PATH = [
        _STYLES / "base.tcss",
        _STYLES / "wizard.tcss",
    ]
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-normal"), (110, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (23, "-medium"), (34, "-tall")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "interrupt", "Leave", show=False, priority=True),
        Binding("ctrl+q", "leave", show=False),
    ]

    def __init__(self, policy: RenderPolicy, start: Start, *, stock_display: bool = False) -> None:
        super().__init__(stock_display=stock_display)
        self.policy = policy
        self.start = start
        self.farewell: list[str] = []
        """Lines the command prints on standard output after the screen is restored."""
        self.wizard = Wizard()
        self._preferences: Preferences = load_preferences()
        self._too_small: TooSmallScreen | None = None

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────────
    def on_mount(self) -> None:
        """Theme and first screen; everything slow is read afterwards, in threads."""
        for theme in THEMES:
            self.register_theme(theme)
        self._set_theme(self.start.theme or self._preferences.theme)
        if self.start.run_dir is not None:
            self.push_screen(WelcomeScreen())
            self.open_run(self.start.run_dir)
        else:
            self.push_screen(WelcomeScreen())
        self.call_after_refresh(self.look_again)

    def look_again(self) -> None:
        """Read machine and runs (again)."""
        if self.wizard.detected is None:
            read_in_thread(self, "machine", read_machine)
        read_in_thread(self, "runs", read_runs)

    def _set_theme(self, name: str) -> None:
        if not self.policy.color:
            self.theme = NO_COLOR_THEME
            return
        known = {theme.name for theme in THEMES}
        self.theme = name if name in known else THEMES[0].name

    def action_next_theme(self) -> None:
        """The next palette; remembered for the next start."""
        if not self.policy.color:
            return
        names = [theme.name for theme in THEMES]
        self.theme = names[(names.index(self.theme) + 1) % len(names)] if self.theme in names else names[0]
        self._preferences = Preferences(self.theme, self._preferences.last_run, self._preferences.seen_ssh_hint)
        save_preferences(self._preferences)
        self.notify(f"Theme: {self.theme}", timeout=2)

    # ── news from the threads ────────────────────────────────────────────────────────────────────────────────────
    def on_startup_news(self, news: StartupNews) -> None:
        """Take what was read and pass it to the screens that want it."""
        if news.machine is not None:
            self.wizard.set_detected(news.machine)
            if self.start.gpu:
                self.plan_for_card(self.start.gpu)
        if news.architecture is not None:
            self.wizard.set_architecture(news.model, news.architecture)
        for screen in self.screen_stack:
            handler = getattr(screen, "on_startup_news", None)
            if handler is not None:
                handler(news)
        if news.error is not None:
            self.show_error(news.error)

    def read_model(self, source: str) -> None:
        """Analyse `source` in a thread; the result comes as StartupNews."""
        read_in_thread(self, "model", lambda: read_model(source))

    def plan_for_card(self, text: str) -> bool:
        """Plan for another card; False (and a dialog) when nobody knows it."""
        try:
            self.wizard.plan_for_card(text)
        except EngineError as error:
            self.show_error(error)
            return False
        return True

    def start_run(self, spec: JobSpec) -> None:
        """Start a run in the engine thread; EngineDone or EngineFailed follows."""
        engine_thread_of(self).launch(spec, self)

    def on_engine_done(self, message: EngineDone) -> None:
        """The run is on its way: watch it, with the list of runs underneath."""
        if message.action == "launch":
            while len(self.screen_stack) > 2:
                self.pop_screen()
            self.open_run(message.run_dir)

    def on_engine_failed(self, message: EngineFailed) -> None:
        """It could not be started."""
        self.show_error(message.error)

    # ── navigation ───────────────────────────────────────────────────────────────────────────────────────────────
    def open_wizard(self, *, fresh: bool) -> None:
        """The questions, from the first or from where they were left."""
        from scaler_tui.screens.question import QuestionScreen

        if fresh:
            self.wizard.restart()
        elif message := self.wizard.load_saved():
            self.notify(message, timeout=8)
        self.read_model(self.wizard.model_source)
        self.push_screen(QuestionScreen())

    def open_hardware(self) -> None:
        """What was found, and what-if."""
        from scaler_tui.screens.hardware import HardwareScreen

        self.push_screen(HardwareScreen())

    def open_matrix(self) -> None:
        """The full comparison."""
        from scaler_tui.screens.matrix import MatrixScreen

        self.push_screen(MatrixScreen())

    def open_data(self) -> None:
        """The report on the training rows."""
        from scaler_tui.screens.data import DataScreen

        self.push_screen(DataScreen())

    def open_review(self, approach: str) -> None:
        """Everything that was decided, before anything is spent."""
        from scaler_tui.screens.review import ReviewScreen

        self.push_screen(ReviewScreen(approach))

    def open_demo_review(self) -> None:
        """Straight to the review of the demo job."""
        self.wizard.restart()
        self.read_model("demo")
        self.open_review("qlora")

    def open_runs(self) -> None:
        """All runs."""
        from scaler_tui.screens.runs import RunsScreen

        self.push_screen(RunsScreen())

    def open_run(self, run_dir: Path) -> None:
        """Watch a run."""
        from scaler_tui.screens.run import RunScreen

        self._preferences = Preferences(self._preferences.theme, run_dir.name, self._preferences.seen_ssh_hint)
        save_preferences(self._preferences)
        self.push_screen(RunScreen(run_dir))

    def attach(self, run_id: str) -> None:
        """Watch a run by id."""
        from engine.jobs.store import find_run

        try:
            self.open_run(find_run(run_id))
        except EngineError as error:
            self.show_error(error)

    def show_error(self, error: EngineError) -> None:
        """A dialog with what, cause and next step."""
        self.push_screen(ProblemScreen(error))

    # ── leaving ──────────────────────────────────────────────────────────────────────────────────────────────────
    def leave(self) -> None:
        """Restore the terminal; say where a live run can be found again."""
        from engine.jobs.store import list_runs

        for run in list_runs():
            if run.state.is_live:
                self.farewell.append(f"Run {run.id} continues. Re-attach: scaler-wizard attach {run.id}")
        if self.wizard.has_unfinished_answers:
            self.farewell.append("Your answers are kept. Go on: scaler-wizard")
        self.exit()

    def action_leave(self) -> None:
        """Leave now."""
        self.leave()

    def action_interrupt(self) -> None:
        """Ctrl+C: asks once; a second Ctrl+C leaves."""
        if isinstance(self.screen, ConfirmScreen):
            self.leave()
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self.leave()

        self.push_screen(
            ConfirmScreen("Leave Scaler Wizard?", "Runs go on in the background; answers are kept."), answered
        )

    # ── terminal size ───────────────────────────────────────────────────────────────────────────────────────────
    def on_resize(self, event: Resize) -> None:
        """Below the smallest useful size one line says so; growing again restores the screen."""
        small = event.size.width < SMALLEST[0] or event.size.height < SMALLEST[1]
        if small and self._too_small is None:
            self._too_small = TooSmallScreen()
            self.push_screen(self._too_small)
        elif not small and self._too_small is not None:
            if self.screen is self._too_small:
                self.pop_screen()
            self._too_small = None

    def notify_saved(self, what: str, path: Any) -> None:
        """One line that says where a file went."""
        self.notify(f"{what}: {path}", timeout=6)
