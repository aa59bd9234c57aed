"""Runs of words that a job is evaluated on, and which documents hold one of them.

Owns the comparison. Must not know shards or policies. Contamination in the sense of GPT-3 (arXiv 2005.14165, appendix
C): a document that shares a run of n words, 13 by default, with a text of an evaluation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from engine.corpus.words import Hashes, word_runs

_BATCH_TEXTS = 512
_SIEVE_BITS = 22


class EvaluationRuns:
    """Every run of n words of the evaluations' texts."""

    def __init__(self, texts: Iterable[str], words: int) -> None:
        self.words = words
        self.texts = 0
        self.too_short = 0
        """Texts without any run; nothing can be found in them."""
        parts: list[Hashes] = [np.empty(0, np.uint64)]
        remaining = iter(texts)
        while batch := list(islice(remaining, _BATCH_TEXTS)):
            runs = word_runs(batch, words)
            parts.append(np.unique(runs.hashes))
            self.texts += len(batch)
            self.too_short += len(batch) - len(np.unique(runs.texts))
        self._hashes = np.unique(np.concatenate(parts))
        self._sieve = np.zeros(1 << _SIEVE_BITS, np.bool_)
        self._sieve[_high_bits(self._hashes)] = True
        digest = hashlib.sha256(f"{words} ".encode() + self._hashes.astype("<u8").tobytes())
        self.key = digest.hexdigest()[:16]
        """Equal keys, equal answers."""

    def __bool__(self) -> bool:
        return len(self._hashes) > 0

    def found_in(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """(texts,) whether each holds one of the runs."""
        found = np.zeros(len(texts), np.bool_)
        if not self:
            return found
        runs = word_runs(texts, self.words)
        maybe = np.flatnonzero(self._sieve[_high_bits(runs.hashes)])
        hashes = runs.hashes[maybe]
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        found[runs.texts[maybe][self._hashes[places] == hashes]] = True
        return found


def _high_bits(hashes: Hashes) -> NDArray[np.int64]:
    return (hashes >> np.uint64(64 - _SIEVE_BITS)).astype(np.int64)
