"""The field for a question: Enter sends, Up recalls what was asked before, Ctrl+J makes a new line.

Owns typing and recalling. Must not know what is done with a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

MOST_ROWS = 4


class PromptField(TextArea):
    """A small text area that behaves like a line until it has several."""

    FIELD_KEYS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("Enter", "Send"),
        ("Up", "Earlier"),
        ("Esc", "Stop, or keys"),
        ("Tab", "Next"),
        ("Ctrl+R", "Again"),
        ("Ctrl+O", "Text sent"),
        ("Ctrl+J", "New line"),
        ("F1", "Help"),
    )
    """What the key line says while one types."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "earlier", show=False),
        Binding("down", "later", show=False),
        Binding("pageup", "screen.page(-1)", show=False),
        Binding("pagedown", "screen.page(1)", show=False),
        Binding("ctrl+j", "new_line", show=False),
    ]

    class Submitted(Message):
        """Enter was pressed."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Escaped(Message):
        """Escape was pressed."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, compact=True, tab_behavior="focus", highlight_cursor_line=False)
        self.cursor_blink = False
        self._draft: str | None = None
        """The question aside while the field takes something else, and nothing is recalled; None otherwise."""
        self._earlier: list[str] = []
        self._place = 0
        """Which of the earlier ones is shown; their number for the one that is being typed."""
        self._typed = ""

    def remember(self, prompts: Sequence[str]) -> None:
        """Prompts that Up recalls, oldest first, before those there are."""
        self._earlier = [*(text for text in prompts if text not in self._earlier), *self._earlier]
        self._place = len(self._earlier)

    def asked(self, text: str) -> None:
        """One more, the newest."""
        self._earlier = [*(earlier for earlier in self._earlier if earlier != text), text]
        self._place = len(self._earlier)

    def put(self, text: str) -> None:
        """Replace what is in the field, the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)

    @property
    def question(self) -> str:
        """What is being typed as a question, also while the field takes something else."""
        return self.text if self._draft is None else self._draft

    def take_other(self, text: str) -> None:
        """Something else is typed, beginning with `text`; the question waits."""
        self._draft = self.question
        self.put(text)

    def take_question(self) -> None:
        """The question again, as it was."""
        self.put(self.question)
        self._draft = None

    def give_back(self, text: str) -> None:
        """A question that was not put after all: here again, or recalled where another one is being typed."""
        self.asked(text)
        if self._draft is None and not self.text.strip():
            self.put(text)

    async def _on_key(self, event: events.Key) -> None:
        """Before the text area sees it."""
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.post_message(self.Submitted(self.text))
        elif event.key == "escape":
            event.stop()
            event.prevent_default()
            self.post_message(self.Escaped())

    def action_new_line(self) -> None:
        """Enter sends, so a line ends otherwise."""
        self.insert("\n")

    def action_earlier(self) -> None:
        """Up in the text, from its first line to what was asked before."""
        if self.cursor_location[0] > 0:
            self.action_cursor_up()
            return
        if self._draft is None and self._place == len(self._earlier):
            self._typed = self.text
        self._recall(self._place - 1)

    def action_later(self) -> None:
        """Down in the text, from its last line to what was asked after."""
        if self.cursor_location[0] < self.document.line_count - 1:
            self.action_cursor_down()
        else:
            self._recall(self._place + 1)

    def _recall(self, place: int) -> None:
        if self._draft is not None or not 0 <= place <= len(self._earlier):
            return
        self._place = place
        self.put(self._earlier[place] if place < len(self._earlier) else self._typed)
