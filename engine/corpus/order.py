"""The order in which a domain's documents are read: a new shuffle in every epoch, any place of it at once.

Owns shuffling in blocks. Must not know tokens' values, files or steps. A block is a run of consecutive documents; in
every epoch the blocks change places and the documents of a block are shuffled among themselves, so that finding a token
costs two searches, memory stays at a few bytes per block, and reading stays near one place of the disk.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
_K = TypeVar("_K")
_V = TypeVar("_V")
DEFAULT_BLOCK_DOCUMENTS = 10_000
"""Of streams that keep their order."""
_BLOCKS_KEPT = 4
_EPOCHS_KEPT = 2


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The documents of one block in the order of one epoch."""

    documents: Integers
    """Numbers of the documents."""
    ends: Integers
    """Tokens of the block up to the end of each."""


@dataclass(frozen=True, slots=True)
class _EpochLayout:
    blocks: Integers
    ends: Integers


class StreamOrder:
    """Where token t of the endless stream lies. Threads may share it."""

    def __init__(
        self, name: str, seed: int, block_tokens: Integers, documents_of: Callable[[int], BlockLayout], *, shuffle: bool
    ) -> None:
        """`block_tokens` (blocks,) counts the tokens of each; `documents_of` gives a block in the files' order."""
        self._key = f"{seed} {name}"
        self._block_tokens = block_tokens
        self._documents_of = documents_of
        self._shuffle = shuffle
        self._epochs: OrderedDict[int, _EpochLayout] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], BlockLayout] = OrderedDict()
        self._remembering = Lock()
        self.epoch_tokens = int(block_tokens.sum())

    def find(self, token: int) -> tuple[int, BlockLayout, int]:
        """(epoch, block, offset in the block) of a token of the endless stream."""
        epoch, within = divmod(token, self.epoch_tokens)
        with self._remembering:
            layout = self._epoch(epoch)
            place = int(layout.ends.searchsorted(within, side="right"))
            before = int(layout.ends[place - 1]) if place else 0
            return epoch, self._block(epoch, int(layout.blocks[place])), within - before

    def _epoch(self, epoch: int) -> _EpochLayout:
        found = self._epochs.get(epoch)
        if found is None:
            blocks = np.arange(len(self._block_tokens))
            if self._shuffle:
                blocks = shuffled(blocks, f"{self._key} {epoch}")
            found = _EpochLayout(blocks, np.cumsum(self._block_tokens[blocks]))
            _remember(self._epochs, epoch, found, _EPOCHS_KEPT)
        return found

    def _block(self, epoch: int, number: int) -> BlockLayout:
        key = (epoch if self._shuffle else 0, number)
        found = self._blocks.get(key)
        if found is None:
            found = self._documents_of(number)
            if self._shuffle:
                order = shuffled(np.arange(len(found.documents)), f"{self._key} {epoch} {number}")
                lengths = np.diff(found.ends, prepend=0)[order]
                found = BlockLayout(found.documents[order], np.cumsum(lengths))
            _remember(self._blocks, key, found, _BLOCKS_KEPT)
        return found


def _remember(kept: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> None:
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)


def shuffled(values: Integers, key: str) -> Integers:
    """A permutation that `key` alone decides: sorted by raw PCG64 words, the same in all versions of numpy."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "little")
    return values[np.argsort(np.random.PCG64(seed).random_raw(len(values)), kind="stable")]
