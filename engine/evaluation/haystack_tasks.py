"""The four retrieval tasks, in the spirit of RULER (arXiv 2404.06654): what is hidden and how it is asked.

Owns notes, questions and answers as text. Must not know tokens' places or lengths: `engine.evaluation.haystack` puts
the notes where they belong.

Every question gives the beginning of its answer, so that a base model knows what is wanted, and only what has to be
found is scored. All questions of a haystack take the same number of tokens: words and numbers come from
`Writer`, which keeps those whose counts agree.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from engine.evaluation.haystack_frame import NOTES, Piece, Writer

NEEDLE = "needle"
MULTI = "multi-needle"
KEY_VALUE = "key-value"
VARIABLES = "variables"
TASKS = (NEEDLE, MULTI, KEY_VALUE, VARIABLES)

ASKED_TOGETHER = 3
"""multi-needle: so many keys in one question."""
HOPS = 3
"""variables: assignments after the first."""
NEEDLES_AT_LEAST = 4
"""So that naming any value present is right one time in four at the most."""
_RECORD_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence to hide."""

    text: str
    depth: float


@dataclass(frozen=True, slots=True)
class Ask:
    """A question; `notes` are the sentences that only it brings, the one at `depth` first."""

    depth: float
    notes: tuple[Note, ...]
    question: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Hidden:
    """All of a haystack but the hay."""

    asks: tuple[Ask, ...]
    distractors: tuple[Note, ...]
    line: Callable[[random.Random], str] | None = None
    """Makes one more distractor: key-value is full of them."""


def hide(task: str, writer: Writer, depths: tuple[float, ...], draw: random.Random) -> Hidden:
    """Notes and questions for one haystack that asks once for each of `depths`."""
    return _TASKS[task](writer, depths, draw)


