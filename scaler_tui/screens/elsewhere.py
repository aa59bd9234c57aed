"""Running the reviewed plan somewhere else: over ssh on another machine, or by a job file on a rented one.

Owns the pointer, the field and what is shown of an errand. What the places are is in `scaler_tui.places`; the sending
and writing is the twin's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Input, Static

from engine.errors import EngineError
from scaler_tui.feeds.elsewhere_feed import ElsewhereDone, ElsewhereSaid, Errand, run_in_thread
from scaler_tui.places import EXISTS, PLACES, Place, file_lines, file_of, proposed
from scaler_tui.screens.base import FramedScreen
from scaler_tui.screens.problem import ConfirmScreen
from scaler_tui.widgets.context_words import QUIET, wrapped_line
from scaler_tui.widgets.review_words import not_ready

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

STEPS = 8
"""Lines of an errand that stay in view."""
TITLE_CELLS = 26
LABEL_CELLS = 10
PLACEHOLDERS = {
    "host": "user@address; Enter takes",
    "file": "file for the job, such as job.yaml; Enter takes",
    "kept": "s3://bucket, gs://bucket, or for dstack the name of a volume; Enter takes",
}


class ElsewhereScreen(FramedScreen):
    """Three places; Enter goes to the pointed one."""

    place = "elsewhere"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "go", "Go", tooltip="Start it there, or write the job file"),
        Binding("t", "type('where')", "Type", tooltip="Type the host, or the job file's name"),
        Binding("u", "type('kept')", "Bucket", tooltip="Where a job file keeps what is needed to go on"),
        Binding("up,k", "move(-1)", "Place", key_display="↑↓"),
        Binding("down,j", "move(1)", "Place below", show=False),
        *[Binding(str(n), f"pick({n})", "Place directly", show=False) for n in (1, 2, 3)],
        Binding("b,escape,backspace,left", "back", "Back", key_display="b"),
        Binding("pageup", "page(-1)", "Page", show=False),
        Binding("pagedown,space", "page(1)", "Page", show=False),
    ]

    def __init__(self, approach: str, *, forced: bool) -> None:
        super().__init__()
        self.approach, self.forced = approach, forced
        self.pointer = 0
        self.where: dict[str, str] = {}
        """Host or job file by place, as typed."""
        self.proposed: dict[str, str] = {}
        """Names for job files."""
        self.kept: dict[str, str] = {}
        """Bucket or volume by place, as typed."""
        self.typing = ""
        """Which of PLACEHOLDERS is being typed."""
        self.errand: Errand | None = None
        """At work."""
        self.steps: deque[str] = deque(maxlen=STEPS)
        self.refusal: EngineError | None = None
        self.result: tuple[tuple[str, str], ...] = ()

    def body(self) -> Iterable[Widget]:
        """Places, the field, words."""
        yield Static(id="places", markup=False)
        yield Input(id="place-field", compact=True)
        with VerticalScroll(id="place-scroll", can_focus=False):
            yield Static(id="place-words", markup=False)

    def on_mount(self) -> None:
        """The first place."""
        for place in PLACES[1:]:
            try:
                self.proposed[place.id] = proposed(place, self.spec)
            except EngineError:  # said when it is gone to
                self.proposed[place.id] = f"job.{place.id}.yaml"
        self.query_one("#place-field").display = False
        self.show_places()

    def on_resize(self, event: Resize) -> None:
        """The words wrap anew."""
        self.call_after_refresh(self.show_places)

    @property
    def pointed(self) -> Place:
        """The place under the pointer."""
        return PLACES[self.pointer]

    @property
    def spec(self) -> JobSpec:
        """The plan; what does not fit here may fit there, so this machine has no say. Raises EngineError."""
        return self.scaler.wizard.spec_for(self.approach, force=True)

    def value(self, place: Place) -> str:
        """Host or job file; "" for a host nobody has typed."""
        return self.where.get(place.id) or self.proposed.get(place.id, "")

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def show_places(self) -> None:
        """Draw places and words."""
        if not self.is_mounted:
            return
        width = max(self.size.width - 3, 30)
        lines = [self._line(number, place, width) for number, place in enumerate(PLACES, 1)]
        self.query_one("#places", Static).update(Content("\n").join(lines))
        self.query_one("#place-words", Static).update(Content("\n").join(self._words(width)))

    def _line(self, number: int, place: Place, width: int) -> Content:
        pointed = place is self.pointed
        head = f"{self.signs.pointer if pointed else ' '} {number} {place.title:<{TITLE_CELLS}}"
        shown = self.value(place) or place.brief
        return Content.assemble(
            (head, "reverse bold" if pointed else "bold"), (f" {shown[: max(width - len(head) - 1, 8)]}", QUIET)
        )

    def _words(self, width: int) -> list[Content]:
        place = self.pointed
        if self.errand is not None:
            doing = f"Writing {self.errand.where}" if self.errand.place.is_file else f"To {self.errand.where}"
            return [Content.styled(f"{doing} ...", "bold"), *(wrapped_line(step, width, 2) for step in self.steps)]
        if self.refusal is not None:
            texts = (self.refusal.cause, self.refusal.next_step)
            what = Content.styled(wrapped_line(f"{self.signs.no} {self.refusal.what}", width).plain, "bold $text-error")
            return [what, *(wrapped_line(text, width) for text in texts if text)]
        if self.result:
            return [
                Content.assemble((f"{label:<{LABEL_CELLS}}", "bold"), wrapped_line(text, width - LABEL_CELLS))
                for label, text in self.result
            ]
        return [wrapped_line(place.words, width), Content(""), wrapped_line(self._hint(), width, tone="bold")]

    def _hint(self) -> str:
        place, value = self.pointed, self.value(self.pointed)
        if not place.is_file:
            return f"Enter starts it on {value}; t types another name." if value else "Enter types the machine's name."
        if kept := self.kept.get(place.id):
            return f"Enter writes {value}; what is needed to go on is kept in {kept}."
        if place.makes_bucket:
            return f"Enter writes {value}; t types another name, u a bucket of yours instead of a new one."
        return "Enter types the bucket or volume that keeps what is needed to go on when the machine is taken away."

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """One errand at a time; only a job file has a bucket."""
        if action == "type" and parameters == ("kept",) and not self.pointed.is_file:
            return False
        return None if action in ("go", "type", "move", "pick") and self.errand is not None else True

    def action_move(self, by: int) -> None:
        """Another place; it stops at both ends."""
        self._point(min(max(self.pointer + by, 0), len(PLACES) - 1))

    def action_pick(self, number: int) -> None:
        """Digits point directly."""
        self._point(number - 1)

    def _point(self, pointer: int) -> None:
        self.pointer, self.refusal, self.result = pointer, None, ()
        self.show_places()
        self.refresh_bindings()

    def action_page(self, pages: int) -> None:
        """Scroll the words."""
        scroll = self.query_one("#place-scroll", VerticalScroll)
        scroll.scroll_relative(y=pages * max(scroll.size.height - 1, 1), animate=False)

    def action_type(self, what: str) -> None:
        """Open the field for host or file ("where"), or for the bucket ("kept")."""
        place, field = self.pointed, self.query_one("#place-field", Input)
        self.typing = what if what == "kept" else "file" if place.is_file else "host"
        field.placeholder = PLACEHOLDERS[self.typing]
        field.value = self.kept.get(place.id, "") if what == "kept" else self.value(place)
        field.display = True
        self.set_focus(field)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take it; nothing is sent before another Enter."""
        event.stop()
        (self.kept if self.typing == "kept" else self.where)[self.pointed.id] = event.value.strip()
        self._close_field()
        self._point(self.pointer)

    def _close_field(self) -> None:
        self.query_one("#place-field").display = False
        self.set_focus(None)

    def action_back(self) -> None:
        """Out of the field, else to the review; an errand goes on."""
        if self.query_one("#place-field").display:
            self._close_field()
            return
        if self.errand is not None:
            self.notify("It goes on; how it ends is said here.", timeout=6)
        self.app.pop_screen()

    def action_go(self) -> None:
        """Start it there, or write the file; what is missing is asked for first."""
        place = self.pointed
        if not self.value(place):
            self.action_type("where")
        elif place.is_file and not place.makes_bucket and not self.kept.get(place.id):
            self.action_type("kept")
        else:
            self._go(over=False)

    def _go(self, *, over: bool) -> None:
        """`over`: the user agreed to lose the job file that is there."""
        self.refusal, self.result = None, ()
        self.steps.clear()
        try:
            errand = self._errand(over=over)
        except EngineError as error:
            self.refusal = error
        else:
            if errand.place.is_file and not over and Path(errand.where).exists():
                self._ask_to_replace(errand.where)
                return
            app, self.errand = self.app, errand
            run_in_thread(self, errand, lambda done: tell_late(app, done))
        self.show_places()
        self.refresh_bindings()

    def _errand(self, *, over: bool) -> Errand:
        place, wizard = self.pointed, self.scaler.wizard
        if place.is_file:
            where = str(file_of(self.value(place)))
            return Errand(place, where, self.spec, wizard.card, self.kept.get(place.id, ""), over)
        unready = not_ready(wizard, wizard.run_row(self.approach), self.approach)
        if unready is not None:
            raise unready
        return Errand(place, self.value(place), self.spec, "", "", self.forced)

    def on_elsewhere_said(self, message: ElsewhereSaid) -> None:
        """A step."""
        message.stop()
        self.steps.append(message.text)
        self.show_places()

    def on_elsewhere_done(self, message: ElsewhereDone) -> None:
        """The mirror opens, or the words say how it ended."""
        message.stop()
        place, self.errand = message.errand.place, None
        if message.told is not None and not place.is_file:
            self.scaler.wizard.started = True
            self.scaler.open_started(Path(message.told["directory"]))
            return
        if message.told is not None:
            self.result = tuple(file_lines(place, message.told))
        elif message.error is not None and message.error.code == EXISTS and place.is_file:
            self._ask_to_replace(message.errand.where)
        else:
            self.refusal = message.error
        self.show_places()
        self.refresh_bindings()

    def _ask_to_replace(self, path: str) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self._go(over=True)

        detail = "The folder of the same name beside it, which the job uploads, is written anew too."
        self.app.push_screen(ConfirmScreen(f"Replace {path}?", detail), answered)


def tell_late(app: App[object], done: ElsewhereDone) -> None:
    """How an errand ended whose screen was left."""
    if done.error is not None:
        words = " ".join(text for text in (done.error.what, done.error.next_step) if text)
        app.notify(words, title=done.errand.place.title, severity="error", timeout=20, markup=False)
    elif done.errand.place.is_file:
        app.notify(f"Wrote {done.errand.where}", timeout=10, markup=False)
    else:
        app.notify(f"It runs on {done.errand.where}; it is among the runs.", timeout=10, markup=False)
