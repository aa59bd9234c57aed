"""The Textual app: which screen follows which, the theme, the error boundary, and the engine thread.

Owns navigation. Must not know formulas, files of a run, or torch; it shows what the engine says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.app import App
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.filter import LineFilter
from textual.geometry import Size
from textual.message import Message
from textual.screen import Screen

from engine.errors import EngineError
from scaler_tui.crash_boundary import CrashBoundary
from scaler_tui.feeds.data_check import DataChecked, check_in_thread
from scaler_tui.feeds.startup import StartupNews, read_in_thread, read_machine, read_model, read_runs
from scaler_tui.lean_display import LeanDisplay
from scaler_tui.line_filters import AsciiFilter, NoColorFilter
from scaler_tui.preferences import Preferences, load_preferences, save_preferences
from scaler_tui.screens.problem import ConfirmScreen, ProblemScreen, TooSmallScreen, is_too_small
from scaler_tui.screens.welcome import WelcomeScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.themes import NO_COLOR_THEME, THEMES
from scaler_tui.wizard import Wizard

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec
    from scaler_tui.feeds.engine_thread import EngineDone, EngineFailed
    from scaler_tui.feeds.race_feed import RaceFeed, RaceNews
    from scaler_tui.window import RaceKey

_STYLES = Path(__file__).parent / "styles"


@dataclass(frozen=True, slots=True)
class Start:
    """How the app was asked to open."""

    demo: bool = False
    gpu: str = ""
    first: Callable[[], Screen[Any]] | None = None  # on top of the welcome screen
    theme: str = ""


class ScalerApp(LeanDisplay[None], CrashBoundary):
    """One app for the whole story; screens come and go, runs do not depend on it."""

    TITLE = "Scaler Wizard"
    CSS_PATH = [_STYLES / "base.tcss", _STYLES / "wizard.tcss"]
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-normal"), (110, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (23, "-medium"), (34, "-tall")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "interrupt", "Leave", show=False, priority=True),
        Binding("ctrl+q", "leave", show=False),
        Binding("ctrl+t", "next_theme", show=False),
    ]

    def __init__(self, policy: RenderPolicy, start: Start, *, stock_display: bool = False) -> None:
        super().__init__(stock_display=stock_display)
        self.policy = policy
        self.start = start
        self.farewell: list[str] = []
        """Lines the command prints on standard output after the screen is restored."""
        self.wizard = Wizard()
        self.launching = False
        """A run is being started; a second one cannot be."""
        self._leave_when_launched = False
        self._checking: set[tuple[str, str, int]] = set()
        self._races: dict[RaceKey, RaceFeed] = {}
        self._preferences: Preferences = load_preferences()
        self._own_filters: list[LineFilter] = []
        if not policy.color:
            self.no_color = True
            self._own_filters.append(NoColorFilter())
        if not policy.unicode:
            self._own_filters.append(AsciiFilter())

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's filters, then what this terminal cannot show."""
        return [*super().get_line_filters(), *self._own_filters]

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────────
    def on_mount(self) -> None:
        """Theme and first screen; everything slow is read after the first paint, in threads."""
        for theme in THEMES:
            self.register_theme(theme)
        self._set_theme(self.start.theme or self._preferences.theme)
        self.set_class(not self.policy.color, "-no-color")
        self.push_screen(WelcomeScreen())
        if self.start.first is not None:
            self.push_screen(self.start.first())
        self.call_after_refresh(self._check_size)
        self.call_after_refresh(self._say_once)

    def look_again(self) -> None:
        """Read machine and runs (again)."""
        if self.wizard.detected is None:
            read_in_thread(self, "machine", read_machine)
        read_in_thread(self, "list of runs", read_runs)

    def _say_once(self) -> None:
        """People over SSH worry about the connection; once is enough."""
        if self.policy.slow and not self.policy.multiplexed and not self._preferences.seen_ssh_hint:
            self.notify("A run needs no tmux or screen: it goes on when this connection drops.", timeout=8)
            self._remember(seen_ssh_hint=True)

    def _remember(self, **changes: Any) -> None:
        import msgspec

        self._preferences = msgspec.structs.replace(self._preferences, **changes)
        save_preferences(self._preferences)

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
        self._remember(theme=self.theme)
        self.notify(f"Theme: {self.theme}", timeout=2)

    # ── news from the threads ────────────────────────────────────────────────────────────────────────────────────
    def on_startup_news(self, news: StartupNews) -> None:
        """Take what was read and pass it to the screens that want it."""
        if news.machine is not None:
            self.wizard.set_detected(news.machine)
            if self.start.gpu:
                self.plan_for_card(self.start.gpu)
        if news.model and not self.wizard.set_model(news.model, news.architecture, news.error):
            return  # the answer to a question that is no longer asked
        self._tell_screens("on_startup_news", news)
        if news.error is not None and not news.model:
            self.show_error(news.error)

    def on_data_checked(self, message: DataChecked) -> None:
        """Training data was read."""
        self._checking.discard(message.key)
        if self.wizard.set_data_report(message.key, message.report, message.error):
            self._tell_screens("on_data_news", message)

    def _tell_screens(self, handler_name: str, *news: Message) -> None:
        for screen in self.screen_stack:
            handler = getattr(screen, handler_name, None)
            if handler is not None and screen.query("#keys"):  # one that is being built reads the wizard when it is
                handler(*news)

    def read_model(self, source: str) -> None:
        """Analyse `source` in a thread; the result comes as StartupNews."""
        read_in_thread(self, "model", lambda: read_model(source), model=source)

    def check_data(self, *, again: bool = False, only_local: bool = False) -> None:
        """Read the training data in a process of its own; the result comes as DataChecked.

        `only_local` does nothing where the tokenizer would have to come from the hub.
        """
        wizard = self.wizard
        key = wizard.data_key
        if not key[0] or key in self._checking or (wizard.data_is_checked and not again):
            return
        if only_local and not wizard.model_is_local:
            return
        self._checking.add(key)
        check_in_thread(self, key)

    def plan_for_card(self, text: str) -> bool:
        """Plan for another card; False (and a dialog) when nobody knows it."""
        try:
            self.wizard.plan_for_card(text)
        except EngineError as error:
            self.show_error(error)
            return False
        return True

    def start_run(self, spec: JobSpec, *, force: bool = False) -> None:
        """Start a run in the engine thread, once; EngineDone or EngineFailed follows."""
        from scaler_tui.feeds.engine_thread import engine_thread_of

        if not self.launching:
            self.launching = True
            engine_thread_of(cast("App[object]", self)).launch(spec, self, force=force)

    def start_race(self, key: RaceKey) -> None:
        """Measure methods (or search factors) in a process of its own; RaceNews follow."""
        from scaler_tui.feeds.race_feed import RaceFeed

        race = self.wizard.window.race(key)
        if not race.running:
            race.running, race.error = True, None
            self._races[key] = RaceFeed(key, self)
            self._races[key].start()

    def cancel_race(self, key: RaceKey) -> None:
        """Stop it; its log keeps what was measured."""
        if key in self._races:
            self._races[key].cancel()

    def on_race_news(self, message: RaceNews) -> None:
        """Fold its lines and tell the screens."""
        from scaler_tui.window import keep_factors

        race = self.wizard.window.race(message.key)
        race.take(message.lines)
        race.running, race.error = message.running, message.error
        if message.key.method and race.found is not None and race.found.divisors and not message.running:
            keep_factors(message.key, race.found)
        self._tell_screens("on_race_news", message)

    def on_unmount(self) -> None:
        """Nothing measures on without a screen to show it."""
        for feed in self._races.values():
            feed.end_now()

    def on_engine_done(self, message: EngineDone) -> None:
        """The run is on its way: watch it, with the welcome screen underneath."""
        if message.action != "launch":
            return
        self.launching, self.wizard.started = False, True
        if self._leave_when_launched:
            self.leave()
            return
        self.open_started(message.run_dir)

    def on_engine_failed(self, message: EngineFailed) -> None:
        """It could not be started."""
        self.launching = self._leave_when_launched = False
        self._tell_screens("on_engine_failed")
        self.show_error(message.error)

    # ── navigation ───────────────────────────────────────────────────────────────────────────────────────────────
    def open_wizard(self, *, fresh: bool) -> None:
        """The questions, from the first or from where they were left."""
        from scaler_tui.screens.question import QuestionScreen

        if fresh:
            self.wizard.restart()
        else:
            self.wizard.load_saved()
        self.read_model(self.wizard.model_source)
        self.push_screen(QuestionScreen())

    def open_question(self, question_id: str) -> None:
        """Back to one question, keeping every answer."""
        from scaler_tui.screens.question import QuestionScreen

        self.wizard.session.go_to(question_id)
        while len(self.screen_stack) > 2 and not isinstance(self.screen, QuestionScreen):
            self.pop_screen()
        if not isinstance(self.screen, QuestionScreen):
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

    def choose_approach(self, approach: str) -> None:
        """The next screen of a chosen row: plans of an expansion, methods of a longer window, else the review."""
        from engine.advise.growth import grows
        from scaler_tui.screens.context import ContextScreen
        from scaler_tui.screens.expansion import ExpansionScreen
        from scaler_tui.window import APPROACH

        if grows(approach):
            self.push_screen(ExpansionScreen(approach))
        elif approach == APPROACH:
            self.push_screen(ContextScreen())
        else:
            self.open_decided(approach)

    def open_decided(self, approach: str) -> None:
        """What follows when the model to train is decided: the text where large text was answered, else the review."""
        from scaler_tui.screens.text import TextScreen

        if self.wizard.trains_on_text:
            self.push_screen(TextScreen(approach))
        else:
            self.open_review(approach)

    def open_review(self, approach: str) -> None:
        """Everything that was decided, before anything is spent."""
        from scaler_tui.screens.review import ReviewScreen

        self.push_screen(ReviewScreen(approach))

    def open_demo_review(self) -> None:
        """Straight to the review of the demo job."""
        self.wizard.restart(save=False)
        self.read_model("demo")
        self.open_review("qlora")

    def open_runs(self) -> None:
        """All runs."""
        from scaler_tui.screens.runs import RunsScreen

        self.push_screen(RunsScreen())

    def open_run(self, run_dir: Path) -> None:
        """Watch a run."""
        from scaler_tui.screens.run import RunScreen

        self.push_screen(RunScreen(run_dir))

    def open_started(self, run_dir: Path) -> None:
        """Watch what was started, with the welcome screen underneath."""
        while len(self.screen_stack) > 2:
            self.pop_screen()
        self.open_run(run_dir)

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
        if self.launching and not self._leave_when_launched:
            self._leave_when_launched = True
            self.notify("Leaving as soon as the run is on its way.", timeout=10)
            return
        from engine.jobs.store import list_runs
        from scaler_tui.feeds.export_feed import stays_for_export

        if stays_for_export(self, self.leave):
            return
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
        """Ctrl+C: stops what the screen is at, where it can be stopped; else asks once, and a second one leaves."""
        if getattr(self.screen, "stop_first", bool)():
            return
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
        """Below the smallest useful size one line says so; it goes by itself when the terminal grows."""
        self._check_size(event.size)

    def _check_size(self, size: Size | None = None) -> None:
        begun = len(self.screen_stack) > 1  # before, the line would end up under the first screen
        shown = any(isinstance(screen, TooSmallScreen) for screen in self.screen_stack)
        if begun and not shown and is_too_small(size or self.size):
            self.push_screen(TooSmallScreen())
