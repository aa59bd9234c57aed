"""Prepared text as endless streams of tokens, one per domain: any stretch of any of them, at once.

Owns reading from memory-mapped shards in the order of an epoch. Must not know sources, steps or torch.

    stream   [ epoch 0: d7 d2 d9 ... ][ epoch 1: d3 d7 d1 ... ] ...     every document ends with the end token
    piece              ^------ count ------^                            ids, and where documents begin in it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from engine.corpus.order import DEFAULT_BLOCK_DOCUMENTS, BlockLayout, Integers, StreamOrder
from engine.corpus.report import CorpusReport
from engine.corpus.shards import Shard, Tokens
from engine.errors import EngineError


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a domain's stream."""

    ids: NDArray[np.uint32]
    """(count,)"""
    starts: Integers
    """Offsets at which a document begins; a piece that begins inside one has none at 0."""

    def positions(self) -> Integers:
        """(count,) position ids: from 0 at the piece's begin and again at every document, so that documents cannot see
        each other (`engine.data.packing`)."""
        index = np.arange(len(self.ids))
        begins = np.zeros(len(self.ids), np.int64)
        begins[self.starts] = self.starts
        return index - np.maximum.accumulate(begins)

    def predicted(self) -> NDArray[np.bool_]:
        """(count,) whether a token is predicted from the one before it: not the first of the piece or of a document."""
        found = np.ones(len(self.ids), np.bool_)
        found[:1] = False
        found[self.starts] = False
        return found


@dataclass(frozen=True, slots=True)
class DocumentPiece:
    """Part of a document, or all of it."""

    document: int
    """Its number among all documents of the source, in the order they were read, from 0."""
    epoch: int
    from_token: int
    to_token: int
    """Exclusive; both count from the document's first token."""


@dataclass(frozen=True, slots=True)
class HeldoutDocument:
    """A document that is never trained on."""

    text: str
    ids: tuple[int, ...]


class Domain:
    """One source, prepared."""

    def __init__(
        self,
        name: str,
        shards: Sequence[Shard],
        kept: NDArray[np.bool_],
        heldout: tuple[HeldoutDocument, ...],
        *,
        seed: int,
        shuffle_documents: int,
    ) -> None:
        """`kept` (documents,) says which documents of the shards are in the stream; shards may hold more."""
        self.name = name
        self.heldout = heldout
        self._shards = tuple(shards)
        self._kept = kept
        self._ends = tuple(shard.documents["end"] for shard in shards)
        self._first_documents = np.cumsum([0, *(len(ends) for ends in self._ends)])
        self._block_documents = shuffle_documents or DEFAULT_BLOCK_DOCUMENTS
        blocks = -(-len(kept) // self._block_documents)
        tokens = np.array([self._block_layout(number).ends[-1:].sum() for number in range(blocks)], np.int64)
        self._order = StreamOrder(name, seed, tokens, self._block_layout, shuffle=shuffle_documents > 0)
        self.documents = int(kept.sum())
        self.tokens = self._order.epoch_tokens
        """Of one epoch."""

    def read(self, first: int, count: int) -> Piece:
        """`count` tokens from place `first` of the endless stream. Raises EngineError `corpus.no_text` where a domain
        has no document to train on."""
        ids = np.empty(count, np.uint32)
        starts = []
        filled = 0
        for piece in self._walk(first, count):
            if piece.from_token == 0:
                starts.append(filled)
            length = piece.to_token - piece.from_token
            tokens, begin, _ = self._place(piece.document)
            ids[filled : filled + length] = tokens[begin + piece.from_token : begin + piece.to_token]
            filled += length
        return Piece(ids, np.array(starts, np.int64))

    def documents_in(self, first: int, count: int) -> tuple[DocumentPiece, ...]:
        """What `read` would return, by document."""
        return tuple(self._walk(first, count))

    def _walk(self, first: int, count: int) -> Iterator[DocumentPiece]:
        if count and not self.tokens:
            raise EngineError("corpus.no_text", f"Source '{self.name}' has no document to train on.")
        token, end = first, first + count
        while token < end:
            epoch, block, offset = self._order.find(token)
            index = int(block.ends.searchsorted(offset, side="right"))
            while token < end and index < len(block.documents):
                begin = int(block.ends[index - 1]) if index else 0
                to_token = min(int(block.ends[index]) - begin, offset - begin + end - token)
                yield DocumentPiece(int(block.documents[index]), epoch, offset - begin, to_token)
                token += begin + to_token - offset
                offset = begin + to_token
                index += 1

    def _place(self, document: int) -> tuple[Tokens, int, int]:
        """(its shard's tokens, first token in them, end) of a document."""
        number = int(self._first_documents.searchsorted(document, side="right")) - 1
        ends, index = self._ends[number], document - int(self._first_documents[number])
        return self._shards[number].tokens, int(ends[index - 1]) if index else 0, int(ends[index])

    def _block_layout(self, number: int) -> BlockLayout:
        first = number * self._block_documents
        last = min(first + self._block_documents, len(self._kept))
        lengths = document_lengths(self._shards, self._first_documents, first, last)
        kept = self._kept[first:last]
        return BlockLayout(np.flatnonzero(kept) + first, np.cumsum(lengths[kept]))


def document_lengths(shards: Sequence[Shard], first_documents: Integers, first: int, last: int) -> Integers:
    """(last - first,) tokens of each document, the end token included; shards without documents are passed over."""
    parts = []
    number = int(np.searchsorted(first_documents, first, side="right")) - 1
    while first < last:
        begin = int(first_documents[number])
        upto = min(last, int(first_documents[number + 1]))
        if upto > first:
            ends = shards[number].documents["end"][max(first - begin - 1, 0) : upto - begin].astype(np.int64)
            parts.append(np.diff(ends) if first > begin else np.diff(ends, prepend=0))
            first = upto
        number += 1
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


@dataclass(frozen=True)
class Corpus:
    """All sources of a job, prepared."""

    domains: tuple[Domain, ...]
    report: CorpusReport
    fingerprint: str
    """SHA-256 over what is read: tokenizer, documents, which of them are kept, and the seed of their order."""

    @cached_property
    def _by_name(self) -> dict[str, Domain]:
        return {domain.name: domain for domain in self.domains}

    def domain(self, name: str) -> Domain:
        """The domain of that name. Raises KeyError."""
        return self._by_name[name]

    @property
    def tokens(self) -> int:
        """Of one epoch of every domain."""
        return sum(domain.tokens for domain in self.domains)
