"""What stands around the hay, and text as tokens in the middle of a text.

Owns tokenising pieces that are joined as tokens (so that lengths add up exactly), the words whose token counts agree,
and the two ways of asking. Must not know tasks, torch, or models.

Pieces are tokenised behind an anchor and the anchor's tokens are cut off: a tokenizer that marks the start of a text
(Llama 2's puts a space there) would otherwise mark the start of every sentence.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.data.chat_template import TemplateRefusal
from engine.data.rows import Message
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.evaluation.haystack_words import CODE_WORDS, KEY_WORDS, number, scene

PASSKEY = "passkey"
"""Numbers in plain text, in the user's own text where there is some; no chat template."""
NOTES = "notes"
"""Code words in notes, asked through the model's chat template where it has one."""
STYLES = (NOTES, PASSKEY)

Ids = tuple[int, ...]

OPENING = "Read this."
CODE_DIGITS = 5
_ANCHOR = "So."
_BODY = "qzBODYzq"
_ENOUGH_WORDS = 16
_WORDS_AT_LEAST = 8
_KEYS = 24
_CODES = 48
_SCENES = 1024
_LONGEST_PIECE = 48
"""Tokens: the user's text is cut there, so that a needle can stand near the place it should."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a question: `scored` where the model must say it by itself."""

    text: str
    scored: bool = False


class Writer:
    """A tokenizer with its frame and words for one style. Building it tokenises some thousand short texts.

    Raises EngineError `evaluation.no_words` for a tokenizer that cannot write plain English.
    """

    def __init__(self, tokenizer: ChatTokenizer, style: str, text: str = "") -> None:
        assert style in STYLES
        self.style = style
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode(_ANCHOR)
        self.head, self.tail = self._frame()
        self.keys = self._alike(KEY_WORDS)[:_KEYS]
        self.codes = self._alike(CODE_WORDS)[:_CODES]
        self._digits: dict[int, int] = {}
        own = self._own(text) if text.strip() else ()
        draw = random.Random(0)
        self.hay: tuple[Ids, ...] = own or self.after_all([scene(draw) for _ in range(_SCENES)])
        self.in_order = bool(own)
        """Whether the hay is a text to be read on, not sentences to be drawn."""
        if min(len(self.keys), len(self.codes)) < _WORDS_AT_LEAST or not self.hay:
            raise EngineError(
                "evaluation.no_words",
                "This tokenizer cannot write the plain English that needles are made of.",
                next_step="Measure perplexity only: --tasks none.",
            )

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────
    def after(self, text: str) -> Ids:
        """`text` in the middle of a text."""
        return self.after_all([text])[0]

    def after_all(self, texts: Sequence[str]) -> tuple[Ids, ...]:
        """Several at once."""
        known = self._anchor
        found = []
        for text, encoding in zip(texts, self._tokenizer.encode_batch([_ANCHOR + text for text in texts]), strict=True):
            ids = self._tokenizer.shared(encoding.ids)
            found.append(ids[len(known) :] if ids[: len(known)] == known else self._tokenizer.encode(text))
        return tuple(found)

    def number(self, draw: random.Random, digits: int = CODE_DIGITS) -> str:
        """A number that takes as many tokens as most numbers of its digits do."""
        if digits not in self._digits:
            fixed = random.Random(digits)
            counts = Counter(map(len, self.after_all([" " + number(fixed, digits) for _ in range(200)])))
            self._digits[digits] = counts.most_common(1)[0][0]
        while True:
            text = number(draw, digits)
            if len(self.after(" " + text)) == self._digits[digits]:
                return text

    def _alike(self, words: Sequence[str]) -> tuple[str, ...]:
        """The words with one token count: the lowest that enough of them have, else the most frequent one."""
        by_count: dict[int, list[str]] = {}
        for word, ids in zip(words, self.after_all([" " + word for word in words]), strict=True):
            by_count.setdefault(len(ids), []).append(word)
        enough = [count for count, found in by_count.items() if len(found) >= _ENOUGH_WORDS]
        best = min(enough) if enough else max(by_count, key=lambda count: len(by_count[count]))
        return tuple(by_count[best])

    def _own(self, text: str) -> tuple[Ids, ...]:
        sentences = [part for part in re.split(r"(?<=[.!?\n])(?=\s)", text) if part.strip()]
        pieces: list[Ids] = []
        special = self._tokenizer.special_ids
        for ids in self.after_all(sentences):
            plain = tuple(token for token in ids if token not in special)
            pieces += [plain[start : start + _LONGEST_PIECE] for start in range(0, len(plain), _LONGEST_PIECE)]
        return tuple(pieces)

    # ── the frame ───────────────────────────────────────────────────────────────────────────────────────────────
    def _frame(self) -> tuple[Ids, str]:
        """Tokens before the hay, and the text between question and answer."""
        plain = (self._tokenizer.text_ids(OPENING), "\n")
        if self.style == PASSKEY or self._tokenizer.template.is_default:
            return plain
        try:
            rendered = self._tokenizer.render([Message("user", OPENING + _BODY)], add_generation_prompt=True)
        except (TemplateRefusal, EngineError):
            return plain
        before, found, after = rendered.partition(_BODY)
        return (self._tokenizer.encode(before), after) if found and _BODY not in after else plain


def writer_for(tokenizer: ChatTokenizer, style: str, own: str) -> Writer:
    """The writer whose hay is the user's `own` text where the style asks in plain text."""
    return Writer(tokenizer, style, own if style == PASSKEY else "")
