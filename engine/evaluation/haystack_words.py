"""Words of needles and hay: keys, codes, and sentences that hold neither.

Owns the lists. Must not know tokens. Every word is plain English, so that most tokenizers know it as one or two
tokens; the first of a tokenizer's
most common length are the ones that get used (`engine.evaluation.haystack_frame`).
"""

# ruff: noqa: SIM905  (word lists read better as one string)

from __future__ import annotations

import random

KEY_WORDS: tuple[str, ...] = tuple(
    "amber jade coral flint opal topaz quartz slate pearl garnet basalt cobalt copper nickel zinc iron chalk ivory "
    "onyx ruby tin brass bronze steel silver marble granite carbon diamond crystal sapphire emerald lead sand clay "
    "salt sulphur mercury platinum graphite limestone sandstone pebble concrete plaster rubber leather cotton linen "
    "wool satin canvas timber bamboo maple cedar willow ebony".split()
)
CODE_WORDS: tuple[str, ...] = tuple(
    "falcon lantern anchor barrel candle dagger engine feather garland hammer island jacket kettle ladder mirror "
    "needle orchid pepper quiver ribbon saddle temple umbrella velvet window yellow zipper basket cannon dragon "
    "forest guitar helmet insect jungle kitten lemon magnet napkin ocean parrot rabbit spider tunnel violin walnut "
    "button castle camera desert eagle finger horse iceberg jewel kingdom lion mountain notebook orange "
    "pocket queen river shadow table uncle valley wagon tiger bottle cherry doctor elephant flower giant hotel "
    "juice knife letter nurse oven pencil robot sugar ticket village winter".split()
)
ADJECTIVES: tuple[str, ...] = tuple("old young tired happy quiet clever hungry lonely".split())
ACTORS: tuple[str, ...] = tuple("miller baker sailor farmer teacher weaver smith painter keeper singer".split())
VERBS: tuple[str, ...] = tuple("waits sings works rests reads cooks sleeps walks".split())
PREPOSITIONS: tuple[str, ...] = tuple("by near behind under".split())
PLACES: tuple[str, ...] = tuple("bridge mill harbour tower orchard market well garden road ferry".split())


def scene(draw: random.Random) -> str:
    """One of 25,600 sentences without a key, a code or a number; it begins with a space."""
    adjective, actor, verb = draw.choice(ADJECTIVES), draw.choice(ACTORS), draw.choice(VERBS)
    return f" The {adjective} {actor} {verb} {draw.choice(PREPOSITIONS)} the {draw.choice(PLACES)}."


def number(draw: random.Random, digits: int) -> str:
    """A number of exactly `digits` digits; the first is not 0."""
    return str(draw.randrange(10 ** (digits - 1), 10**digits))
