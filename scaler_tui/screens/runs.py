"""The list of runs: state, step, loss, model, age. Enter opens one; the list refreshes itself.

Owns rows and keys. Must not read files: a feed does, in its own thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from engine.jobs.state import RunPhase
from engine.jobs.summary import RunSummary
from engine.units import format_duration
from scaler_tui.feeds.engine_thread import EngineDone, EngineFailed, engine_thread_of
from scaler_tui.feeds.runs_feed import RunsFeed, RunsListed
from scaler_tui.screens.help import HelpScreen
from scaler_tui.screens.problem import ProblemScreen
from scaler_tui.screens.run import STYLES, RunScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets.frame import KeyLine
from scaler_tui.widgets.run_figures import format_loss
from scaler_tui.widgets.status_line import FixedText, clip, state_words, toned

STATE_CELLS = 12
GAP = 2
AGE_TICK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Column:
    """A column with its width in cells; a flexible one takes what is left."""

    title: str
    cells: int
    right: bool = False
    flexible: bool = False


TASKS = {"new_blocks": "new blocks", "new_coordinates": "new coords", "qlora_grown": "qlora+new"}
"""Tasks whose name is too long for the column."""


def columns_for(width: int) -> list[Column]:
    """The columns that fit whole into `width`; the least important are left out first."""
    wanted = [
        Column("run", 10, flexible=True),
        Column("step", 13, right=True),
        Column("loss", 7, right=True),
        Column("age", 7, right=True),
        Column("model", 12),
        Column("task", 10),
        Column("id", 20),
    ]
    used = STATE_CELLS
    chosen: list[Column] = []
    for column in wanted:
        if used + GAP + column.cells > width:
            break
        used += GAP + column.cells
        chosen.append(column)
    spare = max(width - used, 0)
    return [replace(column, cells=column.cells + spare) if column.flexible else column for column in chosen]


def _age(run: RunSummary, now: float) -> str:
    """Since its last sign of life, in one unit: "now", "7 min", "25 h", "4 d"."""
    minutes = max(now - (run.updated or run.created), 0.0) / 60
    if minutes < 1:
        return "now"
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{minutes / 1440:.0f} d"


def _cell(run: RunSummary, title: str, cells: int, now: float, *, unicode: bool) -> str:
    if title == "step":
        return f"{run.step:,}/{run.total_steps:,}" if run.total_steps else f"{run.step:,}" if run.step else "-"
    texts = {
        "run": run.name or (run.id if len(run.id) <= cells else run.id.partition("-")[2]),
        "loss": format_loss(run.shown_loss),
        "age": _age(run, now),
        "model": run.model,
        "task": TASKS.get(run.task, run.task),
        "id": run.id,
    }
    return clip(texts[title], cells, unicode=unicode) if title in ("run", "model") else texts[title]


def row(run: RunSummary, width: int, now: float, *, unicode: bool) -> Content:
    """One line of the list."""
    words = state_words(run.state, unicode=unicode)
    parts: list[Content | str] = [words, " " * (STATE_CELLS - words.cell_length)]
    for column in columns_for(width):
        text = _cell(run, column.title, column.cells, now, unicode=unicode)
        parts += [" " * GAP, f"{text:>{column.cells}}" if column.right else f"{text:<{column.cells}}"]
    return Content.assemble(*parts)


def heading(width: int) -> Content:
    """The names of the columns."""
    text = f"{'state':<{STATE_CELLS}}"
    for column in columns_for(width):
        text += " " * GAP + (f"{column.title:>{column.cells}}" if column.right else f"{column.title:<{column.cells}}")
    return toned(text, "quiet")


class RunsScreen(Screen[None]):
    """All runs of this machine."""

    CSS_PATH: ClassVar[list[str | PurePath]] = [STYLES / "run.tcss", STYLES / "runs.tcss"]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-normal"), (110, "-wide")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", key_display="Enter", id="runs.open", tooltip="Watch the run"),
        Binding("r", "resume", "Resume", id="runs.resume", tooltip="Go on with a paused, stopped, failed or lost run"),
        Binding("o", "card", "Card", id="runs.card", tooltip="The before/after card"),
        Binding("t", "chat", "Try it", id="runs.chat", tooltip="Talk to what it has left, beside its base"),
        Binding("x", "export", "Export", id="runs.export", tooltip="Write it for transformers, llama.cpp or Ollama"),
        Binding("a", "mix", "Mix", id="runs.mix", tooltip="Mix its adapter with others"),
        Binding("b,escape,backspace", "back", "Back", key_display="b", id="runs.back"),
        Binding("question_mark,f1", "help", "Help", key_display="?", id="runs.help"),
        Binding("q", "leave", "Leave", tooltip="Leave the program; runs go on"),
    ]
    place: ClassVar[str] = "runs"

    def __init__(self) -> None:
        super().__init__()
        self.runs: tuple[RunSummary, ...] | None = None
        self.feed: RunsFeed | None = None

    def compose(self) -> ComposeResult:
        yield FixedText(id="runs-title")
        yield FixedText(id="runs-heading")
        yield OptionList(id="runs-list")
        yield FixedText(id="runs-empty")
        yield FixedText(id="runs-detail")
        yield KeyLine(id="keys")

    @property
    def unicode(self) -> bool:
        """False: ASCII only."""
        policy = getattr(self.app, "policy", None)
        return policy.unicode if isinstance(policy, RenderPolicy) else True

    @property
    def selected(self) -> RunSummary | None:
        """The run under the pointer."""
        index = self.query_one(OptionList).highlighted
        return self.runs[index] if self.runs and index is not None and index < len(self.runs) else None

    def on_mount(self) -> None:
        self.query_one("#runs-empty").display = False
        self.query_one("#runs-title", FixedText).show(Content.assemble(" ", toned("Runs", "strong"), "  looking"))
        self.set_interval(AGE_TICK_SECONDS, self.show_runs)
        self._watch()

    def on_unmount(self) -> None:
        if self.feed is not None:
            self.feed.stop()

    def on_screen_suspend(self) -> None:
        """Another screen is in front: nobody needs the list."""
        if self.feed is not None:
            self.feed.stop()
            self.feed = None

    def on_screen_resume(self) -> None:
        """In front again."""
        self._watch()

    def _watch(self) -> None:
        if self.feed is None:
            self.feed = RunsFeed(self)
            self.feed.start()

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self.show_runs)

    def on_runs_listed(self, message: RunsListed) -> None:
        """The feed has something new."""
        message.stop()
        self.runs = message.runs
        self.show_runs()

    def show_runs(self) -> None:
        """Draw the rows; the pointer stays on its run."""
        if self.runs is None or not self.is_mounted:
            return
        options = self.query_one(OptionList)
        live = sum(run.state.is_live for run in self.runs)
        count = f"{len(self.runs)} on this machine" + (f", {live} working" if live else "")
        self.query_one("#runs-title", FixedText).show(Content.assemble(" ", toned("Runs", "strong"), f"  {count}"))
        width = max((options.content_size.width or self.size.width - 2) - 1, 20)
        self.query_one("#runs-heading", FixedText).show(heading(width))
        now = time.time()
        rows = [(run.id, Content.assemble(row(run, width, now, unicode=self.unicode))) for run in self.runs]
        self._fill(options, rows)
        options.display = bool(rows)
        self.query_one("#runs-heading").display = bool(rows)
        empty = self.query_one("#runs-empty", FixedText)
        empty.display = not rows
        empty.show(
            Content.assemble(
                toned("No runs yet.\n\n", "strong"),
                "A run starts from the wizard's review: press b, then choose a new run.\n",
                "Or in a shell:  scaler-wizard demo\n\n",
                toned("It goes on when this window is closed, and is listed here.", "quiet"),
            )
        )
        self._show_detail()
        self.refresh_bindings()

    @staticmethod
    def _fill(options: OptionList, rows: list[tuple[str, Content]]) -> None:
        known = [option.id for option in options.options]
        if known == [run_id for run_id, _ in rows]:
            for option, (run_id, text) in zip(options.options, rows, strict=True):
                if not (isinstance(option.prompt, Content) and option.prompt.plain == text.plain):
                    options.replace_option_prompt(run_id, text)
            return
        chosen = known[options.highlighted] if options.highlighted is not None and known else None
        options.clear_options()
        options.add_options([Option(text, id=run_id) for run_id, text in rows])
        ids = [run_id for run_id, _ in rows]
        if ids:
            options.highlighted = ids.index(chosen) if chosen in ids else 0

    def _show_detail(self) -> None:
        run = self.selected
        detail = self.query_one("#runs-detail", FixedText)
        if run is None:
            detail.show(Content(""))
            return
        lines: list[Content] = []
        trouble = " ".join(text for text in (run.what or run.warning, run.cause) if text)
        if trouble:
            lines.append(toned(trouble, "bad" if run.state in (RunPhase.FAILED, RunPhase.LOST) else "warn"))
        elif run.eta_seconds is not None and run.state.is_live:
            lines.append(Content(f"{format_duration(run.eta_seconds)} left"))
        if run.next_step:
            lines.append(Content(f"Next: {run.next_step}"))
        elif run.state.is_resumable:
            lines.append(Content("Next: r resumes it."))
        lines.append(toned(str(run.directory), "quiet"))
        detail.show(Content("\n").join(lines))

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Show what is known of the run under the pointer."""
        event.stop()
        self._show_detail()
        self.refresh_bindings()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter or a click."""
        event.stop()
        self.action_open()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Resume and card only where they make sense."""
        if action not in ("open", "resume", "card", "chat", "export", "mix"):
            return True
        run = self.selected
        if run is None:
            return None
        if action == "resume":
            return True if run.state.is_resumable else None
        if action == "card":
            return True if (run.directory / "card.json").exists() else None
        if action == "mix":
            return True if self._adapter(run) is not None else None
        if action == "export":
            return True if self._adapter(run) is not None or (run.directory / "output" / "model").is_dir() else None
        if action == "chat":
            from scaler_tui.chat_sides import can_chat

            return True if can_chat(run.directory) else None
        return True

    def action_open(self) -> None:
        """Watch the run."""
        if self.selected is not None:
            self._open(self.selected.directory)

    def _open(self, run_dir: Path) -> None:
        opener = getattr(self.app, "open_run", None)
        if opener is not None:
            opener(run_dir)
        else:
            self.app.push_screen(RunScreen(run_dir))

    def action_resume(self) -> None:
        """Go on with the run."""
        if self.selected is not None and self.selected.state.is_resumable:
            engine_thread_of(self.app).resume(self.selected.directory, self)

    def on_engine_done(self, message: EngineDone) -> None:
        """It goes on: watch it."""
        message.stop()
        if self.app.screen is self:
            self._open(message.run_dir)

    def on_engine_failed(self, message: EngineFailed) -> None:
        """It could not be started."""
        message.stop()
        self.app.push_screen(ProblemScreen(message.error))

    def action_card(self) -> None:
        """The before/after card."""
        from scaler_tui.screens.card import CardScreen

        if self.selected is not None:
            self.app.push_screen(CardScreen(self.selected.directory))

    @staticmethod
    def _adapter(run: RunSummary) -> Path | None:
        """What it has left, where that is an adapter."""
        folder = run.directory / "output" / "adapter"
        return folder if (folder / "adapter_config.json").is_file() else None

    def action_export(self) -> None:
        """In the form of another program."""
        from scaler_tui.screens.export import ExportScreen

        if (run := self.selected) is not None:
            adapter = self._adapter(run) is not None
            self.app.push_screen(ExportScreen(run.directory, run.name or run.id, adapter=adapter))

    def action_mix(self) -> None:
        """With other adapters of its base."""
        from scaler_tui.screens.adapters import AdaptersScreen

        if self.selected is not None:
            self.app.push_screen(AdaptersScreen(self._adapter(self.selected)))

    def action_chat(self) -> None:
        """Talk to what the run has left."""
        from scaler_tui.chat_sides import of_run_with_base
        from scaler_tui.screens.chat import ChatScreen

        if self.selected is not None:
            self.app.push_screen(ChatScreen(of_run_with_base(self.selected.directory)))

    def action_back(self) -> None:
        """One screen back."""
        self.dismiss()

    def action_help(self) -> None:
        """The keys of this screen."""
        self.app.push_screen(HelpScreen.of(self))

    async def action_leave(self) -> None:
        """Leave the program."""
        await self.app.run_action("leave" if hasattr(self.app, "action_leave") else "quit")
