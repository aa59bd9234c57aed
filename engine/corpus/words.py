"""Runs of words as numbers, for a batch of texts at once: what contamination and near duplicates are found by.

Owns what a word is and how runs are hashed. Must not know documents or files. A word is a run of letters, digits and
marks, without regard to case; a character of a script written without spaces is a word by itself. Hashes are
polynomials modulo 2^64 over characters and over words (Karp and Rabin, 1987), so that a batch costs a fixed number of
array operations.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.corpus.order import Integers

Hashes = NDArray[np.uint64]
_CHARACTER_BASE = 0x9E3779B97F4A7C15
_WORD_BASE = 0xC2B2AE3D27D4EB4F
_SPACELESS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
)
"""Thai, Lao, Burmese, Khmer, kana and Han; and everything beyond the first 65,536 code points."""
_PLANE = 1 << 16
_BLOCK = 1 << 17
"""Characters hashed at a time: what is made of them stays in a core's cache."""
_SEPARATOR = "\n"


@dataclass(frozen=True, slots=True)
class Runs:
    """Every run of n words in a batch of texts."""

    hashes: Hashes
    texts: Integers
    """Which text each run is in; rising."""


def word_runs(texts: Sequence[str], words: int) -> Runs:
    """All runs of `words` words within each text, in order; a text with fewer words has none."""
    hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for first, batch in _batches(texts):
        word_hashes, word_texts = _words(batch)
        if len(word_hashes) < words:
            continue
        within = word_texts[words - 1 :] == word_texts[: len(word_texts) - words + 1]
        hashes.append(_windows(word_hashes, words)[within])
        owners.append(word_texts[: len(within)][within] + first)
    return Runs(np.concatenate(hashes), np.concatenate(owners))


def _batches(texts: Sequence[str]) -> list[tuple[int, Sequence[str]]]:
    """Texts in groups of about a block, each with the number of its first."""
    found, first, size = [], 0, 0
    for number, text in enumerate(texts):
        if size and size + len(text) > _BLOCK:
            found.append((first, texts[first:number]))
            first, size = number, 0
        size += len(text) + 1
    if first < len(texts):
        found.append((first, texts[first:]))
    return found


def _words(texts: Sequence[str]) -> tuple[Hashes, Integers]:
    """(hash, number of the text) of every word."""
    joined = _SEPARATOR.join(texts)
    folded, kinds = _folded(joined)
    begins, ends = _borders(kinds)
    ends_of_texts = np.cumsum([len(text) + 1 for text in texts])
    return _hashed(folded, begins, ends), np.searchsorted(ends_of_texts, begins, side="right")


def _folded(text: str) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Code points in lower case, and of each: outside words (0), in a word (1), or a word by itself (2)."""
    if text.isascii():
        content = text.lower().encode("ascii")
        return np.frombuffer(content, np.uint8), np.frombuffer(content.translate(_ascii_kinds()), np.uint8)
    lower, kinds = _tables()
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    inside = np.minimum(codes, _PLANE - 1)
    beyond = codes >= _PLANE
    return np.where(beyond, codes, lower[inside]), np.where(beyond, np.uint8(2), kinds[inside])


@cache
def _ascii_kinds() -> bytes:
    return bytes(int(chr(code).isalnum() and code < 128) for code in range(256))


@cache
def _tables() -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    lower = np.arange(_PLANE, dtype=np.uint32)
    kinds = np.zeros(_PLANE, np.uint8)
    for code in range(_PLANE):
        character = chr(code)
        if unicodedata.category(character)[0] in "LNM":
            kinds[code] = 1
            small = character.lower()
            lower[code] = ord(small) if len(small) == 1 else code
    for first, last in _SPACELESS:
        kinds[first : last + 1] *= 2
    return lower, kinds


def _borders(kinds: NDArray[np.uint8]) -> tuple[Integers, Integers]:
    """Where words begin and end."""
    outside = np.zeros(1, np.uint8)
    if kinds.max(initial=0) < 2:
        edges = np.flatnonzero(np.diff(kinds, prepend=outside, append=outside))
        return edges[0::2], edges[1::2]
    before = np.concatenate((outside, kinds))
    after = np.concatenate((kinds, outside))
    # A border lies where the kind changes, and on both sides of a character that is a word by itself.
    border = (before != after) | (after == 2)
    begins = border & (after > 0)
    ends = (border | (before == 2)) & (before > 0)
    return np.flatnonzero(begins), np.flatnonzero(ends)


def _hashed(codes: NDArray[Any], begins: Integers, ends: Integers) -> Hashes:
    """Hash of each word: its characters as digits of a number, wherever in the batch it stands."""
    found = np.empty(len(begins), np.uint64)
    for first in range(0, len(codes), _BLOCK):
        last = first + _BLOCK
        one, other = np.searchsorted(begins, (first, last))
        if one == other:
            continue
        upto = min(int(ends[other - 1]), first + 2 * _BLOCK)
        found[one:other] = _sums(
            codes[first:upto].astype(np.uint64) + np.uint64(1),
            begins[one:other] - first,
            np.minimum(ends[one:other], upto) - first,
            _CHARACTER_BASE,
        )
    return _mixed(found)


def _windows(hashes: Hashes, words: int) -> Hashes:
    """Hash of every run of `words` consecutive words."""
    found = []
    for first in range(0, len(hashes) - words + 1, _BLOCK):
        part = hashes[first : first + _BLOCK + words - 1]
        begins = np.arange(len(part) - words + 1)
        found.append(_mixed(_sums(part, begins, begins + words, _WORD_BASE)))
    return np.concatenate(found)


def _sums(values: Hashes, begins: Integers, ends: Integers, base: int) -> Hashes:
    """Sum of value[j] base^(j - begin) over [begin, end), modulo 2^64, from one running sum."""
    powers, inverse = _powers(base)
    total = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers[: len(values)], out=total[1:])
    return (total[ends] - total[begins]) * inverse[begins]


@cache
def _powers(base: int) -> tuple[Hashes, Hashes]:
    """Powers of an odd base and of its inverse modulo 2^64, for two blocks."""
    return _power_table(base), _power_table(pow(base, -1, 1 << 64))


def _power_table(base: int) -> Hashes:
    table = np.full(2 * _BLOCK + 64, base, np.uint64)
    table[0] = 1
    return np.multiply.accumulate(table)


def _mixed(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): equal stays equal, everything else is spread."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
