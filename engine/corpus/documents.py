"""What readers yield: documents one by one, with where each came from and where reading goes on behind it.

Owns the types and the choice of reader. Must not know tokens. Every reader is a stream: at no time does one hold more
than a block of the file and the document being read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.corpus.faults import Fault
from engine.corpus.shards import Cursor


@dataclass(frozen=True, slots=True)
class Document:
    """One document."""

    text: str
    file: int
    """Of the source's files, from 0."""
    place: int
    """Line or row where it begins, from 1."""
    after: Cursor
    """Where the next one begins."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What readers must know of [stream]."""

    longest_bytes: int
    text_bytes: int
    """Text files are cut into documents of about this size; 0 keeps each whole."""


Found = Iterator[Document | Fault]
