"""One run, live: phase, curve, figures, meters, log, answers, and promises against measurements.

Owns what is shown where and which key asks what of the run. Must not do work itself: a feed follows the journal, the
engine thread carries out requests. Leaving the screen never touches the run.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import ContentSwitcher

from engine.jobs.state import RunPhase, RunState
from scaler_tui.feeds.engine_thread import EngineDone, EngineFailed, engine_thread_of
from scaler_tui.feeds.journal_feed import FeedFailed, JournalFeed, RunSnapshot, RunUpdated
from scaler_tui.screens.help import HelpScreen
from scaler_tui.screens.problem import ConfirmScreen, ProblemScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets import evaluation_words, run_figures, run_words
from scaler_tui.widgets.before_after import BeforeAfter
from scaler_tui.widgets.chart_raster import ChartData, ChartMode
from scaler_tui.widgets.evaluation_panes import EvaluationPane, RetentionPane
from scaler_tui.widgets.frame import KeyLine
from scaler_tui.widgets.gpu_meters import GpuMeters
from scaler_tui.widgets.line_chart import LineChart
from scaler_tui.widgets.log_pane import LogPane
from scaler_tui.widgets.progress_line import ProgressLine
from scaler_tui.widgets.status_line import FixedText, StatusLine, toned

PANES = ("overview", "log", "samples", "details", "evaluation", "retention")
STOPPABLE_AT_REST = (RunPhase.PAUSED, RunPhase.LOST)
"""Nothing works on these, but they can be declared stopped."""
STYLES = Path(__file__).parent.parent / "styles"


class RunScreen(Screen[None]):
    """Follows the run in `run_dir` until it is left."""

    CSS_PATH: ClassVar[list[str | PurePath]] = [STYLES / "run.tcss", STYLES / "chart.tcss"]
    AUTO_FOCUS = ""
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-normal"), (110, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (23, "-medium"), (32, "-tall")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "control('pause')", "Pause", id="run.pause", tooltip="Finish the step, save, free the memory"),
        Binding("r", "resume", "Resume", id="run.resume", tooltip="Go on from the newest good checkpoint"),
        Binding("c", "control('checkpoint')", "Save", id="run.checkpoint", tooltip="Checkpoint now and go on"),
        Binding("s", "stop", "Stop", id="run.stop", tooltip="Finish the step, save the adapter, end"),
        Binding("o", "card", "Card", id="run.card", tooltip="The before/after card, once it is ready"),
        Binding("v", "proof", "Proof", id="run.proof", tooltip="What was proven of the grown model"),
        Binding("1", "pane('overview')", "Overview", show=False, id="run.overview"),
        Binding("2", "pane('log')", "Log", show=False, id="run.log"),
        Binding("3", "pane('samples')", "Samples", show=False, id="run.samples"),
        Binding("4", "pane('details')", "Details", show=False, id="run.details"),
        Binding("5", "pane('evaluation')", "Texts", show=False, id="run.evaluation", tooltip="Bits per byte by text"),
        Binding("6", "pane('retention')", "Kept", show=False, id="run.retention", tooltip="Lost, kept, benchmarks"),
        Binding("e", "scale", "Scale", id="run.scale", tooltip="Curves as bits per byte, or as their change in %"),
        Binding("b,escape,backspace", "back", "Back", key_display="b", id="run.back", tooltip="Back; the run goes on"),
        Binding("slash", "filter", "Filter", key_display="/", id="run.filter", tooltip="Filter the log"),
        Binding("l", "log_level", "Level", id="run.level", tooltip="Log: all, warnings and errors, errors only"),
        Binding("question_mark,f1", "help", "Help", key_display="?", id="run.help"),
        Binding("q", "leave", "Leave", show=False, tooltip="Leave the program; the run goes on"),
    ]
    place: ClassVar[str] = "run"

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir
        self.snapshot: RunSnapshot | None = None
        self.asked = ""
        """What was asked of the run and has not been taken up yet."""
        self._saved_when_asked = 0.0
        self.feed: JournalFeed | None = None

    # ── layout ───────────────────────────────────────────────────────────────────────────────────────────────────
    def compose(self) -> ComposeResult:
        yield StatusLine(id="status")
        yield ProgressLine(id="progress")
        yield FixedText(id="banner")
        yield FixedText(id="tabs")
        with ContentSwitcher(initial="overview", id="panes"):
            with Container(id="overview"):
                with Vertical(id="left"):
                    yield FixedText(id="legend")
                    yield LineChart(id="chart", mode=ChartMode.BRAILLE if self.unicode else ChartMode.ASCII)
                    yield FixedText(id="tail")
                with Container(id="figures"):
                    yield FixedText(id="now")
                    yield GpuMeters(id="meters")
                    yield FixedText(id="promises")
                    yield FixedText(id="latest")
            yield LogPane(id="log")
            yield BeforeAfter(
                id="samples", empty="Answers to the fixed prompts appear here, before and while training."
            )
            with VerticalScroll(id="details"):
                yield FixedText(id="details-promises")
                yield FixedText(id="details-text")
            yield EvaluationPane(unicode=self.unicode, id="evaluation")
            yield RetentionPane(unicode=self.unicode, id="retention")
        yield KeyLine(id="keys")

    @property
    def policy(self) -> RenderPolicy:
        """What the terminal can show."""
        policy = getattr(self.app, "policy", None)
        return policy if isinstance(policy, RenderPolicy) else RenderPolicy()

    @property
    def unicode(self) -> bool:
        """False: ASCII only."""
        return self.policy.unicode

    @property
    def pane(self) -> str:
        """The visible pane."""
        return self.query_one("#panes", ContentSwitcher).current or PANES[0]

    def on_mount(self) -> None:
        promises = "Predicted → measured" if self.unicode else "Predicted -> measured"
        titles = {"left": "Loss", "now": "Now", "meters": "Machine", "tail": "Log", "latest": "Answers"}
        for name, title in {**titles, "promises": promises}.items():
            self.query_one(f"#{name}").border_title = title
        self.set_class(not self.unicode, "-ascii")
        self._show_tabs()
        self.query_one("#banner").display = False
        run_id = toned(self.run_dir.name, "strong")
        self.query_one(StatusLine).show(Content.assemble(" ", run_id, "  reading the journal"))
        self.feed = JournalFeed(self.run_dir, self, post_seconds=1 / self.policy.refresh_hz)
        self.call_after_refresh(self.feed.start)  # by then the layout for this size is known

    def on_unmount(self) -> None:
        if self.feed is not None:
            self.feed.stop()

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self.show_snapshot)

    # ── news ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def on_run_updated(self, message: RunUpdated) -> None:
        """The feed has something new."""
        message.stop()
        before, self.snapshot = self.snapshot, message.snapshot
        state = message.snapshot.state
        if not state.state.is_live or state.pending_control == self.asked or self._checkpoint_was_written(state):
            self.asked = ""
        if before is None:
            self._show_frame(message.snapshot)  # banner and figures take their room, the curve gets what is left
            self._show_figures(message.snapshot)
            self.call_after_refresh(self.show_snapshot)
        else:
            await self.show_snapshot()
        if before is None or _keys_of(before) != _keys_of(message.snapshot):
            self.refresh_bindings()

    def _checkpoint_was_written(self, state: RunState) -> bool:
        """Request and checkpoint can arrive in one message; then only the newer checkpoint tells."""
        return self.asked == "checkpoint" and _newest_save(state) > self._saved_when_asked

    def on_feed_failed(self, message: FeedFailed) -> None:
        """The journal cannot be read."""
        message.stop()
        self.app.push_screen(ProblemScreen(message.error))

    async def on_engine_done(self, message: EngineDone) -> None:
        """A request was carried out; the journal will say what came of it."""
        message.stop()
        if message.action == "resume":
            self.asked = ""
            await self.show_snapshot()

    async def on_engine_failed(self, message: EngineFailed) -> None:
        """A request was refused."""
        message.stop()
        self.asked = ""
        await self.show_snapshot()
        self.app.push_screen(ProblemScreen(message.error))

    async def show_snapshot(self) -> None:
        """Draw the newest snapshot: the frame and the visible pane."""
        snapshot = self.snapshot
        if snapshot is None or not self.is_mounted:
            return
        state, unicode = snapshot.state, self.unicode
        self._show_frame(snapshot)
        if self.pane == "overview":
            self._show_figures(snapshot)
            empty = run_words.no_curve(snapshot)
            chart = ChartData(snapshot.loss, snapshot.evaluation, total_steps=state.total_steps, empty=empty)
            self.query_one("#chart", LineChart).show(chart)
        elif self.pane == "log":
            self.query_one(LogPane).show(state.log, unicode=unicode)
        elif self.pane == "samples":
            await self.query_one(BeforeAfter).show(run_words.pairs(state), unicode=unicode)
        elif self.pane == "evaluation":
            self.query_one(EvaluationPane).show(snapshot)
        elif self.pane == "retention":
            self.query_one(RetentionPane).show(snapshot)
        else:
            self._show_details(snapshot)

    def _show_frame(self, snapshot: RunSnapshot) -> None:
        state, unicode = snapshot.state, self.unicode
        self.query_one(StatusLine).show_run(
            name=snapshot.spec.name if snapshot.spec else "",
            run_id=self.run_dir.name,
            state=state.state,
            marks=run_words.marks(snapshot, skipped=getattr(self.app, "frames_skipped", 0)),
            unicode=unicode,
            width=self.size.width,
        )
        self.query_one(ProgressLine).show_state(state, unicode=unicode)
        self._show_banner(snapshot)
        self._show_tabs()

    def _show_banner(self, snapshot: RunSnapshot) -> None:
        banner = self.query_one("#banner", FixedText)
        words = run_words.banner(snapshot, self.asked)
        banner.display = words is not None
        if words is not None:
            banner.set_classes(f"-{words.tone}")
            banner.show(words.content)

    def _show_tabs(self) -> None:
        tabs = run_words.tabs(self.snapshot, PANES, self.pane, self.size.width)
        self.query_one("#tabs", FixedText).show(tabs)

    def _show_figures(self, snapshot: RunSnapshot) -> None:
        state, spec, unicode = snapshot.state, snapshot.spec, self.unicode
        short, tall = self.size.height < 23, self.size.height >= 32
        self._fill("legend", run_words.legend(state, self._width("legend"), unicode=unicode))
        width = self._width("now")
        one_line = short or self.size.width < 76
        rows = run_figures.now_rows(state, streams=spec is not None and spec.streams)
        self._fill("now", run_figures.now_line(rows, width) if one_line else run_figures.labelled(rows, width))
        meters = self.query_one(GpuMeters)
        meters.rows = 12 if tall else 4
        meters.show_state(state, unicode=unicode)
        promises = run_figures.promises(spec, state)
        self._fill("promises", run_figures.promise_lines(promises, self._width("promises"), unicode=unicode))
        if tall:
            self._fill("tail", run_words.log_tail(state, self._width("tail"), 5, unicode=unicode))
            self._fill("latest", run_words.latest_answers(state, unicode=unicode))

    def _show_details(self, snapshot: RunSnapshot) -> None:
        state, spec = snapshot.state, snapshot.spec
        width = max(self._width("details-text"), 30)
        promises = run_figures.promises(spec, state)
        self._fill("details-promises", run_figures.promise_lines(promises, width, unicode=self.unicode))
        rows = run_figures.detail_rows(spec, state, str(self.run_dir))
        self._fill("details-text", run_figures.labelled(rows, 10_000))

    def _fill(self, name: str, content: Content) -> None:
        self.query_one(f"#{name}", FixedText).show(content)

    def _width(self, name: str) -> int:
        return self.query_one(f"#{name}").content_size.width or self.size.width

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that make no sense now stay visible but dim; pause and resume share one place."""
        state = None if self.snapshot is None else self.snapshot.state
        if action == "resume":
            return state is not None and state.state.is_resumable
        if action == "control" and parameters == ("pause",):
            return state is None or not state.state.is_resumable
        if action == "stop":
            return True if state is not None and (state.state.is_live or state.state in STOPPABLE_AT_REST) else None
        if action == "control":
            return True if state is not None and state.state.is_live else None
        if action == "card":
            return True if state is not None and state.card_path else None
        if action == "proof":
            return state is not None and state.proof is not None
        if action == "scale":
            return self.pane == "evaluation"
        if action == "pane" and parameters[0] in run_words.MEASURED_PANES:
            return self.snapshot is not None and evaluation_words.measures(self.snapshot)
        return action != "log_level" or self.pane == "log"

    async def action_control(self, command: str) -> None:
        """Ask the run for something; it answers in its journal."""
        if self.snapshot is None or not (self.snapshot.state.state.is_live or command == "stop"):
            return
        self.asked = command
        self._saved_when_asked = _newest_save(self.snapshot.state)
        engine_thread_of(self.app).control(self.run_dir, command, self)
        await self.show_snapshot()

    def action_stop(self) -> None:
        """Ask first."""

        async def answered(yes: bool | None) -> None:
            if yes:
                await self.action_control("stop")

        detail = "The current step is finished, then a checkpoint and the adapter are saved. You can resume it later."
        self.app.push_screen(ConfirmScreen("Stop this run?", detail), answered)

    async def action_resume(self) -> None:
        """Start the runner again."""
        if self.snapshot is None or not self.snapshot.state.state.is_resumable or self.asked == "resume":
            return
        self.asked = "resume"
        engine_thread_of(self.app).resume(self.run_dir, self)
        await self.show_snapshot()

    def action_card(self) -> None:
        """The before/after card."""
        from scaler_tui.screens.card import CardScreen

        self.app.push_screen(CardScreen(self.run_dir))

    def action_proof(self) -> None:
        """The proof of the grown model."""
        from scaler_tui.screens.proof import ProofScreen

        if self.snapshot is not None and self.snapshot.state.proof is not None:
            self.app.push_screen(ProofScreen.of_run(self.run_dir, self.snapshot.state.proof))

    async def action_pane(self, name: str) -> None:
        """Show another pane and give it the arrow keys."""
        self.query_one("#panes", ContentSwitcher).current = name
        self.refresh_bindings()
        await self.show_snapshot()
        targets = {"log": "#log-lines", "samples": "#samples", "details": "#details", "retention": "#retention"}
        self.set_focus(self.query_one(targets[name]) if name in targets else None)
        self.call_after_refresh(self._redraw_if_resized, self._pane_widths())

    def _pane_widths(self) -> tuple[int, ...]:
        """What the texts of the overview and the details were fitted into; a hidden pane keeps its old size."""
        names = ("legend", "now", "promises", "tail", "details-text", "suite-table", "retention-text")
        return tuple(self.query_one(f"#{name}").content_size.width for name in names)

    async def _redraw_if_resized(self, widths: tuple[int, ...]) -> None:
        if self._pane_widths() != widths:
            await self.show_snapshot()

    async def action_scale(self) -> None:
        """Bits per byte, or their change."""
        pane = self.query_one(EvaluationPane)
        pane.relative = not pane.relative
        await self.show_snapshot()

    def action_log_level(self) -> None:
        """All lines, warnings and errors, errors only."""
        self.query_one(LogPane).next_level()

    async def action_filter(self) -> None:
        """Filter the log."""
        await self.action_pane("log")
        self.query_one(LogPane).open_filter()

    def action_back(self) -> None:
        """Leave this screen; say that the run goes on."""
        if self.snapshot is not None and self.snapshot.state.state.is_live:
            self.app.notify(f"The run continues. Re-attach: scaler-wizard attach {self.run_dir.name}", timeout=4)
        self.dismiss()

    def action_help(self) -> None:
        """The keys of this screen."""
        self.app.push_screen(HelpScreen.of(self))

    async def action_leave(self) -> None:
        """Leave the program."""
        await self.app.run_action("leave" if hasattr(self.app, "action_leave") else "quit")


def _newest_save(state: RunState) -> float:
    """Wall time of the newest checkpoint; 0 while there is none."""
    return state.checkpoints[-1].t if state.checkpoints else 0.0


def _keys_of(snapshot: RunSnapshot) -> tuple[RunPhase, bool, bool, bool]:
    """What decides which keys are available."""
    state = snapshot.state
    return state.state, bool(state.card_path), state.proof is not None, evaluation_words.measures(snapshot)
