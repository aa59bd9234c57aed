"""Answers to the same prompts, before and after, side by side; stacked where the screen is narrow.

Owns the boxes; the style sheet decides whether they stand beside or below each other. Must not know runs or cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content

from scaler_tui.widgets.status_line import FixedText, toned


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt and two answers; None means not answered yet."""

    prompt: str
    before: str | None
    after: str | None
    expected: str = ""
    after_label: str = "after"
    alone: bool = False
    """There is no answer before."""


def answer(text: str | None) -> Content:
    """The answer, or in quiet words that there is none."""
    if text is None:
        return toned("not answered yet", "quiet")
    return Content(text.strip()) if text.strip() else toned("(empty answer)", "quiet")


def verdict(pair: Pair, *, unicode: bool, short: bool = False) -> Content:
    """Whether the newest answer is the expected one, when one is expected; in short only if it is."""
    if not pair.expected or pair.after is None:
        return Content("")
    if pair.after.strip() == pair.expected.strip():
        return toned(f"  {'✓' if unicode else '+'} {'ok' if short else 'as expected'}", "good")
    return Content("") if short else toned(f"  {'✗' if unicode else 'x'} not as expected", "warn")


class PairBox(Vertical):
    """One prompt with both answers."""

    def __init__(self, pair: Pair, *, unicode: bool) -> None:
        super().__init__(classes="pair")
        self._pair = pair
        self._unicode = unicode

    def compose(self) -> ComposeResult:
        yield FixedText(classes="pair-prompt")
        with Container(classes="pair-answers"):
            yield FixedText(classes="pair-before")
            yield FixedText(classes="pair-after")
        yield FixedText(classes="pair-expected")

    def on_mount(self) -> None:
        self.show(self._pair)

    def show(self, pair: Pair) -> None:
        """Put in the newest answers."""
        self._pair = pair
        texts = self.query(FixedText)
        sign = "›" if self._unicode else ">"
        prompt = Content.assemble(toned(f"{sign} ", "busy"), toned(pair.prompt, "strong"))
        texts.filter(".pair-prompt").first().show(prompt)
        texts.filter(".pair-before").first().display = not pair.alone
        texts.filter(".pair-before").first().show(Content.assemble(toned("before\n", "quiet"), answer(pair.before)))
        texts.filter(".pair-after").first().show(
            Content.assemble(
                toned(pair.after_label, "quiet"), verdict(pair, unicode=self._unicode), "\n", answer(pair.after)
            )
        )
        expected = texts.filter(".pair-expected").first()
        shown = bool(pair.expected) and (pair.after or "").strip() != pair.expected.strip()
        expected.display = shown
        expected.show(Content.assemble(toned("expected  ", "quiet"), pair.expected) if shown else Content(""))


class BeforeAfter(VerticalScroll):
    """All pairs, scrollable."""

    def __init__(self, *, empty: str, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._empty = empty
        self._pairs: tuple[Pair, ...] | None = None

    def compose(self) -> ComposeResult:
        yield FixedText(classes="pair-none")

    async def show(self, pairs: Sequence[Pair], *, unicode: bool) -> None:
        """Show `pairs`; boxes are only made anew when their number changes."""
        pairs = tuple(pairs)
        if pairs == self._pairs:
            return
        self._pairs = pairs
        nothing = self.query_one(".pair-none", FixedText)
        nothing.display = not pairs
        nothing.show(toned(self._empty, "quiet"))
        boxes = list(self.query(PairBox))
        if len(boxes) != len(pairs):
            await self.remove_children(PairBox)
            await self.mount_all([PairBox(pair, unicode=unicode) for pair in pairs])
            return
        for box, pair in zip(boxes, pairs, strict=True):
            box.show(pair)
