"""How much text a source holds, as far as it is known before it is read.

Owns the shape of that answer. Must not know files or tokenizers (`engine.corpus.sizes` asks them).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class AmountOrigin(StrEnum):
    """How the number of tokens came to be; later ones are better."""

    UNKNOWN = "unknown"
    SIZE = "file size"
    """Bytes, and a usual number of bytes per token."""
    SAMPLE = "sample"
    """Bytes, and a piece of the text that was tokenised."""
    COUNTED = "counted"
    """Tokenised already: without exact duplicates and what is held out."""


@dataclass(frozen=True, slots=True)
class SourceAmount:
    """One source, as much of it as is trained on."""

    name: str
    files: int
    """0 for a data set on the hub."""
    size_bytes: int
    """On disk."""
    low: float
    likely: float
    """Tokens; 0 where nobody knows."""
    high: float
    origin: AmountOrigin
    documents: float = 0.0
    """About so many; 0 where nobody knows."""
    text: str = ""
    """A piece of its text, where it was sampled."""
    unreadable: str = ""
    """Why nothing of it could be read, where that is so."""