def most_asks(task: str, writer: Writer) -> int:
    """How many depths one haystack can ask for before it runs out of words."""
    if task == KEY_VALUE:
        return 1 << 30
    if task == VARIABLES:
        return max(1, len({*writer.keys, *_names(writer)}) // (HOPS + 1) - 1)
    codes = len(writer.codes) if writer.style == NOTES else 1 << 30
    return max(1, min(len(writer.keys), codes) - NEEDLES_AT_LEAST)


def _said(writer: Writer, key: str, code: str) -> str:
    return f" The key of {key} is {code}." if writer.style == NOTES else f" The pass key of {key} is {code}."


def _pairs(writer: Writer, count: int, draw: random.Random) -> list[tuple[str, str]]:
    keys = draw.sample(writer.keys, count)
    if writer.style == NOTES:
        return list(zip(keys, draw.sample(writer.codes, count), strict=True))
    codes: dict[str, None] = {}
    while len(codes) < count:
        codes[writer.number(draw)] = None
    return list(zip(keys, codes, strict=True))


def _spread(depths: tuple[float, ...], at_least: int, draw: random.Random) -> list[float]:
    """The depths asked for, and random ones until there are enough."""
    return [*depths, *(draw.random() for _ in range(at_least - len(depths)))]


def _noted(
    writer: Writer, depths: tuple[float, ...], at_least: int, draw: random.Random
) -> list[tuple[str, str, Note]]:
    places = _spread(depths, at_least, draw)
    pairs = _pairs(writer, len(places), draw)
    return [
        (key, code, Note(_said(writer, key, code), place)) for (key, code), place in zip(pairs, places, strict=True)
    ]


def _needle(writer: Writer, depths: tuple[float, ...], draw: random.Random) -> Hidden:
    noted = _noted(writer, depths, NEEDLES_AT_LEAST, draw)
    what = "key" if writer.style == NOTES else "pass key"
    asks = []
    for depth, (key, code, note) in zip(depths, noted, strict=False):
        asked = f" What is the {what} of {key}?{writer.tail}The {what} of {key} is"
        asks.append(Ask(depth, (note,), (Piece(asked), Piece(" " + code, scored=True))))
    return Hidden(tuple(asks), tuple(note for _, _, note in noted[len(depths) :]))


def _multi(writer: Writer, depths: tuple[float, ...], draw: random.Random) -> Hidden:
    noted = _noted(writer, depths, max(NEEDLES_AT_LEAST, ASKED_TOGETHER + 1), draw)
    what = "key" if writer.style == NOTES else "pass key"
    asks = []
    for number, depth in enumerate(depths):
        others = draw.sample([entry for entry in noted if entry is not noted[number]], ASKED_TOGETHER - 1)
        asked = [noted[number], *others]
        names = f"{', '.join(key for key, _, _ in asked[:-1])} and {asked[-1][0]}"
        pieces = [Piece(f" What are the {what}s of {names}?{writer.tail}The {what} of {asked[0][0]} is")]
        for place, (key, code, _) in enumerate(asked):
            pieces += [Piece(f". The {what} of {key} is")] if place else []
            pieces.append(Piece(" " + code, scored=True))
        asks.append(Ask(depth, (noted[number][2],), tuple(pieces)))
    return Hidden(tuple(asks), tuple(note for _, _, note in noted[len(depths) :]))


def _key_value(writer: Writer, depths: tuple[float, ...], draw: random.Random) -> Hidden:
    used: set[str] = set()

    def record(fresh: random.Random) -> tuple[str, str]:
        name = writer.number(fresh, _RECORD_DIGITS)
        while name in used:
            name = writer.number(fresh, _RECORD_DIGITS)
        used.add(name)
        return name, writer.number(fresh)

    def line(fresh: random.Random) -> str:
        name, value = record(fresh)
        return f" Record {name} holds {value}."

    asks = []
    for depth in depths:
        name, value = record(draw)
        asked = f" What does record {name} hold?{writer.tail}Record {name} holds"
        note = Note(f" Record {name} holds {value}.", depth)
        asks.append(Ask(depth, (note,), (Piece(asked), Piece(" " + value, scored=True))))
    few = range(NEEDLES_AT_LEAST - len(depths))
    return Hidden(tuple(asks), tuple(Note(line(draw), draw.random()) for _ in few), line)


def _names(writer: Writer) -> tuple[str, ...]:
    """Code words too, where they are as long as the keys."""
    size = len(writer.after(" " + writer.keys[0]))
    return writer.codes if len(writer.after(" " + writer.codes[0])) == size else ()


def _variables(writer: Writer, depths: tuple[float, ...], draw: random.Random) -> Hidden:
    """Chains of assignments; each begins at its depth and goes on, evenly, to the end of the text."""
    places = _spread(depths, 2, draw)
    words = draw.sample([*writer.keys, *_names(writer)], len(places) * (HOPS + 1))
    values: dict[str, None] = {}
    while len(values) < len(places):
        values[writer.number(draw)] = None
    asks = []
    for number, (depth, value) in enumerate(zip(places, values, strict=True)):
        names = words[number * (HOPS + 1) : (number + 1) * (HOPS + 1)]
        texts = [f" Set {names[0]} to {value}."]
        texts += [f" Set {name} to {before}." for before, name in pairwise(names)]
        step = (1 - depth) / (HOPS + 1)
        notes = tuple(Note(text, depth + step * hop) for hop, text in enumerate(texts))
        pieces = [Piece(f" Which names hold {value}?{writer.tail}The names that hold {value} are")]
        for place, name in enumerate(names):
            pieces += [Piece(",")] if place else []
            pieces.append(Piece(" " + name, scored=True))
        asks.append(Ask(depth, notes, tuple(pieces)))
    distractors = tuple(note for ask in asks[len(depths) :] for note in ask.notes)
    return Hidden(tuple(asks[: len(depths)]), distractors)


_TASKS: dict[str, Callable[[Writer, tuple[float, ...], random.Random], Hidden]] = {
    NEEDLE: _needle,
    MULTI: _multi,
    KEY_VALUE: _key_value,
    VARIABLES: _variables,
}
