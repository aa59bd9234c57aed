"""A result in the form of another program: where to, in which sizes, how far it is, and what to do with it.

Owns the pointer, the field and the keys. Sizes, the writing and the comparison are the `export` command's, in a process
of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Input, Static

from engine.errors import EngineError
from engine.jobs.export_report import ExportReport
from engine.jobs.spec_export import GGUF_TYPES
from scaler_tui.feeds.export_feed import EarlierExports, ExportJob, earlier_in_thread, jobs_of
from scaler_tui.feeds.mix_feed import TwinDone, TwinSaid, ask_in_thread
from scaler_tui.screens.base import FramedScreen
from scaler_tui.screens.problem import ConfirmScreen
from scaler_tui.widgets import export_lines
from scaler_tui.widgets.card_results import export_lines as report_lines
from scaler_tui.widgets.context_words import QUIET, wrapped_line
from scaler_tui.widgets.export_lines import PLACES, Place

OPTIONS = ("adapter", "compare")


class ExportScreen(FramedScreen):
    """Destinations, sizes, switches; words below."""

    place = "export"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "export", "Export", tooltip="Write it; where its runtime is here it is compared too"),
        Binding("s", "stop", "Stop", tooltip="Stop the export; the same one can go on later"),
        Binding("space", "choose", "Choose", tooltip="The pointed destination, size or switch"),
        Binding("up,k", "move(-1)", "Line", key_display="↑↓"),
        Binding("t", "type", "Type", priority=True, tooltip="Another folder to write to"),
        Binding("b,escape,backspace,left", "back", "Back", key_display="b"),
        Binding("down,j", "move(1)", "Line below", show=False),
        *[Binding(str(n), f"pick({n})", "Destination directly", show=False) for n in (1, 2, 3)],
        Binding("pageup", "page(-1)", "Page", show=False),
        Binding("pagedown", "page(1)", "Page", show=False),
    ]

    def __init__(self, source: Path, name: str, exports: Sequence[ExportReport] = (), *, adapter: bool) -> None:
        """`source`: a run directory or a folder; `adapter`: whether it holds one."""
        super().__init__()
        self.source, self.name_shown, self.has_adapter = source, name, adapter
        self.exports = tuple(exports)
        self.pointer = 0
        self.chosen = PLACES[1]
        self.types = {"q8_0"}
        self.as_adapter = False
        self.compare = True
        self.out = ""
        """As typed; "" leaves it to the command."""
        self.sizes: dict[str, int] = {}
        self.job: ExportJob | None = None
        self._forced = False
        self.refusal: EngineError | None = None
        self.report: ExportReport | None = None

    def body(self) -> Iterable[Widget]:
        """Rows, the field, words."""
        yield Static(id="export-rows", markup=False)
        yield Input(id="export-field", compact=True)
        with VerticalScroll(id="export-scroll", can_focus=False):
            yield Static(id="export-words", markup=False)

    def on_mount(self) -> None:
        """How large each size would be."""
        self.query_one("#export-field").display = False
        job = jobs_of(self.app).get(self.source)
        if job is not None and job.running:
            job.watcher = self
            self.job, self.chosen = job, next(place for place in PLACES if place.id == job.place)
        self.pointer = PLACES.index(self.chosen)
        self.show_export()
        if not self.exports:
            earlier_in_thread(self, self.source)
        ask_in_thread(self, "sizes", ["export", "gguf", str(self.source), "--sizes", "--json"])

    def on_unmount(self) -> None:
        """An export goes on without the screen."""
        if self.job is not None and self.job.watcher is self:
            self.job.watcher = None

    @property
    def busy(self) -> bool:
        """Whether one is at work."""
        return self.job is not None

    def on_resize(self, event: Resize) -> None:
        """Another width."""
        self.call_after_refresh(self.show_export)

    def title_text(self) -> str:
        """Of what."""
        return f"export {self.name_shown}"

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def rows(self) -> list[tuple[str, str]]:
        """(kind, id): destinations, then sizes where they have any, then switches."""
        found = [("place", place.id) for place in PLACES]
        if self.chosen.id != "hf":
            found += [("type", kind) for kind in GGUF_TYPES]
        options = [("option", name) for name in OPTIONS if name != "adapter" or self._may_be_adapter]
        return found + options

    @property
    def _may_be_adapter(self) -> bool:
        return self.has_adapter and self.chosen.id != "hf"

    @property
    def pointed(self) -> tuple[str, str]:
        """The row under the pointer."""
        return self.rows[min(self.pointer, len(self.rows) - 1)]

    # ── news ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def on_twin_said(self, message: TwinSaid) -> None:
        """A step of it."""
        message.stop()
        if message.action == "export":
            self.show_export()

    def on_earlier_exports(self, message: EarlierExports) -> None:
        """What the run's card has of them."""
        message.stop()
        self.exports = (*message.exports, *self.exports)
        self.show_export()

    def on_twin_done(self, message: TwinDone) -> None:
        """Sizes came, or it is written, or was refused."""
        message.stop()
        if message.action == "sizes":
            self.sizes = {kind: int(size) for kind, size in (message.told or {}).get("sizes", {}).items()}
            self.refusal = self.refusal or message.error
        else:
            self._ended(message)
        self.show_export()
        self.refresh_bindings()

    def _ended(self, message: TwinDone) -> None:
        self.job = None
        if message.told is not None:
            self.report = report_of(message.told)
            self.exports = (*self.exports, self.report)
        elif message.error is not None and message.error.code.endswith("exists") and not self._forced:
            self._ask_to_replace(message.error)
        else:
            self.refusal = message.error

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def show_export(self) -> None:
        """Draw everything for the present size."""
        if not self.is_mounted:
            return
        width = max(self.size.width - 2, 30)
        lines = [self._line(kind, name, width) for kind, name in self.rows]
        self.query_one("#export-rows", Static).update(Content("\n").join(lines))
        self.query_one("#export-words", Static).update(Content("\n").join(self._words(width - 2)))

    def _line(self, kind: str, name: str, width: int) -> Content:
        pointed = self.pointed == (kind, name)
        if kind == "place":
            number = next(n for n, place in enumerate(PLACES, 1) if place.id == name)
            place = PLACES[number - 1]
            return export_lines.place_line(
                number, place, width, self.signs, chosen=place is self.chosen, pointed=pointed
            )
        if kind == "type":
            found = export_lines.measured(self.exports).get(name)
            return export_lines.type_line(
                name,
                export_lines.written(self.exports).get(name, self.sizes.get(name)),
                found,
                width,
                self.signs,
                chosen=name in self.types,
                pointed=pointed,
            )
        if name == "adapter":
            said = "the adapter by itself, beside its base" if self.as_adapter else "merged into its base"
            return export_lines.option_line("as", self._as_words(), said, width, self.signs, pointed=pointed)
        said = "same prompts through both programs; a minute or so" if self.compare else "nothing is compared"
        shown = "yes" if self.compare else "no"
        return export_lines.option_line("compare", shown, said, width, self.signs, pointed=pointed)

    def _as_words(self) -> str:
        return "adapter" if self.as_adapter else "model"

    def _words(self, width: int) -> list[Content]:
        if self.job is not None:
            head = Content.styled(f"Exporting for {self.chosen.title} ...", "bold")
            return [head, *(wrapped_line(step, width, 2) for step in self.job.steps)]
        if self.refusal is not None:
            what = wrapped_line(f"{self.signs.no} {self.refusal.what}", width)
            texts = (self.refusal.cause, self.refusal.next_step)
            return [
                Content.styled(what.plain, "bold $text-error"),
                *(wrapped_line(text, width) for text in texts if text),
            ]
        if self.report is not None:
            return [report_lines((self.report,), width, unicode=self.scaler.policy.unicode)]
        return [wrapped_line(text, width, tone=tone) for text, tone in self._hints()]

    def _hints(self) -> list[tuple[str, str]]:
        where = self.out or (
            "its own folder, output/export" if (self.source / "spec.toml").is_file() else "a new folder here"
        )
        told = [(self.chosen.words, ""), (f"Enter writes it to {where}; t types another.", "bold")]
        if self.chosen.id != "hf":
            told.append(
                (
                    "Sizes before are estimates. Afterwards perplexity is compared with transformers on held-out text, "
                    "and the next token on the same prompts and answers.",
                    QUIET,
                )
            )
        return told

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """One export at a time."""
        if action == "stop":
            return self.job is not None and not self.job.stopped
        if action == "type" and self.is_mounted and self.query_one("#export-field", Input).has_focus:
            return False
        return None if action in ("export", "choose", "type", "pick") and self.busy else True

    def action_move(self, by: int) -> None:
        """Another row; it stops at both ends."""
        self.pointer = min(max(self.pointer + by, 0), len(self.rows) - 1)
        self.refusal = None
        self.show_export()

    def action_pick(self, number: int) -> None:
        """Digits choose a destination directly."""
        self.pointer = number - 1
        self._go_to(PLACES[number - 1])

    def action_choose(self) -> None:
        """Take the pointed row."""
        kind, name = self.pointed
        if kind == "place":
            self._go_to(next(place for place in PLACES if place.id == name))
            return
        if kind == "type":
            self.types ^= {name}
        elif name == "adapter":
            self.as_adapter = not self.as_adapter
        else:
            self.compare = not self.compare
        self._again()

    def _go_to(self, place: Place) -> None:
        self.chosen = place
        self.as_adapter = self.as_adapter and self._may_be_adapter
        self._again()

    def _again(self) -> None:
        self.refusal = self.report = None
        self.show_export()
        self.refresh_bindings()

    def action_page(self, pages: int) -> None:
        """Scroll the words."""
        scroll = self.query_one("#export-scroll", VerticalScroll)
        scroll.scroll_relative(y=pages * max(scroll.size.height - 1, 1), animate=False)

    def action_type(self) -> None:
        """Open the field for the folder."""
        field = self.query_one("#export-field", Input)
        field.placeholder = "a new folder; empty leaves it to the program; Enter takes, Esc leaves"
        field.value = self.out
        field.display = True
        self.set_focus(field)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Nothing is written before another Enter."""
        event.stop()
        self.out = event.value.strip()
        self._close_field()
        self._again()

    def _close_field(self) -> None:
        self.query_one("#export-field").display = False
        self.set_focus(None)

    def action_back(self) -> None:
        """Out of the field, else one screen back; an export goes on."""
        if self.query_one("#export-field").display:
            self._close_field()
            return
        if self.busy:
            self.notify("It goes on; open this screen again to see how far it is.", timeout=6)
        self.app.pop_screen()

    def action_stop(self) -> None:
        """End what is at work."""
        if self.job is not None:
            self.job.stop()
            self.refresh_bindings()

    def action_export(self) -> None:
        """Write it."""
        if not self.busy:
            self._export(force=False)

    def _export(self, *, force: bool) -> None:
        self.refusal = self.report = None
        self._forced = force
        if self.chosen.id != "hf" and not self.types and not (self.as_adapter and self.chosen.id == "gguf"):
            what = "No size is chosen."
            self.refusal = EngineError("export.no_type", what, next_step="Space chooses the pointed one.")
        else:
            app, self.job = self.app, ExportJob(self.words(force=force), self.chosen.id, self)
            jobs_of(app)[self.source] = self.job
            self.job.start(lambda done: tell_late(app, done))
        self.show_export()
        self.refresh_bindings()

    def words(self, *, force: bool) -> list[str]:
        """The subcommand."""
        found = ["export", self.chosen.id, str(self.source), "--json"]
        if self.chosen.id != "hf":
            found += [word for kind in GGUF_TYPES if kind in self.types for word in ("--type", kind)]
            found += ["--adapter"] if self.as_adapter else []
        found += ["--out", str(Path(self.out).expanduser().absolute())] if self.out else []
        found += [] if self.compare else ["--no-verify"]
        return [*found, "--force"] if force else found

    def _ask_to_replace(self, error: EngineError) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self._export(force=True)

        self.app.push_screen(ConfirmScreen(f"{error.what} Replace it?", "What is there is lost."), answered)


def report_of(told: dict[str, Any]) -> ExportReport:
    """From the command's JSON."""
    import msgspec

    return msgspec.convert({name: told[name] for name in ExportReport.__struct_fields__ if name in told}, ExportReport)


def tell_late(app: App[object], done: TwinDone) -> None:
    """How an export ended whose screen was left."""
    if done.error is not None:
        words = " ".join(text for text in (done.error.what, done.error.next_step) if text)
        app.notify(words, title="Export", severity="error", timeout=20, markup=False)
    elif done.told is not None:
        app.notify(f"Exported: {report_of(done.told).next_step or 'done'}", title="Export", timeout=10, markup=False)
