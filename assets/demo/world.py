"""The made-up world the demo model learns: towns, their facts, and every word list.

Owns the vocabulary of the demo data and the one fixed assignment of facts to towns. It must not know about
chats, tokens or files: `text_generator.py` turns this world into conversations. Everything is invented here, and
the assignment is drawn once from a fixed seed, so the same facts hold in every data set ever generated.
"""

# ruff: noqa: SIM905  (word lists read better as one string)

from __future__ import annotations

import random

WORLD_SEED = 20

TOWNS: tuple[str, ...] = tuple(
    "Velmar Torrin Askel Brindow Caspen Dunmere Elvash Fenwick Gorlan Hestor Ivarn Jolsted Kirrow Lundry Morvane "
    "Nethby Ostrel Pellan Quorn Ravik Selwin Tamsel Ulmont Varrow Wendel Yarrin Zelby Arbury Boskel Corvane "
    "Drimmel Eskway Farlow Galden Hollin Istrad".split()
)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "river": tuple("Sune Arle Tolva Brae Isk Menna Oder Wend Lirra Peth Rill Vash".split()),
    "craft": tuple("glass rope clay silk paper bells boats lamps clocks knives carpets flutes".split()),
    "animal": tuple("heron otter lynx badger crane hare stoat raven seal goat owl toad".split()),
    "colour": tuple("red blue green grey white black gold silver brown violet orange pink".split()),
    "dish": tuple("soup bread pie stew cheese dumplings porridge eel cake pickles beans honey".split()),
    "tree": tuple("oak pine birch willow elm ash cedar maple larch yew beech alder".split()),
}
"""Attribute name -> the 12 values it can take; guessing a fact blindly is right once in 12."""

PEOPLE: tuple[str, ...] = tuple("Mira Tomas Anneke Bron Cilla Dario Edda Finn Greta Hugo Ilse Jarek".split())
DAYS: tuple[str, ...] = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())

THINGS: dict[str, str] = {
    "harbour": "quiet",
    "market": "busy",
    "mill": "broken",
    "bridge": "narrow",
    "orchard": "ripe",
    "tower": "tall",
    "garden": "wet",
    "school": "empty",
    "lamp": "bright",
    "road": "muddy",
    "ferry": "late",
    "well": "deep",
}
"""Thing a note can be about -> the one word the note always says of it."""

WEATHER: dict[str, str] = {
    "Monday": "rain",
    "Tuesday": "fog",
    "Wednesday": "sun",
    "Thursday": "wind",
    "Friday": "snow",
    "Saturday": "hail",
    "Sunday": "frost",
}

VERSES: dict[str, tuple[str, str]] = {
    "heron": ("stands in the stream", "wakes from a dream"),
    "otter": ("swims in the night", "dives out of sight"),
    "lynx": ("walks on the snow", "is silent and slow"),
    "badger": ("digs in the ground", "makes hardly a sound"),
    "crane": ("flies to the sea", "calls loudly and free"),
    "hare": ("runs up the hill", "sits perfectly still"),
    "raven": ("sings on the wall", "is king of them all"),
    "seal": ("sleeps on the stone", "lies lazy alone"),
    "goat": ("climbs to the top", "sees no need to stop"),
    "owl": ("hunts in the dark", "flies over the park"),
}
"""Animal -> the two rhyming halves of its verse."""

KEY_WORDS: tuple[str, ...] = tuple(
    "amber jade coral flint opal topaz quartz slate pearl garnet basalt cobalt copper nickel zinc iron "
    "chalk ivory onyx ruby tin brass bronze steel".split()
)
CODE_WORDS: tuple[str, ...] = tuple(
    "falcon lantern anchor barrel candle dagger engine feather garland hammer island jacket kettle ladder mirror "
    "needle orchid pepper quiver ribbon saddle temple umbrella velvet window yellow zipper basket cannon dragon "
    "forest guitar helmet insect jungle kitten lemon magnet napkin ocean parrot rabbit spider tunnel violin walnut "
    "button castle".split()
)
"""A recall note says "The key of <key word> is <code word>."."""

SYMBOLS: tuple[str, ...] = tuple("! \" # $ % & ' ( ) * + - / : ; < = > ? @ [ \\ ] ^ _ ` { | } ~".split(" "))

SCENE_ADJECTIVES = tuple("old young tired happy quiet clever hungry lonely".split())
SCENE_ACTORS = tuple("miller baker sailor farmer teacher weaver smith painter keeper singer".split())
SCENE_VERBS = tuple("waits sings works rests reads cooks sleeps walks".split())
SCENE_PLACES = tuple("bridge mill harbour tower orchard market well garden road ferry".split())
SCENE_PREPOSITIONS = tuple("by near behind under".split())


def _draw_facts() -> dict[tuple[str, str], str]:
    """(town, attribute) -> value; each value is used by exactly len(TOWNS) / 12 = 3 towns, so none is a good guess."""
    rng = random.Random(WORLD_SEED)
    facts: dict[tuple[str, str], str] = {}
    for attribute, values in ATTRIBUTES.items():
        pool = list(values) * (len(TOWNS) // len(values))
        rng.shuffle(pool)
        facts.update({(town, attribute): value for town, value in zip(TOWNS, pool, strict=True)})
    return facts


FACTS: dict[tuple[str, str], str] = _draw_facts()
