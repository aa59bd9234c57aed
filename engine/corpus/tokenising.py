"""From documents to ids: batches in flight, so that reading, tokenising and writing overlap.

Owns the batches. Must not know shards' files or sources. The library tokenises on all cores and lets Python run beside
it; what this module adds to its work is a few percent (`bench/corpus.py`).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.corpus.beside import Known, Wanted
from engine.corpus.documents import Document, Found
from engine.corpus.faults import Fault
from engine.corpus.order import Integers
from engine.corpus.shards import DOCUMENT, Cursor, Documents
from engine.corpus.tokenizer import TextTokenizer

_BATCH_CHARACTERS = 1 << 20
_BATCH_DOCUMENTS = 4096
_IN_FLIGHT = 4
"""Batches being tokenised or waiting for it: the library's threads never run dry."""
_CHARACTERS_IN_FLIGHT = 16 << 20
"""Where documents are long, fewer batches wait."""
_THREADS = 2


@dataclass(frozen=True, slots=True)
class Encoded:
    """Some documents, tokenised."""

    ids: NDArray[Any]
    ends: Integers
    """Of the documents, in `ids`."""
    documents: Documents
    """`end` as in `ends`."""
    known: Known
    after: tuple[Cursor, ...]
    """Where reading goes on behind each."""
    faults: tuple[tuple[int, Fault], ...]
    """Each with the number of the batch's documents that came before it."""

    def part(self, first: int, last: int) -> Encoded:
        """Documents [first, last) and the faults among them; those behind the last one belong to what follows."""
        begin = int(self.ends[first - 1]) if first else 0
        end = int(self.ends[last - 1]) if last else 0
        documents = self.documents[first:last].copy()
        documents["end"] -= np.uint64(begin)
        faults = tuple((at - first, fault) for at, fault in self.faults if first <= at < last)
        return Encoded(
            self.ids[begin:end], self.ends[first:last] - begin, documents, self.known[first:last],
            self.after[first:last], faults,
        )  # fmt: skip


@dataclass(slots=True)
class _Batch:
    """Grows while reading."""

    documents: list[Document] = field(default_factory=list)
    faults: list[tuple[int, Fault]] = field(default_factory=list)
    characters: int = 0

    def add(self, found: Document | Fault) -> None:
        if isinstance(found, Fault):
            self.faults.append((len(self.documents), found))
        else:
            self.documents.append(found)
            self.characters += len(found.text)

    @property
    def is_full(self) -> bool:
        count = max(len(self.documents), len(self.faults))
        return self.characters >= _BATCH_CHARACTERS or count >= _BATCH_DOCUMENTS


def encoded(found: Found, tokenizer: TextTokenizer, wanted: Wanted) -> Iterator[Encoded]:
    """Everything that is found, tokenised, in order."""
    waiting: deque[tuple[int, Future[Encoded]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for batch in _batches(found):
                waiting.append((batch.characters, pool.submit(_encode, batch, tokenizer, wanted)))
                while len(waiting) >= _IN_FLIGHT or sum(size for size, _ in waiting) > _CHARACTERS_IN_FLIGHT:
                    yield waiting.popleft()[1].result()
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _batches(found: Found) -> Iterator[_Batch]:
    batch = _Batch()
    for one in found:
        batch.add(one)
        if batch.is_full:
            yield batch
            batch = _Batch()
    if batch.documents or batch.faults:
        yield batch


def _encode(batch: _Batch, tokenizer: TextTokenizer, wanted: Wanted) -> Encoded:
    texts = [document.text for document in batch.documents]
    ids, ends = tokenizer.encode(texts)
    rows = np.zeros(len(texts), DOCUMENT)
    digests = bytearray()
    sizes = []
    for text in texts:
        content = text.encode()
        digests += hashlib.blake2b(content, digest_size=16).digest()
        sizes.append(len(content))
    halves = np.frombuffer(bytes(digests), "<u8").reshape(-1, 2)
    rows["end"] = ends
    rows["digest_high"] = halves[:, 0]
    rows["digest_low"] = halves[:, 1]
    rows["place"] = [document.place for document in batch.documents]
    rows["file"] = [document.file for document in batch.documents]
    rows["text_bytes"] = sizes
    after = tuple(document.after for document in batch.documents)
    return Encoded(ids, ends, rows, wanted.of(texts), after, tuple(batch.faults))
