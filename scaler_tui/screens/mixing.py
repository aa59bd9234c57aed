"""What the screen about adapters has done for it: scoring, searching and writing, each a process of its own.

Owns following and ending them. Must not know what is shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from textual.app import App

from engine.errors import EngineError
from engine.jobs.mix_lines import Dropped, Line, Refused, Scored, Scorer, SweepReport, Tried
from scaler_tui.feeds.mix_feed import MixFeed, MixSaid, TwinDone, TwinSaid, ask_in_thread
from scaler_tui.mixing import Mixing
from scaler_tui.screens.base import FramedScreen
from scaler_tui.screens.problem import ConfirmScreen

SWEEP_TRIES = 40


class MixingScreen(FramedScreen):
    """Keeps the figures of `mixing` up to date; subclasses draw."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = Mixing()
        self.feed: MixFeed | None = None
        """Scores what is on the sliders."""
        self.sweep: MixFeed | None = None
        self.sweeping: tuple[Path, ...] = ()
        """Whose weights are searched."""
        self.tried: Tried | None = None
        self.swept: SweepReport | None = None
        self.busy = ""
        """What is being written: "mix", "merge"."""
        self.step = ""
        """Its newest line."""
        self.result: tuple[tuple[str, str], ...] = ()
        self.refusal: EngineError | None = None
        self._wanted_out = ""
        self._forced = False
        self._only_chosen = False
        """Scoring has failed with adapters that are not in."""

    def show_mix(self) -> None:
        """Draw everything for the present size."""
        raise NotImplementedError

    def forget_words(self) -> None:
        """What the last thing came to is no longer of interest."""
        self.refusal, self.result = None, ()

    def forget_sweep(self) -> None:
        """Who is in, or the rows, are others than were searched."""
        self.swept, self.mixing.fitted = None, False

    def on_unmount(self) -> None:
        """Nothing scores on without a screen to show it."""
        for feed in (self.feed, self.sweep):
            if feed is not None:
                feed.end_now()

    # ── news ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def on_mix_said(self, message: MixSaid) -> None:
        """The scoring process, or the sweep."""
        message.stop()
        if message.feed is self.feed:
            self._scored(message)
        elif message.feed is self.sweep:
            self._sweep_said(message)
        self.show_mix()
        self.refresh_bindings()

    def _scored(self, message: MixSaid) -> None:
        for line in message.lines:
            self._take(line)
        if not message.running:
            self.feed = None
            self.mixing.scorer = self.mixing.asked = None
            if (
                message.error is not None
                and not self._only_chosen
                and len(self.mixing.loaded) > len(self.mixing.weights)
            ):
                self._only_chosen = True  # one of the others may be to blame
                self.mixing.loaded = ()
                self.ask_again()
            else:
                self.refusal = message.error or self.refusal
        self._ask()

    def _take(self, line: Line) -> None:
        if isinstance(line, Scorer):
            self.mixing.scorer = line
        elif isinstance(line, Scored):
            self.mixing.heard(line)
        elif isinstance(line, Dropped):
            self.mixing.gave_up(line.id)
        elif isinstance(line, Refused):
            self.mixing.gave_up(line.id, f"{line.what} {line.next_step}".strip())

    def _sweep_said(self, message: MixSaid) -> None:
        for line in message.lines:
            if isinstance(line, Tried):
                self.tried = line
            elif isinstance(line, SweepReport):
                self._swept(line)
        if not message.running:
            self.sweep = None
            self.refusal = message.error or self.refusal
            self.ask_again()

    def _swept(self, report: SweepReport) -> None:
        """Its weights are put on the sliders where they are of use on other rows."""
        import msgspec

        names = tuple(self.mixing.of(folder).name for folder in self.sweeping)
        self.swept = msgspec.structs.replace(report, adapters=names)
        if report.helps:
            for folder, weight in zip(self.sweeping, report.best.weights, strict=True):
                self.mixing.weights[folder] = weight
            self.mixing.fitted = True

    def on_twin_said(self, message: TwinSaid) -> None:
        """A step of writing."""
        message.stop()
        self.step = message.text.strip("[]")
        self.show_mix()

    def on_twin_done(self, message: TwinDone) -> None:
        """It is written, or was refused; what exists is replaced only when that is agreed to."""
        message.stop()
        self.busy, self.step = "", ""
        if message.told is not None:
            self.result = tuple(written_lines(message.action, message.told))
        elif message.error is not None and message.error.code.endswith("exists") and not self._forced:
            self._ask_to_replace(message.action)
        else:
            self.refusal = message.error
        self.show_mix()
        self.refresh_bindings()

    # ── scoring ──────────────────────────────────────────────────────────────────────────────────────────────────
    def changed(self) -> None:
        """Weights, settings or who is in are others now."""
        self.mixing.changed()
        self.ask_again()
        self.show_mix()
        self.refresh_title()
        self.refresh_bindings()

    def ask_again(self) -> None:
        """Measure what is on the sliders; another process where this one does not hold what is in."""
        mixing = self.mixing
        inside = {one.folder for one in mixing.chosen}
        if not inside or self.sweep is not None:
            return
        if self.feed is None or not inside <= set(mixing.loaded):
            self._start_scoring()
        self._ask()

    def _start_scoring(self) -> None:
        if self.feed is not None:
            self.feed.end()
            self.feed = None
        mixing = self.mixing
        wanted = tuple(one.folder for one in mixing.chosen) if self._only_chosen else mixing.wanted()
        if self.refusal is not None and mixing.loaded == wanted:
            return  # it has failed with these already
        mixing.began(wanted)
        words = ["adapters", "score", *map(str, mixing.loaded), "--base", mixing.base, "--json", "--json-lines"]
        words += ["--data", mixing.data] if mixing.data else []
        self.feed = MixFeed(words, self)
        self.feed.start()

    def _ask(self) -> None:
        wish = self.mixing.next_wish()
        if wish is not None and self.feed is not None:
            self.feed.ask(wish)

    # ── sweep and writing ────────────────────────────────────────────────────────────────────────────────────────
    def start_sweep(self) -> None:
        """Search weights of those that are in; the scoring process gives its memory back meanwhile."""
        if not self.mixing.weights or self.sweep is not None:
            return
        self.forget_words()
        self.tried = None
        self.forget_sweep()
        self.sweeping = tuple(one.folder for one in self.mixing.chosen)
        self._end_scoring()
        self.sweep = MixFeed(self._sweep_words(), self)
        self.sweep.start()
        self.show_mix()
        self.refresh_bindings()

    def action_stop(self) -> None:
        """Stop searching weights."""
        if self.sweep is not None:
            self.sweep.end()
            self.sweep = None
            self.ask_again()
            self.show_mix()
            self.refresh_bindings()

    def _sweep_words(self) -> list[str]:
        mix = self.mixing.mix
        words = ["adapters", "sweep", *map(str, self.sweeping), "--base", self.mixing.base]
        words += ["--tries", str(SWEEP_TRIES), "--method", mix.method.value, "--density", f"{mix.density:g}"]
        words += ["--signs", mix.signs.value, "--rank", str(mix.rank), "--seed", str(self.mixing.seed)]
        words += ["--data", self.mixing.data] if self.mixing.data else []
        return [*words, "--json", "--json-lines"]

    def _end_scoring(self) -> None:
        if self.feed is not None:
            self.feed.end()
            self.feed = None
        self.mixing.loaded = ()

    def write(self, what: str, out: str, *, force: bool) -> None:
        """ "mix", "merge" or "spec". Raises EngineError for a spec that cannot be written."""
        path = Path(out).expanduser().absolute()
        self.forget_words()
        self._wanted_out, self._forced = str(path), force
        if what == "spec":
            self.result = (
                ("Spec", str(self._write_spec(path))),
                ("Next", f"scaler-wizard run {shlex.quote(path.name)}"),
            )
            self.show_mix()
            return
        app, self.busy = self.app, what
        ask_in_thread(self, what, self._write_words(what, path, force=force), lambda done: tell_late(app, done))
        self.show_mix()
        self.refresh_bindings()

    def _write_spec(self, path: Path) -> Path:
        from engine.jobs.spec_toml import dump_spec

        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(dump_spec(self.mixing.spec()))
        except FileExistsError as error:
            raise EngineError(
                "file.exists", f"{path} exists.", cause="Nothing is overwritten.", next_step="Type another name."
            ) from error
        except OSError as error:
            cause = error.strerror or str(error)
            raise EngineError("file.unwritable", f"Cannot write {path}.", cause=cause) from error
        return path

    def _write_words(self, what: str, path: Path, *, force: bool) -> list[str]:
        words = ["adapters", "mix", *self.mixing.words(), "--out", str(path), "--json"]
        words += ["--merged"] if what == "merge" else []
        return [*words, "--force"] if force else words

    def _ask_to_replace(self, what: str) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self.write(what, self._wanted_out, force=True)

        self.app.push_screen(ConfirmScreen(f"Replace {self._wanted_out}?", "What is there is lost."), answered)


def written_lines(action: str, told: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """What was written, how exact it is, and what to do with it."""
    from engine.units import format_bytes

    out = str(told["out"])
    yield ("Written", f"{out}, {format_bytes(told['size_bytes'])}")
    if action == "mix":
        import msgspec

        from engine.jobs.mix_report import MixReport
        from engine.jobs.result_words import mix_rows

        told_of = ("error", "cut", "self-test")
        rows = mix_rows(msgspec.convert(told, MixReport))
        yield from ((label.capitalize(), words) for label, words in rows if label in told_of)
        yield ("Next", f"scaler-wizard chat {shlex.quote(out)}")
    else:
        yield ("Next", f"scaler-wizard export gguf {shlex.quote(out)}")


def tell_late(app: App[object], done: TwinDone) -> None:
    """How writing ended whose screen was left."""
    if done.error is not None:
        words = " ".join(text for text in (done.error.what, done.error.next_step) if text)
        app.notify(words, title="Adapters", severity="error", timeout=20, markup=False)
    else:
        app.notify(f"Wrote the {'mixed adapter' if done.action == 'mix' else 'merged model'}.", timeout=10)
