"""Every document of a source counted once: its tokens, its identity, or why it cannot be used.

Owns the first of the two readings. Keeps sixteen bytes a document, never text. Must not know shares or budgets.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.data.chat_template import TemplateRefusal
from engine.data.long_documents import Document, Lost, MixSource, UnreadableText, documents, files_of, not_text
from engine.data.long_pieces import Measured, TokenCounter
from engine.data.long_report import EXAMPLES, Dropped, Place
from engine.data.rows import REASON_TEXT, DropReason

Progress = Callable[[int, int], None]
"""(documents, tokens) so far."""
DUPLICATE = "the same text as an earlier document"


@dataclass(slots=True)
class DropCounter:
    """Why documents are not in the mix, with the first places of each reason."""

    documents: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)

    def add(self, lost: Lost, tokens: int = 0) -> None:
        """One document more."""
        reason = lost.reason
        self.documents[reason] = self.documents.get(reason, 0) + 1
        self.tokens[reason] = self.tokens.get(reason, 0) + tokens
        places = self.places.setdefault(reason, [])
        if len(places) < EXAMPLES:
            places.append(Place(file=str(lost.file), line=lost.line, detail=lost.detail))

    def report(self) -> tuple[Dropped, ...]:
        """The most frequent first."""
        order = sorted(self.documents, key=lambda reason: -self.documents[reason])
        return tuple(
            Dropped(
                reason=reason,
                documents=self.documents[reason],
                tokens=self.tokens[reason],
                examples=tuple(self.places[reason]),
            )
            for reason in order
        )


@dataclass(slots=True)
class Catalogue:
    """One source, counted; both arrays have an entry per document in the order of `documents`, 0 for unusable ones."""

    source: MixSource
    files: int = 0
    tokens: array[int] = field(default_factory=lambda: array("Q"))
    digests: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def usable(self) -> list[int]:
        """Places of the documents that can be used."""
        return [place for place, count in enumerate(self.tokens) if count]


class Reader:
    """Catalogues one source after the other; what one had, the next counts as a duplicate."""

    def __init__(self, counter: TokenCounter, progress: Progress | None = None) -> None:
        self.drops = DropCounter()
        self.duplicates = 0
        self.duplicate_tokens = 0
        self._counter = counter
        self._progress = progress
        self._seen: set[bytes] = set()
        self._documents = 0
        self._tokens = 0

    def read(self, source: MixSource) -> Catalogue:
        """Raises EngineError for a file that was named itself and cannot be read."""
        found = Catalogue(source, len(files_of(source)))
        for item in documents(source):
            measured = self._measured(item)
            found.tokens.append(measured.tokens if measured else 0)
            found.digests.append(int.from_bytes(measured.digest, "little") if measured else 0)
        return found

    def _measured(self, item: Document | Lost) -> Measured | None:
        if isinstance(item, Lost):
            self.drops.add(item)
            return None
        try:
            measured = self._counter.measure(item)
        except UnreadableText as error:
            self.drops.add(not_text(item.file, error))
            return None
        except TemplateRefusal as error:
            self.drops.add(Lost(item.file, item.line, REASON_TEXT[DropReason.TEMPLATE_REFUSED], str(error)))
            return None
        if not measured.tokens:
            self.drops.add(Lost(item.file, item.line, REASON_TEXT[DropReason.EMPTY_CONTENT], "no token in it"))
            return None
        if measured.digest in self._seen:
            self.duplicates += 1
            self.duplicate_tokens += measured.tokens
            self.drops.add(Lost(item.file, item.line, DUPLICATE, ""), measured.tokens)
            return None
        self._seen.add(measured.digest)
        self._documents += 1
        self._tokens += measured.tokens
        if self._progress is not None:
            self._progress(self._documents, self._tokens)
        return measured
