"""The report of a mix: what every domain had, what it gave, and what became of every document.

Owns the report's types, which are its JSON form, and the histogram's bins. Must not know how a mix is made.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

BIN_STEPS = 6
"""Bins below the target: its half, quarter, ... ."""
EXAMPLES = 5


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A section of the report."""


class LengthBin(_Part, frozen=True, kw_only=True):
    """Documents or rows of at least `start` and fewer than `end` tokens; `end` 0: no upper end."""

    start: int
    end: int
    count: int
    tokens: int


class DomainReport(_Part, frozen=True, kw_only=True):
    """One source."""

    name: str
    path: str
    role: str
    """ "long": its long documents are sampled more; "short": it only adds short text."""
    weight: float
    files: int
    documents: int
    """Usable ones; duplicates and lost ones left out."""
    tokens: int
    longest: int
    long_documents: int
    long_tokens: int
    share_before: float
    """Of the tokens of all sources."""
    share_after: float
    """Of the tokens of the mix."""
    used_documents: int
    repeated_documents: int
    rows: int
    used_tokens: int
    used_long_tokens: int
    before: tuple[LengthBin, ...]
    after: tuple[LengthBin, ...]
    """Of rows as written."""


class Place(_Part, frozen=True, kw_only=True):
    """Where something was found."""

    file: str
    line: int
    """0 for a whole file."""
    detail: str = ""


class Dropped(_Part, frozen=True, kw_only=True):
    """Documents that are not in the mix for one reason."""

    reason: str
    documents: int
    tokens: int
    """0 where they could not be counted."""
    examples: tuple[Place, ...]


class Cut(_Part, frozen=True, kw_only=True):
    """Documents longer than the target."""

    documents: int = 0
    pieces: int = 0
    """Rows they became."""
    dropped_pieces: int = 0
    """Remainders too short to be worth a row."""
    dropped_tokens: int = 0


class MixReport(_Part, frozen=True, kw_only=True):
    """What was written."""

    output: str
    model: str
    window: int
    """The model's present one, tokens."""
    context: int
    long_from: int
    """A document of so many tokens counts as long."""
    long_share_asked: float
    long_share: float
    """Of the rows' tokens."""
    seed: int
    documents: int
    rows: int
    tokens: int
    domains: tuple[DomainReport, ...]
    cut: Cut
    duplicates: int
    duplicate_tokens: int
    dropped: tuple[Dropped, ...]
    unused_documents: int
    """Sound ones that the asked shares left no room for."""
    unused_tokens: int
    warnings: tuple[str, ...] = ()


def bin_edges(target: int) -> tuple[int, ...]:
    """Where bins begin: 0, target / 2^6, ..., target / 2, target."""
    halves = [target >> step for step in range(BIN_STEPS, -1, -1)]
    return (0, *[edge for edge in halves if edge > 0])


class Histogram:
    """Counts lengths as they come."""

    def __init__(self, target: int) -> None:
        self._edges = bin_edges(target)
        self._counts = [0] * len(self._edges)
        self._tokens = [0] * len(self._edges)

    def add(self, length: int, times: int = 1) -> None:
        """One length, `times` over."""
        place = max(index for index, edge in enumerate(self._edges) if edge <= length)
        self._counts[place] += times
        self._tokens[place] += length * times

    def bins(self) -> tuple[LengthBin, ...]:
        ends: Iterable[int] = (*self._edges[1:], 0)
        rows = zip(self._edges, ends, self._counts, self._tokens, strict=True)
        return tuple(LengthBin(start=a, end=b, count=count, tokens=tokens) for a, b, count, tokens in rows)
