"""What was read of every source and what became of it, as data.

Owns the report's types. Must not know how anything is counted, nor how it is shown.
"""

from __future__ import annotations

import msgspec

from engine.corpus.faults import FaultCounts


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where preparing stands; sent every second or so."""

    source: str
    doing: str
    """ "waiting", "checking", "reading", "comparing"."""
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    unreadable: int = 0
    needed_tokens: int = 0
    """0 where the whole source is read."""


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """Documents and their tokens."""

    documents: int = 0
    tokens: int = 0


class Contaminated(msgspec.Struct, frozen=True, kw_only=True):
    """A document that shares a run of words with what the job is evaluated on."""

    file: str
    place: int
    """Line or row, from 1."""


class SourceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One source."""

    name: str
    path: str
    weight: float
    files: int
    """0 for a data set on the hub."""
    documents: int
    """Read without fault."""
    tokens: int
    text_bytes: int
    kept: Counted
    """What is trained on, in one epoch."""
    duplicates: Counted
    near_duplicates: Counted
    contaminated: Counted
    contaminated_examples: tuple[Contaminated, ...] = ()
    heldout: Counted
    """Set aside; evaluated up to [stream] heldout_tokens."""
    faults: FaultCounts
    exhausted: bool
    """All of it was read; False where a limit came first."""
    shards: int
    shards_made: int
    """In this call; the others were in the cache."""
    shards_redone: int = 0
    """Were damaged."""
    seconds: float = 0.0
    """Spent reading and tokenising."""
    folder: str = ""
    """Of the shards."""

    @property
    def bytes_per_token(self) -> float:
        return self.text_bytes / self.tokens if self.tokens else 0.0


class CorpusReport(msgspec.Struct, frozen=True, kw_only=True):
    """All sources of a job."""

    sources: tuple[SourceReport, ...]
    evaluation_texts: int = 0
    """That documents were compared with."""
    evaluation_texts_too_short: int = 0
    """Of these, shorter than a run of [stream] ngram_words, so that nothing can be found in them."""
    tokenizer_sha256: str = ""
