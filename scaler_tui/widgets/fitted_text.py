"""A text in as many lines as it is given: whole words, an ellipsis where something is left out.

Owns wrapping. Must not know what the texts say.
"""

from __future__ import annotations

import textwrap

from textual.content import Content
from textual.widgets import Static


def wrapped(text: str, width: int, most: int = 99) -> list[str]:
    """`text` in at most `most` lines of `width` cells."""
    if most <= 0 or not text:
        return []
    return textwrap.wrap(text, max(width, 10), max_lines=most, placeholder=" …", break_on_hyphens=False)


class FittedText(Static):
    """A text that is given a number of lines; `lead` characters at its start are bold."""

    def __init__(self, *, id: str, tone: str = "") -> None:  # noqa: A002
        super().__init__("", id=id)
        self._tone = tone
        self._text, self._lead = "", 0
        self._shown: tuple[str, str, int] | None = None

    @property
    def plain(self) -> str:
        """The whole text, also what there is no room for."""
        return self._text

    def say(self, text: str, *, lead: int = 0, tone: str | None = None) -> None:
        """Set the text; `fit` draws it."""
        self._text, self._lead = text, lead
        if tone is not None:
            self._tone = tone

    def need(self, width: int) -> int:
        """Lines it would like."""
        return len(wrapped(self._text, width))

    def fit(self, width: int, lines: int) -> None:
        """Draw it in `lines` lines; hidden when it has none."""
        shown = "\n".join(wrapped(self._text, width, lines))
        self.display = bool(shown)
        if self._shown == (shown, self._tone, self._lead):
            return
        self._shown = (shown, self._tone, self._lead)
        content = Content.styled(shown, self._tone) if self._tone else Content(shown)
        self.update(content.stylize("bold", 0, min(self._lead, len(shown))) if self._lead else content)
