"""Which documents were there before: exactly, by digest, or nearly, by MinHash.

Owns both comparisons over all sources at once. Must not know files or policies. Keys are compared in shares of their
range, so that memory does not grow with the number of documents; of equal ones the first stays, in the order of the
sources and of their documents.

Near: 128 minima over hashes of runs of five words (Broder, 1997), 16 bits of each kept (Li and König, 2010). Documents
that agree in one of 16 bands of 8 are compared; from an estimated Jaccard similarity of 0.8 on the later one goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engine.corpus.order import Integers
from engine.corpus.shards import Documents
from engine.corpus.words import Hashes, word_runs

_AT_ONCE = 4_000_000
"""Documents whose keys are sorted together: about 200 MB."""
NEAR_WORDS = 5
MINIMA = 128
_BANDS, _ROWS = 16, 8
_SIMILAR = 0.8
_NOTHING = 0xFFFF
"""All minima of a document that is too short to have runs."""
_COMPARED_AT_ONCE = 1 << 16

Signatures = NDArray[np.uint16]
"""(documents, MINIMA)"""
_RNG = np.random.PCG64(20_240_917).random_raw(2 * MINIMA)
_FACTORS, _SHIFTS = _RNG[:MINIMA] | np.uint64(1), _RNG[MINIMA:]


def exact_duplicates(parts: Sequence[Documents]) -> NDArray[np.bool_]:
    """(all documents of all parts,) whether one with the same digest came before."""
    total = sum(len(part) for part in parts)
    found = np.zeros(total, np.bool_)
    for numbers, keys in _shares([partial(_digests, part) for part in parts], total):
        high, low = keys
        order = np.lexsort((numbers, low, high))
        same = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
        found[numbers[order][1:][same]] = True
    return found


def signatures(texts: Sequence[str]) -> Signatures:
    """MinHash signatures; what agrees in a share of them has that Jaccard similarity, give or take 0.04."""
    found = np.full((len(texts), MINIMA), _NOTHING, np.uint16)
    runs = word_runs(texts, NEAR_WORDS)
    if not len(runs.hashes):
        return found
    begins = np.flatnonzero(np.diff(runs.texts, prepend=-1))
    owners = runs.texts[begins]
    for number in range(MINIMA):
        minima = np.minimum.reduceat(runs.hashes * _FACTORS[number] + _SHIFTS[number], begins)
        found[owners, number] = (minima >> np.uint64(8)).astype(np.uint16)
    return found


def near_duplicates(parts: Sequence[Signatures], passed_over: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(all documents of all parts,) whether one that differs little came before; `passed_over` are not looked at."""
    found = passed_over.copy()
    starts = np.cumsum([0, *(len(part) for part in parts)])
    for band in range(_BANDS):
        columns = slice(band * _ROWS, (band + 1) * _ROWS)
        halves = [partial(_halves, part, columns) for part in parts]
        for numbers, (high, low) in _shares(halves, len(found), ~found):
            order = np.lexsort((numbers, low, high))
            numbers, high, low = numbers[order], high[order], low[order]
            fresh = np.ones(len(numbers), np.bool_)
            fresh[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
            leaders = numbers[np.maximum.accumulate(np.where(fresh, np.arange(len(numbers)), 0))]
            followers = np.flatnonzero(~fresh)
            for first in range(0, len(followers), _COMPARED_AT_ONCE):
                some = followers[first : first + _COMPARED_AT_ONCE]
                one, other = _rows(parts, starts, leaders[some]), _rows(parts, starts, numbers[some])
                alike = (one == other).mean(axis=1) >= _SIMILAR
                found[numbers[some][alike & (other != _NOTHING).any(axis=1)]] = True
    return found & ~passed_over


def _digests(part: Documents) -> tuple[Hashes, Hashes]:
    return part["digest_high"], part["digest_low"]


def _halves(part: Signatures, columns: slice) -> tuple[Hashes, Hashes]:
    keys = np.ascontiguousarray(part[:, columns]).view(np.uint64)
    # Neighbouring bits of minima are even, but a share of the range is taken by the first key: spread it.
    return keys[:, 0] * np.uint64(0x9E3779B97F4A7C15), keys[:, 1]


def _rows(parts: Sequence[Signatures], starts: Integers, numbers: Integers) -> Signatures:
    found = np.empty((len(numbers), MINIMA), np.uint16)
    owners = np.searchsorted(starts, numbers, side="right") - 1
    for owner in np.unique(owners):
        mine = owners == owner
        found[mine] = parts[owner][numbers[mine] - starts[owner]]
    return found


def _shares(
    parts: Sequence[Callable[[], tuple[Hashes, Hashes]]], total: int, wanted: NDArray[np.bool_] | None = None
) -> Iterator[tuple[Integers, tuple[Hashes, Hashes]]]:
    """(numbers, keys) of all documents whose first key lies in one share of its range, share by share."""
    bits = max(0, (total // _AT_ONCE).bit_length())
    for share in range(1 << bits):
        numbers, highs, lows = [], [], []
        first = 0
        for keys_of in parts:
            high, low = keys_of()
            mine = np.ones(len(high), np.bool_) if not bits else (high >> np.uint64(64 - bits)) == share
            if wanted is not None:
                mine &= wanted[first : first + len(high)]
            inside = np.flatnonzero(mine)
            numbers.append(inside + first)
            highs.append(np.asarray(high[inside]))
            lows.append(np.asarray(low[inside]))
            first += len(high)
        if numbers:
            yield np.concatenate(numbers), (np.concatenate(highs), np.concatenate(lows))
