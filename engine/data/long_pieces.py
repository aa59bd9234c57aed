"""A document in pieces of at most so many tokens, with nothing lost in between.

Owns counting and cutting by the model's own tokenizer. Must not know files, budgets or what pieces are for. Text is
tokenised segment by segment; a piece's final count is of the piece as a whole, which is how training will see it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from engine.data.long_documents import Document
from engine.data.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
class Measured:
    """A document's size and identity."""

    tokens: int
    """As training sees it, start and end tokens included; within one per 65,536 characters for long texts."""
    digest: bytes


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    tokens: int
    """Without start and end tokens."""


class TokenCounter:
    """Counts and cuts with one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        ends = 0 if tokenizer.eos_id is None else 1
        self.around = len(tokenizer.with_start(())) + ends
        """Tokens that training puts before and behind a text."""

    def measure(self, document: Document) -> Measured:
        """Raises UnreadableText; TemplateRefusal for turns that the model's template does not take."""
        digest = blake2b(digest_size=8)
        if document.row is not None:
            text = self._rendered(document)
            digest.update(text.encode())
            return Measured(len(self._tokenizer.encode(text)), digest.digest())
        tokens = 0
        for segment in document.segments:
            digest.update(segment.encode())
            tokens += self.count(segment)
        return Measured(tokens + self.around if tokens else 0, digest.digest())

    def count(self, text: str) -> int:
        """Tokens of the text alone."""
        return len(self._tokenizer.encode(text))

    def _rendered(self, document: Document) -> str:
        """Turns as training would render them: by the chat template, or joined where the model has none."""
        row = document.row
        assert row is not None
        if row.answer and self._tokenizer.template.is_default:
            return row.prompt + row.answer
        return self._tokenizer.render(row.messages)

    def pieces(self, segments: Iterable[str], limit: int) -> Iterator[Piece]:
        """The text in pieces of at most `limit` tokens that, joined, are the text again."""
        held = ""
        for segment in segments:
            held = yield from self._full(held + segment, limit)
        if held:
            yield Piece(held, self.count(held))

    def _full(self, text: str, limit: int) -> Generator[Piece, None, str]:
        """Every full piece of `text`; what is left, at most `limit` tokens, is returned."""
        [encoding] = self._tokenizer.encode_batch([text])
        offsets: Sequence[tuple[int, int]] = encoding.offsets
        first, start = 0, 0
        while len(offsets) - first > limit:
            piece = self._piece(text, start, offsets, first, limit)
            yield piece
            start += len(piece.text)
            first = bisect_left(offsets, start, lo=first, key=lambda span: span[0])
        rest = text[start:]
        if self.count(rest) > limit:  # cut off, it became more tokens than it was inside
            return (yield from self._full(rest, limit))
        return rest

    def _piece(self, text: str, start: int, offsets: Sequence[tuple[int, int]], first: int, limit: int) -> Piece:
        """The longest piece from `start` on, where token `first` begins. Cut off, text may become more tokens than it
        was inside a longer one, therefore it is counted anew."""
        keep = limit
        while keep > 1:
            end = _character_end(offsets, first, keep)
            count = self.count(text[start:end])
            if 0 < count <= limit:
                return Piece(text[start:end], count)
            keep -= max(count - limit, 1)
        return Piece(text[start : start + 1], self.count(text[start : start + 1]))


def _character_end(offsets: Sequence[tuple[int, int]], first: int, keep: int) -> int:
    """Where `keep` tokens from `first` on end; a character of several tokens is not divided."""
    last = first + keep
    while last > first + 1 and last < len(offsets) and offsets[last][0] < offsets[last - 1][1]:
        last -= 1
    return offsets[last - 1][1]
