"""Which documents are trained on: neither duplicates, nor contaminated, nor held out.

Owns the order of these decisions and their counts. Must not know how documents were read. Everything follows from the
documents and [stream], never from what else happens to be in the cache, so that a resumed run finds the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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
    """Of all sources together: what was in an earlier one is a duplicate in a later one. No copy of what is held out is
    kept in any of them, whether or not duplicates are."""
    parts = [part for source in sources for part in source.parts]
    again = exact_duplicates(parts)
    exact = again if stream.deduplicate != "off" else np.zeros_like(again)
    near = np.zeros_like(again)
    if stream.deduplicate == "near":
        near = near_duplicates([known.signatures for source in sources for known in _cut(source)], exact)
    marks = np.concatenate([again[:0], *(known.contaminated for source in sources for known in _cut(source))])
    kept = ~exact & ~near & ~marks
    contaminated = ~exact & ~near & marks
    borders = np.cumsum([0, *(source.documents for source in sources)])
    slices = [slice(first, last) for first, last in itertools.pairwise(borders)]
    held = [_heldout(source, (kept & ~again)[mine], stream) for source, mine in zip(sources, slices, strict=True)]
    heldout = np.concatenate([again[:0], *held])
    copies = kept & ~heldout & _copies(parts, heldout)
    masks = (kept & ~heldout & ~copies, exact | copies, near, contaminated, heldout)
    return [_selection(source, *(mask[mine] for mask in masks)) for source, mine in zip(sources, slices, strict=True)]


def _cut(source: Taken) -> list[Known]:
    return [known[: len(part)] for known, part in zip(source.known, source.parts, strict=True)]


def _selection(source: Taken, kept: Mask, duplicates: Mask, near: Mask, contaminated: Mask, heldout: Mask) -> Selection:
    lengths = source.lengths()
    counts = Counts(
        read=_counted(np.ones(source.documents, np.bool_), lengths),
        text_bytes=sum(int(part["text_bytes"].sum()) for part in source.parts),
        kept=_counted(kept, lengths),
        duplicates=_counted(duplicates, lengths),
        near_duplicates=_counted(near, lengths),
        contaminated=_counted(contaminated, lengths),
        heldout=_counted(heldout, lengths),
    )
    return Selection(kept, heldout, contaminated, counts)


def _counted(mask: Mask, lengths: NDArray[np.uint32]) -> Counted:
    return Counted(documents=int(mask.sum()), tokens=int(lengths[mask].sum(dtype=np.int64)))


def _heldout(source: Taken, candidates: Mask, stream: StreamSection) -> Mask:
    """By digest, so that more text of the source changes nothing: the first ones up to heldout_tokens. Where the share
    gives none, the first one by digest, so that a source of two has one. Never more than half of the documents, nor of
    their tokens."""
    found = np.zeros(source.documents, np.bool_)
    half = int(candidates.sum()) // 2
    if not stream.heldout_share or not stream.heldout_tokens or not half:
        return found
    digests = np.concatenate([part["digest_low"] & np.uint64(_HASH_RANGE - 1) for part in source.parts])
    below = np.flatnonzero(candidates & (digests < round(stream.heldout_share * _HASH_RANGE)))
    lengths = source.lengths().astype(np.int64)
    room = int(lengths[candidates].sum()) // 2
    if not len(below):
        numbers = np.flatnonzero(candidates & (lengths <= room))
        below = numbers[np.argsort(digests[numbers], kind="stable")[:1]]
    below = below[:half]
    after = np.cumsum(lengths[below])
    found[below[(after - lengths[below] < stream.heldout_tokens) & (after <= room)]] = True
    return found


def _copies(parts: Sequence[Documents], heldout: Mask) -> Mask:
    """(all documents of all parts,) whether its text is that of one that is held out, the one itself among them."""
    borders = np.cumsum([0, *(len(part) for part in parts)])
    pairs = list(zip(parts, itertools.pairwise(borders), strict=True))
    held = {digest for part, (first, last) in pairs for digest in _digests(part[heldout[first:last]])}
    lows = np.array([low for low, _ in held], np.uint64)
    found = np.zeros_like(heldout)
    for part, (first, _) in pairs:
        alike = np.flatnonzero(np.isin(part["digest_low"], lows))
        found[alike + first] = [digest in held for digest in _digests(part[alike])]
    return found


def _digests(part: Documents) -> Iterator[tuple[int, int]]:
    return zip(part["digest_low"].tolist(), part["digest_high"].tolist(), strict=True)


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
