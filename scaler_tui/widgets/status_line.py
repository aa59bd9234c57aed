"""One line on top of a run: its name, its state as glyph and word, what it has cost, and marks that must not be missed.

Owns the look of run states everywhere. Must not know journals or threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.widgets import Static

from engine.jobs.state import RunPhase

TONES = {
    "good": "$text-success",
    "busy": "$text-accent",
    "warn": "$text-warning",
    "bad": "$text-error",
    "quiet": "$foreground 65%",
    "strong": "bold",
}
"""Names of style-sheet variables; a tone only ever repeats what a word says."""


@dataclass(frozen=True, slots=True)
class StateLook:
    """How a state is shown: glyph, then the word, then a tone on top."""

    glyph: str
    ascii_glyph: str
    tone: str


STATE_LOOKS = {
    RunPhase.QUEUED: StateLook("○", "o", "quiet"),
    RunPhase.STARTING: StateLook("◌", "~", "busy"),
    RunPhase.GROWING: StateLook("▲", "^", "busy"),
    RunPhase.RUNNING: StateLook("●", "*", "busy"),
    RunPhase.EVALUATING: StateLook("◆", "=", "busy"),
    RunPhase.SAVING: StateLook("▼", "v", "busy"),
    RunPhase.PAUSED: StateLook("‖", "|", "warn"),
    RunPhase.STALLED: StateLook("!", "!", "warn"),
    RunPhase.FINISHED: StateLook("✓", "+", "good"),
    RunPhase.STOPPED: StateLook("■", "#", "quiet"),
    RunPhase.FAILED: StateLook("✗", "x", "bad"),
    RunPhase.LOST: StateLook("?", "?", "bad"),
}


def toned(text: str, tone: str = "") -> Content:
    """`text` in one of TONES."""
    return Content.styled(text, TONES[tone]) if tone else Content(text)


def state_words(state: RunPhase, *, unicode: bool) -> Content:
    """ "● running", "x failed": glyph and word."""
    look = STATE_LOOKS[state]
    return toned(f"{look.glyph if unicode else look.ascii_glyph} {state.value}", look.tone)


def clip(text: str, width: int, *, unicode: bool = True) -> str:
    """At most `width` cells of a name; what is left out is marked. Never used on figures."""
    if len(text) <= width:
        return text
    mark = "…" if unicode else "~"
    return text[: max(width - 1, 0)] + mark if width > 0 else ""


def clip_middle(text: str, width: int, *, unicode: bool = True) -> str:
    """The same for names that differ at their ends: what is left out is in the middle."""
    if len(text) <= width or width < 5:
        return clip(text, width, unicode=unicode)
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + ("…" if unicode else "~") + text[-tail:]


class FixedText(Static):
    """Text that is only touched when it changes, and does not disturb the layout unless its height may."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__("", id=id, classes=classes)
        self._shown = Content("")

    @property
    def plain(self) -> str:
        """What it says."""
        return self._shown.plain

    def show(self, content: Content) -> None:
        """Replace the text; nothing happens when it is the same."""
        if content.is_same(self._shown) and content.plain == self._shown.plain:
            return
        lines_changed = content.plain.count("\n") != self._shown.plain.count("\n") or not self._shown.plain
        self._shown = content
        self.update(content, layout=lines_changed or not content.plain)


class StatusLine(FixedText):
    """Name and id left, then state, money, marks."""

    def show_run(
        self, *, name: str, run_id: str, state: RunPhase, marks: tuple[tuple[str, str], ...], unicode: bool, width: int
    ) -> None:
        """`marks` are (text, tone); the name is shortened so that state and marks are always whole."""
        right = Content("  ").join([state_words(state, unicode=unicode), *(toned(text, tone) for text, tone in marks)])
        room = max(width - right.cell_length - 4, 0)
        title = f"{name}  {run_id}" if name and len(name) + len(run_id) + 2 <= room else clip(name or run_id, room)
        left = Content.styled(clip(title, room, unicode=unicode), TONES["strong"])
        gap = " " * max(width - left.cell_length - right.cell_length - 2, 1)
        self.show(Content.assemble(" ", left, gap, right, " "))
