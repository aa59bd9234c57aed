"""One side of a chat: its conversation as it grows, or the very text it was given.

Owns scrolling and that only what changed is drawn. Must not know processes.
"""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from scaler_tui.chat_state import SideState
from scaler_tui.chat_words import answer_content, beginning, heading, sent_content


class GrowingText(Static):
    """Text that takes more rows as it grows; touched only when it changes."""

    def __init__(self, *, id: str | None = None, classes: str = "") -> None:  # noqa: A002
        super().__init__("", id=id, classes=classes)
        self.shown = Content("")

    def show(self, content: Content) -> bool:
        """Replace the text; whether it is another one."""
        if content.is_same(self.shown) and content.plain == self.shown.plain:
            return False
        self.shown = content
        self.update(content)
        return True


class ChatColumn(VerticalScroll):
    """A side. It follows its end as long as nobody has scrolled away from it."""

    can_focus = False

    def compose(self) -> ComposeResult:
        yield GrowingText(classes="chat-beginning")
        yield GrowingText(classes="chat-sent")

    async def show(self, side: SideState, width: int, *, sent: bool, unicode: bool) -> None:
        """Draw `side` in about `width` cells; with `sent` the text it was given instead of its conversation."""
        self.border_title = heading(side, width, unicode=unicode)
        follows = self.scroll_offset.y >= self.max_scroll_y - 1
        start, given = self.query_one(".chat-beginning", GrowingText), self.query_one(".chat-sent", GrowingText)
        changed = start.show(beginning(side)) | given.show(sent_content(side, unicode=unicode) if sent else Content(""))
        given.display = sent
        boxes = list(self.query(".chat-answer").results(GrowingText))
        for box in boxes[len(side.answers) :]:
            await box.remove()
        for answer in side.answers[len(boxes) :]:
            del answer
            await self.mount(GrowingText(classes="chat-answer"))
        boxes = list(self.query(".chat-answer").results(GrowingText))
        start.display = not sent and bool(start.shown.plain)
        for box, answer in zip(boxes, side.answers, strict=True):
            box.display = not sent
            changed |= box.show(answer_content(answer, unicode=unicode))
        if changed and follows and not sent:
            self.scroll_end(animate=False, force=True)
