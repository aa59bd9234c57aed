"""Adapters of one base mixed by hand and by search: sliders, a live score, a sweep, and the mix written.

Owns the pointer, the field and the keys. The choice is `scaler_tui.mixing`'s; scoring, searching and writing are
processes of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Input, Static

from engine.errors import EngineError
from scaler_tui.feeds.adapters_feed import AdapterAdded, AdaptersListed, add_in_thread, list_in_thread
from scaler_tui.mixing import LARGE_STEP, SETTINGS, STEP, Listed
from scaler_tui.screens.mixing import SWEEP_TRIES, MixingScreen
from scaler_tui.widgets import mix_lines
from scaler_tui.widgets.context_words import QUIET, wrapped_line

CHANGING = ("type", "write", "sweep", "digit", "zero", "move", "page", "put", "shift", "retry")
"""What waits while the field is open."""


class AdaptersScreen(MixingScreen):
    """Adapters above, settings, the score, words below."""

    place = "adapters"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "write('mix')", "Write", tooltip="Write the mix as an adapter"),
        Binding("escape", "stop", "Stop", key_display="Esc", tooltip="Stop searching; the weights stay as they are"),
        Binding("space", "put", "In/out", tooltip="Put the pointed adapter in, or take it out"),
        Binding(
            "right", "shift(1)", "Change", key_display="←→", tooltip="Weight or setting up; with Shift in large steps"
        ),
        Binding("s", "sweep", "Sweep", priority=True, tooltip="Find good weights on the rows; Esc stops it"),
        Binding("b,escape,backspace", "back", "Back", key_display="b"),
        Binding("a", "type('add')", "Add", priority=True, tooltip="Add an adapter's folder, or a run"),
        Binding("d", "type('data')", "Rows", priority=True, tooltip="Rows to score on"),
        Binding("m", "write('merge')", "Merge", priority=True, tooltip="Write a whole model with the mix in it"),
        Binding("w", "write('spec')", "Spec", priority=True, tooltip="Write the mix as a job for scaler-wizard run"),
        Binding("r", "retry", "Again", tooltip="Look for the adapters of runs again"),
        Binding("left", "shift(-1)", "Less", show=False),
        Binding("shift+right", "shift(5)", "More", show=False, tooltip="A large step up"),
        Binding("shift+left", "shift(-5)", "Much less", show=False, tooltip="A large step down"),
        Binding("0", "zero", "Weight 0", show=False, tooltip="Weight 0"),
        *[
            Binding(key, f"digit('{digit}')", "Type", show=False, tooltip="Type the weight")
            for key, digit in (*((str(n), str(n)) for n in range(1, 10)), ("minus", "-"), ("full_stop", "."))
        ],
        Binding("up,k", "move(-1)", "Line above", show=False),
        Binding("down,j", "move(1)", "Line below", show=False),
        Binding("pageup", "page(-1)", "Page", show=False),
        Binding("pagedown", "page(1)", "Page", show=False),
    ]

    def __init__(self, start: Path | None = None) -> None:
        super().__init__()
        self.start = start
        """A folder that is put in at once."""
        self.pointer = 0
        self.looked = False
        """The list was read."""
        self.no_list: EngineError | None = None
        """Why the adapters of runs are not known."""
        self.reading = ""
        """The folder that is being read."""
        self.typing = ""
        self.typed_for: Path | None = None
        """Whose weight is typed."""

    def body(self) -> Iterable[Widget]:
        """Adapters, settings, score, the field, words."""
        yield Static(id="mix-adapters", markup=False)
        yield Static(id="mix-settings", markup=False)
        yield Static(id="mix-score", markup=False)
        yield Static(id="mix-asked", markup=False)
        yield Input(id="mix-field", compact=True, select_on_focus=False)
        with VerticalScroll(id="mix-scroll", can_focus=False):
            yield Static(id="mix-words", markup=False)

    def on_mount(self) -> None:
        """Look for adapters."""
        self._show_field(shown=False)
        self.show_mix()
        list_in_thread(self)

    def on_resize(self, event: Resize) -> None:
        """Another width."""
        self.call_after_refresh(self.show_mix)

    def title_text(self) -> str:
        """Of which base."""
        chosen = self.mixing.chosen
        return f"adapters on {chosen[0].base}" if chosen else "adapters"

    # ── what is pointed at ───────────────────────────────────────────────────────────────────────────────────────
    @property
    def pointed(self) -> Listed | None:
        """The adapter under the pointer; None on a setting."""
        listed = self.mixing.listed
        return listed[self.pointer] if self.pointer < len(listed) else None

    @property
    def setting(self) -> str:
        """The setting under the pointer; "" on an adapter."""
        place = self.pointer - len(self.mixing.listed)
        return SETTINGS[place] if 0 <= place < len(SETTINGS) and self.mixing.listed else ""

    # ── news ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def on_adapters_listed(self, message: AdaptersListed) -> None:
        """Those of runs were read; the ones that were typed meanwhile stay."""
        message.stop()
        self.looked, self.no_list = True, message.error
        pointed, setting = self.pointed, self.setting
        typed = [one for one in self.mixing.listed if all(one.folder != other.folder for other in message.rows)]
        self.mixing.listed = [*message.rows, *typed]
        self._point_at(pointed, setting)
        if self.start is not None:
            start, self.start = self.start, None
            known = next((one for one in self.mixing.listed if one.folder == start), None)
            if known is None:
                add_in_thread(self, str(start))
            else:
                self.pointer = self.mixing.listed.index(known)
                self._toggle(known)
        self.changed()

    def _point_at(self, pointed: Listed | None, setting: str) -> None:
        """The rows are others; the pointer stays on what it was on."""
        if pointed is not None:
            self.pointer = next(n for n, one in enumerate(self.mixing.listed) if one.folder == pointed.folder)
        elif setting:
            self.pointer = len(self.mixing.listed) + SETTINGS.index(setting)

    def on_adapter_added(self, message: AdapterAdded) -> None:
        """A typed folder was read, or refused in words."""
        message.stop()
        self.refusal, self.reading = message.error, ""
        if message.row is not None:
            why = message.row.why_not_with(self.mixing.base)
            self.mixing.add(message.row, inside=self.sweep is None)
            if self.sweep is None:
                self.forget_sweep()
            self.pointer = next(n for n, one in enumerate(self.mixing.listed) if one.folder == message.row.folder)
            if why:
                self._refuse(message.row, why)
        self.changed()

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def show_mix(self) -> None:
        """Draw everything for the present size."""
        if not self.is_mounted:
            return
        mixing, width = self.mixing, max(self.size.width - 2, 30)
        self.query_one("#mix-adapters", Static).update(Content("\n").join(self._adapter_lines(width)))
        settings = self.query_one("#mix-settings", Static)
        settings.display = bool(mixing.listed)
        settings.update(Content("\n").join(mix_lines.settings_lines(mixing, self.setting, width, self.signs)))
        score = self.query_one("#mix-score", Static)
        score.display = bool(mixing.listed)
        score.update(mix_lines.score_content(mixing, width, self.signs, waiting=self._waiting()))
        self.query_one("#mix-words", Static).update(Content("\n").join(self._words(width - 2)))

    def _adapter_lines(self, width: int) -> list[Content]:
        listed = self.mixing.listed
        if not listed and self.no_list is None:
            text = "No run of this machine has an adapter yet; a adds a folder." if self.looked else "Looking ..."
            return [wrapped_line(text, width)]
        room = max(self.size.height - 2 - len(SETTINGS) - 1 - 7, 3)
        first = min(max(self.pointer - room + 1, 0), max(len(listed) - room, 0))
        shown = [
            mix_lines.adapter_line(self.mixing, one, width, self.signs, pointed=one is self.pointed)
            for one in listed[first : first + room]
        ]
        if len(listed) > room:
            shown.append(Content.styled(f"  {first + 1} to {first + len(shown)} of {len(listed)}", QUIET))
        return [*shown, *self._no_list_lines(width)]

    def _no_list_lines(self, width: int) -> list[Content]:
        if self.no_list is None:
            return []
        texts = ("The adapters of runs could not be listed.", self.no_list.what, self.no_list.cause)
        what = wrapped_line(f"{self.signs.no} {' '.join(text for text in texts if text)} r tries again.", width)
        return [Content.styled(what.plain, "$text-error")]

    def _waiting(self) -> str:
        if self.sweep is not None:
            return "searching weights"
        if self.feed is not None and self.mixing.scorer is None:
            return "Loading the base and its adapters ..."
        return "measuring"

    def _words(self, width: int) -> list[Content]:
        if self.busy:
            doing = {"mix": "Writing the mix", "merge": "Writing the merged model", "spec": "Writing the job"}
            return [Content.styled(f"{doing[self.busy]} ...", "bold"), wrapped_line(self.step, width)]
        if self.reading:
            return [wrapped_line(f"Reading {self.reading} ...", width)]
        if self.refusal is not None:
            what = wrapped_line(f"{self.signs.no} {self.refusal.what}", width)
            more = [text for text in (self.refusal.cause, self.refusal.next_step) if text]
            return [Content.styled(what.plain, "bold $text-error"), *(wrapped_line(text, width) for text in more)]
        if self.sweep is not None:
            names = [self.mixing.of(folder).name for folder in self.sweeping]
            return [mix_lines.tried_content(self.tried, names, width)]
        if self.result:
            return [
                Content.assemble((f"{label:<10}", "bold"), wrapped_line(text, width - 10))
                for label, text in self.result
            ]
        told = mix_lines.swept_content(self.swept, width, self.signs, SWEEP_TRIES) if self.swept is not None else []
        return [*told, *self._pointed_words(width)]

    def _pointed_words(self, width: int) -> list[Content]:
        scorer, one = self.mixing.scorer, self.pointed
        words = []
        if scorer is not None:
            data = Path(scorer.data).name
            words.append(f"Scored on {scorer.rows} rows of {data} ({scorer.tokens:,} tokens, {scorer.device}).")
        if one is not None:
            words.append(f"{one.name}: {one.words}, base {one.base or 'unknown'}, {one.folder}")
        return [wrapped_line(text, width, tone=QUIET) for text in words]

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what can be done."""
        if action in CHANGING and self.is_mounted and self.query_one("#mix-field", Input).display:
            return False
        if action == "stop":
            return self.sweep is not None
        if action == "retry":
            return self.no_list is not None
        if self.sweep is not None and action in ("put", "shift", "zero", "digit", "type"):
            return None
        if action in ("write", "sweep"):
            return True if self.mixing.weights and not self.busy and self.sweep is None else None
        if action == "put":
            return True if self.pointed is not None else None
        return True

    def action_move(self, by: int) -> None:
        """Another line; it stops at both ends."""
        last = len(self.mixing.listed) + len(SETTINGS) - 1 if self.mixing.listed else 0
        self.pointer = min(max(self.pointer + by, 0), last)
        self.forget_words()
        self.show_mix()
        self.refresh_bindings()

    def action_page(self, pages: int) -> None:
        """Scroll the words."""
        scroll = self.query_one("#mix-scroll", VerticalScroll)
        scroll.scroll_relative(y=pages * max(scroll.size.height - 1, 1), animate=False)

    def action_put(self) -> None:
        """In or out."""
        self.forget_words()
        self.forget_sweep()
        if self.pointed is not None:
            self._toggle(self.pointed)
            self.changed()

    def _toggle(self, one: Listed) -> None:
        why = self.mixing.toggle(one)
        if why:
            self._refuse(one, why)

    def _refuse(self, one: Listed, why: str) -> None:
        step = "Take the others out first to mix on its base." if self.mixing.base and not one.why_not else ""
        self.refusal = EngineError("adapter.other_base", f"{one.name} cannot join this mix.", cause=why, next_step=step)

    def action_shift(self, by: int) -> None:
        """A slider or a setting."""
        if self.setting:
            self.mixing.change(self.setting, max(min(by, 1), -1) if self.setting != "density" else by)
        elif self.pointed is not None and self.pointed.folder in self.mixing.weights:
            self.mixing.shift(self.pointed.folder, (LARGE_STEP if abs(by) > 1 else STEP) * (1 if by > 0 else -1))
        else:
            return
        self.forget_words()
        self.changed()

    def action_zero(self) -> None:
        """The pointed one has no part in it, but stays."""
        if self.pointed is not None and self.pointed.folder in self.mixing.weights:
            self.mixing.weights[self.pointed.folder] = 0.0
            self.forget_words()
            self.changed()

    def action_digit(self, digit: str) -> None:
        """Begin to type a weight, a density or a rank."""
        if self.pointed is not None and self.pointed.folder in self.mixing.weights:
            self._open_field("weight", digit)
        elif self.setting in ("density", "rank"):
            self._open_field(self.setting, digit)

    def action_type(self, what: str) -> None:
        """Open the field for a folder or for rows."""
        self._open_field(what, self.mixing.data if what == "data" else "")

    def _open_field(self, what: str, value: str) -> None:
        field = self.query_one("#mix-field", Input)
        self.typing, self.refusal = what, None
        pointed = self.pointed
        self.typed_for = pointed.folder if pointed is not None else None
        label = mix_lines.LABELS[what].format(pointed.name if pointed is not None else "")
        self.query_one("#mix-asked", Static).update(Content.styled(label, "bold"))
        field.placeholder = mix_lines.PLACEHOLDERS[what]
        field.value = value
        self._show_field(shown=True)
        field.cursor_position = len(value)
        self.set_focus(field)
        self.show_mix()
        self.refresh_bindings()

    def _show_field(self, *, shown: bool) -> None:
        self.query_one("#mix-field").display = self.query_one("#mix-asked").display = shown

    def _close_field(self) -> None:
        self._show_field(shown=False)
        self.set_focus(None)
        self.refresh_bindings()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take what was typed, or say why not."""
        event.stop()
        what, text = self.typing, event.value.strip()
        self._close_field()
        if not text and what != "data":
            return
        try:
            self._typed(what, text)
        except EngineError as error:
            self.refusal = error
            self.show_mix()

    def _typed(self, what: str, text: str) -> None:
        if what == "weight":
            if self.typed_for is not None:
                self.mixing.put(self.typed_for, text)
            self.changed()
        elif what in ("density", "rank"):
            self.mixing.type_setting(what, text)
            self.changed()
        elif what == "add":
            self.reading = text
            add_in_thread(self, text)
            self.show_mix()
        elif what == "data":
            named = text in ("", "demo", "demo-long")
            self.mixing.data = text if named else str(Path(text).expanduser().absolute())
            self.mixing.loaded = ()
            self.forget_sweep()
            self.changed()
        elif what in ("mix", "merge", "spec"):
            self.write(what, text, force=False)

    def action_sweep(self) -> None:
        """Search weights of those that are in."""
        self.start_sweep()

    def action_write(self, what: str) -> None:
        """Ask for a name, then write."""
        if not self.mixing.weights or self.busy:
            return
        try:
            self.mixing.mixed()
        except EngineError as error:
            self.refusal = error
            self.show_mix()
            return
        name = self.mixing.name()
        proposed = {"mix": name, "merge": f"{name}-merged", "spec": f"{name}.toml"}[what]
        self._open_field(what, str(Path.cwd() / proposed))

    def action_retry(self) -> None:
        """Look for the adapters of runs again."""
        self.looked, self.no_list = False, None
        self.show_mix()
        self.refresh_bindings()
        list_in_thread(self)

    def action_back(self) -> None:
        """Out of the field, out of a sweep, else one screen back."""
        if self.query_one("#mix-field").display:
            self._close_field()
        elif self.sweep is not None:
            self.action_stop()
        else:
            if self.busy:
                self.notify("It goes on; how it ends is said here.", timeout=6)
            self.app.pop_screen()
