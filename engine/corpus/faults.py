"""What cannot be read: its kind, where it is, how often it happened, and when that is too often.

Owns kinds, counts and the policy. Must not know how anything is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from engine.errors import EngineError

EXAMPLES_KEPT = 20
"""Faults of a source that are named one by one; all are counted."""
_JUDGED_FROM = 1000
"""Documents and losses before a share of losses is acted on while reading; at the end any number is judged."""


class FaultKind(StrEnum):
    BAD_UTF8 = "bad_utf8"
    BAD_JSON = "bad_json"
    NO_FIELD = "no_field"
    NOT_TEXT = "not_text"
    TOO_LONG = "too_long"
    TRUNCATED = "truncated"
    BROKEN_FILE = "broken_file"
    NO_COLUMN = "no_column"
    EMPTY_FILE = "empty_file"
    UNKNOWN_FORMAT = "unknown_format"
    UNREADABLE = "unreadable"
    BLANK = "blank"
    """Not a fault: a document without text, counted so that nothing is left out in silence."""


WORDS = {
    FaultKind.BAD_UTF8: "not valid UTF-8",
    FaultKind.BAD_JSON: "not valid JSON",
    FaultKind.NO_FIELD: "no such key",
    FaultKind.NOT_TEXT: "the value is not text",
    FaultKind.TOO_LONG: "longer than longest_document_mb",
    FaultKind.TRUNCATED: "the compressed file ends too early",
    FaultKind.BROKEN_FILE: "the file is damaged",
    FaultKind.NO_COLUMN: "no such column",
    FaultKind.EMPTY_FILE: "the file is empty",
    FaultKind.UNKNOWN_FORMAT: "neither text, JSON lines nor Parquet",
    FaultKind.UNREADABLE: "cannot be opened",
    FaultKind.BLANK: "holds no text",
}


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something unreadable and where it is. Lines, rows and bytes count from 1; 0 where they say nothing."""

    kind: FaultKind
    file: str
    line: int = 0
    row: int = 0
    byte: int = 0
    """In the file, unpacked where it is compressed."""
    detail: str = ""
    documents: int = 1
    """Lost with it; 0 for an empty file."""

    @property
    def words(self) -> str:
        """The fault as one line for people."""
        where = ((self.line, "line"), (self.row, "row"), (self.byte, "byte"))
        places = "".join(f", {name} {number:,}" for number, name in where if number)
        return f"{self.file}{places}: {WORDS[self.kind]}" + (f" ({self.detail})" if self.detail else "")


class FaultCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The faults of a shard, a source or all sources."""

    counts: dict[FaultKind, int] = {}
    """Documents lost by kind; of empty files their number."""
    documents: int = 0
    """Lost in all."""
    examples: tuple[Fault, ...] = ()
    """The first of them."""

    def __add__(self, other: FaultCounts) -> FaultCounts:
        counts = dict(self.counts)
        for kind, number in other.counts.items():
            counts[kind] = counts.get(kind, 0) + number
        return FaultCounts(
            counts=counts,
            documents=self.documents + other.documents,
            examples=(self.examples + other.examples)[:EXAMPLES_KEPT],
        )

    @property
    def total(self) -> int:
        """Faults of all kinds; blank documents are none."""
        return sum(number for kind, number in self.counts.items() if kind is not FaultKind.BLANK)


class FaultTally:
    """Counts while reading. Mutable: cheap to add to."""

    def __init__(self) -> None:
        self._counts: dict[FaultKind, int] = {}
        self._documents = 0
        self._examples: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._counts[fault.kind] = self._counts.get(fault.kind, 0) + max(fault.documents, 1)
        self._documents += fault.documents
        if fault.kind is not FaultKind.BLANK and len(self._examples) < EXAMPLES_KEPT:
            self._examples.append(fault)

    @property
    def counts(self) -> FaultCounts:
        """What was added so far."""
        return FaultCounts(counts=dict(self._counts), documents=self._documents, examples=tuple(self._examples))


class BadInputPolicy(msgspec.Struct, frozen=True):
    """When unreadable input ends the work: [stream] bad_input and bad_share."""

    refuse: bool
    most_lost_share: float

    def check(self, source: str, read_documents: int, faults: FaultCounts, *, at_end: bool) -> None:
        """Raises EngineError `corpus.bad_input` where the policy says so; the faults found are in its cause."""
        if not faults.total:
            return
        seen = read_documents + faults.documents
        if self.refuse:
            raise _bad_input(f"Source '{source}' has input that cannot be read.", faults.examples)
        if faults.documents <= self.most_lost_share * seen or not (at_end or seen >= _JUDGED_FROM):
            return
        share = faults.documents / seen
        what = f"{share:.1%} of the documents of source '{source}' cannot be read; bad_share allows "
        raise _bad_input(f"{what}{self.most_lost_share:.1%}.", faults.examples)


def _bad_input(what: str, examples: Iterable[Fault]) -> EngineError:
    return EngineError(
        "corpus.bad_input",
        what,
        cause="; ".join(fault.words for fault in list(examples)[:5]),
        next_step='Repair or remove it, or allow more with [stream] bad_input = "skip" and bad_share.',
    )
