"""Which documents are trained on: neither duplicates, nor contaminated, nor held out.

Owns the order of these decisions and their counts. Must not know how documents were read. Everything follows from the
documents and [stream], never from what else happens to be in the cache, so that a resumed run finds the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.corpus.beside import Known
from engine.corpus.corpus import HeldoutDocument
from engine.corpus.duplicates import exact_duplicates, near_duplicates
from engine.corpus.report import Counted
from engine.corpus.shards import Documents, Shard
from engine.corpus.tokenizer import TextTokenizer
from engine.jobs.spec_stream import StreamSection

_HASH_RANGE = 1 << 32
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Taken:
    """The documents of a source that a job looks at: its first ones."""

    shards: tuple[Shard, ...]
    known: tuple[Known, ...]
    """Of the shards."""
    documents: int

    @property
    def parts(self) -> list[Documents]:
        """The documents' records, shard by shard; the last part may be cut."""
        found, left = [], self.documents
        for shard in self.shards:
            found.append(shard.documents[:left])
            left -= len(found[-1])
        return found

    def lengths(self) -> NDArray[np.uint32]:
        """(documents,) tokens of each."""
        parts = [np.diff(part["end"].astype(np.int64), prepend=0).astype(np.uint32) for part in self.parts]
        return np.concatenate([np.empty(0, np.uint32), *parts])


@dataclass(frozen=True, slots=True)
class Selection:
    """Of one source; every mask is (documents,)."""

    kept: Mask
    heldout: Mask
    contaminated: Mask
    counts: Counts


@dataclass(frozen=True, slots=True)
class Counts:
    """How many documents and tokens went where."""

    read: Counted
    text_bytes: int
    kept: Counted
    duplicates: Counted
    near_duplicates: Counted
    contaminated: Counted
    heldout: Counted


def take(shards: Sequence[Shard], tokens: int | None) -> int:
    """How many documents hold the first `tokens` tokens; all of them where there are fewer, or for None."""
    found, before = 0, 0
    for shard in shards:
        ends = shard.documents["end"]
        if tokens is not None and len(ends) and before + int(ends[-1]) >= tokens:
            return found + int(np.searchsorted(ends, np.uint64(max(tokens - before, 0)))) + 1
        found += len(ends)
        before += len(shard.tokens)
    return found


def select(sources: Sequence[Taken], stream: StreamSection) -> list[Selection]:
    """Of all sources together: what was in an earlier one is a duplicate in a later one."""
    parts = [part for source in sources for part in source.parts]
    total = sum(source.documents for source in sources)
    exact = exact_duplicates(parts) if stream.deduplicate != "off" else np.zeros(total, np.bool_)
    near = np.zeros(total, np.bool_)
    if stream.deduplicate == "near":
        near = near_duplicates([known.signatures for source in sources for known in _cut(source)], exact)
    found, first = [], 0
    for source in sources:
        mine = slice(first, first + source.documents)
        found.append(_select(source, exact[mine], near[mine], stream))
        first += source.documents
    return found


def _cut(source: Taken) -> list[Known]:
    return [known[: len(part)] for known, part in zip(source.known, source.parts, strict=True)]


def _select(source: Taken, exact: Mask, near: Mask, stream: StreamSection) -> Selection:
    lengths = source.lengths()
    kept = ~exact & ~near
    marks = np.concatenate([np.zeros(0, np.bool_), *(known.contaminated for known in _cut(source))])
    contaminated = kept & marks
    kept &= ~marks
    heldout = _heldout(source, kept, lengths, stream)
    kept &= ~heldout
    counts = Counts(
        read=_counted(np.ones(source.documents, np.bool_), lengths),
        text_bytes=sum(int(part["text_bytes"].sum()) for part in source.parts),
        kept=_counted(kept, lengths),
        duplicates=_counted(exact, lengths),
        near_duplicates=_counted(near, lengths),
        contaminated=_counted(contaminated, lengths),
        heldout=_counted(heldout, lengths),
    )
    return Selection(kept, heldout, contaminated, counts)


def _counted(mask: Mask, lengths: NDArray[np.uint32]) -> Counted:
    return Counted(documents=int(mask.sum()), tokens=int(lengths[mask].sum(dtype=np.int64)))


def _heldout(source: Taken, kept: Mask, lengths: NDArray[np.uint32], stream: StreamSection) -> Mask:
    """By digest, so that a document is held out in every job or in none; the first ones up to heldout_tokens. Of few
    documents the one with the smallest digest, so that every source of two has one, and never more than half."""
    found = np.zeros(source.documents, np.bool_)
    half = int(kept.sum()) // 2
    if not stream.heldout_share or not stream.heldout_tokens or not half:
        return found
    digests = np.concatenate([part["digest_low"] & np.uint64(_HASH_RANGE - 1) for part in source.parts])
    below = np.flatnonzero(kept & (digests < round(stream.heldout_share * _HASH_RANGE)))
    if not len(below):
        candidates = np.flatnonzero(kept)
        below = candidates[[int(np.argmin(digests[candidates]))]]
    below = below[:half]
    before = np.cumsum(lengths[below], dtype=np.int64) - lengths[below]
    found[below[before < stream.heldout_tokens]] = True
    return found


def heldout_documents(
    source: Taken, selection: Selection, tokenizer: TextTokenizer, most_tokens: int
) -> tuple[HeldoutDocument, ...]:
    """Texts and ids of what is held out, the last one cut at `most_tokens` in all."""
    found: list[HeldoutDocument] = []
    first, left = 0, most_tokens
    for shard, part in zip(source.shards, source.parts, strict=True):
        for index in np.flatnonzero(selection.heldout[first : first + len(part)]):
            begin = int(part["end"][index - 1]) if index else 0
            ids = shard.tokens[begin : min(int(part["end"][index]), begin + left)]
            left -= len(ids)
            text = tokenizer.beginning(ids[:-1] if begin + len(ids) == int(part["end"][index]) else ids)
            found.append(HeldoutDocument(text, tuple(ids.tolist())))
        first += len(part)
    return tuple(found)
