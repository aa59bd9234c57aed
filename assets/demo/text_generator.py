"""Seeded generator of the demo model's chats: five skills, each with a held-out part.

Owns the wording of every skill and the rule of what is held out. It must not know about tokenizers, files or
training: the only outside thing it accepts is a function that measures the length of a sentence. A chat is a pure
function of the random generator it is given, so a seed names a data set.

Held out by construction: whole phrasings for facts, operand pairs for arithmetic, item lists for copy, slot
combinations for patterns, and sets of (key, code word) pairs for recall.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from world import (
    ATTRIBUTES,
    CODE_WORDS,
    DAYS,
    FACTS,
    KEY_WORDS,
    PEOPLE,
    SCENE_ACTORS,
    SCENE_ADJECTIVES,
    SCENE_PLACES,
    SCENE_PREPOSITIONS,
    SCENE_VERBS,
    SYMBOLS,
    THINGS,
    TOWNS,
    VERSES,
    WEATHER,
)

Split = Literal["train", "heldout"]
Message = dict[str, str]
MeasureLength = Callable[[str], int]
"""Length of a sentence with its leading space, in the caller's unit (tokens in training)."""

SYSTEM_TEXTS = ("You are a guide to the coast.", "You are a helpful assistant.", "Answer briefly.")
HELD_OUT_SHARE = 10
"""One combination in this many belongs to the held-out part."""

OPENERS = (
    "",
    "",
    "Please. ",
    "Hello! ",
    "Quick question. ",
    "I forgot. ",
    "Help me. ",
    "Think of {t}. ",
    "Now, ",
    "Sorry, ",
)
FACT_QUESTIONS = (
    "What is the {a} of {t}?",
    "Tell me the {a} of {t}.",
    "{t}: {a}?",
    "Name the {a} of {t}.",
    "Do you know {t}'s {a}?",
    "In {t}, what is the {a}?",
    "Which {a} does {t} have?",
    "Can you say {t}'s {a}?",
    "What {a} is found in {t}?",
    "For {t}, give the {a}.",
    "I need to know the {a} of {t}.",
    "The {a} of {t}, what is it?",
)
CLOSERS = ("", "", "", " Thank you.", " I want to know.", " Be brief.", " Is it well known?")

ADD_QUESTIONS = ("What is {x} + {y}?", "Add {x} + {y}.", "{x} + {y} =", "Work out {x} + {y}.")
SUBTRACT_QUESTIONS = ("What is {x} - {y}?", "Subtract {x} - {y}.", "{x} - {y} =", "Work out {x} - {y}.")
COPY_REQUESTS = ("Repeat: {items}", "Say again: {items}", "Copy this: {items}")


@dataclass(frozen=True, slots=True)
class Chat:
    """One conversation whose last message is the answer that is scored."""

    skill: str
    messages: tuple[Message, ...]
    choices: int = 0
    """How many answers a guesser who knows the form would choose between."""
    depth: float = 0.0
    """Recall only: place of the asked note among all sentences, 0 first to 1 last."""
    key_count: int = 0
    """Recall only: how many different keys stand in the text."""

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"]


@dataclass(frozen=True, slots=True)
class RecallShape:
    """What a recall chat should look like."""

    body_length: int
    """Notes and filler together, in the unit of the measuring function."""
    key_count: int = 3
    depth: float | None = None
    """Where the asked note stands, 0 to 1; None draws it at random."""
    turns: int = 1
    """How many different keys are asked about, one after another."""
    avoid_held_out_pairs: bool = False
    """Use only the (key, code word) pairs of the split: the rule is then about pairs, not about their combination."""


def belongs_to(split: Split, *parts: object) -> bool:
    """Whether a combination is in this part: a checksum of its words decides, the same on every machine."""
    checksum = zlib.crc32("|".join(str(part) for part in parts).encode())
    return (checksum % HELD_OUT_SHARE == 0) == (split == "heldout")


def _turns(rng: random.Random, pairs: list[tuple[str, str]]) -> tuple[Message, ...]:
    messages = [{"role": "system", "content": rng.choice(SYSTEM_TEXTS)}] if rng.random() < 0.1 else []
    for question, answer in pairs:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return tuple(messages)


def fact_sentence(town: str, attribute: str) -> str:
    return f"The {attribute} of {town} is {FACTS[town, attribute]}."


def facts_chat(rng: random.Random, split: Split) -> Chat:
    """A question about one town; in training one chat in three goes on to a second attribute."""
    town = rng.choice(TOWNS)
    first, second = rng.sample(list(ATTRIBUTES), 2)
    while True:
        phrasing = rng.choice(OPENERS) + rng.choice(FACT_QUESTIONS) + rng.choice(CLOSERS)
        if belongs_to(split, "facts", phrasing):
            break
    pairs = [(phrasing.format(a=first, t=town), fact_sentence(town, first))]
    if split == "train" and rng.random() < 0.33:
        pairs.append((f"And its {second}?", fact_sentence(town, second)))
    return Chat("facts", _turns(rng, pairs), choices=12)


def arithmetic_chat(rng: random.Random, split: Split) -> Chat:
    """Sum or difference of two numbers from 0 to 99; a difference is never negative."""
    while True:
        x, y = rng.randrange(100), rng.randrange(100)
        plus = rng.random() < 0.5
        if not plus and x < y:
            x, y = y, x
        if belongs_to(split, "arithmetic", x, "+" if plus else "-", y):
            break
    question = rng.choice(ADD_QUESTIONS if plus else SUBTRACT_QUESTIONS).format(x=x, y=y)
    answer = str(x + y if plus else x - y)
    return Chat("arithmetic", _turns(rng, [(question, answer)]), choices=199 if plus else 100)


def _copy_item(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(rng.choice((CODE_WORDS, KEY_WORDS, TOWNS, PEOPLE, *ATTRIBUTES.values())))
    if kind < 0.75:
        return str(rng.randrange(1000))
    if kind < 0.9:
        return rng.choice(SYMBOLS)
    letters = rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 3))
    word = "".join(letters)
    return word.upper() if rng.random() < 0.3 else word


def copy_chat(rng: random.Random, split: Split) -> Chat:
    """Say 3 to 6 unrelated items again, in order: words, numbers, symbols and nonsense."""
    while True:
        items = " ".join(_copy_item(rng) for _ in range(rng.randint(3, 6)))
        if rng.random() < 0.2:
            items = items.replace(" ", rng.choice(("", ", ", "-", "/")))
        if belongs_to(split, "copy", items):
            return Chat("copy", _turns(rng, [(rng.choice(COPY_REQUESTS).format(items=items), items)]), choices=100**3)


def _note(rng: random.Random) -> tuple[str, str]:
    person, thing = rng.choice(PEOPLE), rng.choice(list(THINGS))
    answer = f"Dear {person}, the {thing} is {THINGS[thing]} today. Warm wishes, the keeper."
    return f"Write a note to {person} about the {thing}.", answer


def _verse(rng: random.Random) -> tuple[str, str]:
    animal, town = rng.choice(list(VERSES)), rng.choice(TOWNS)
    first, second = VERSES[animal]
    return f"Write a verse about the {animal} of {town}.", f"In {town} the {animal} {first},\nit {second}."


def _report(rng: random.Random) -> tuple[str, str]:
    town, day = rng.choice(TOWNS), rng.choice(DAYS)
    answer = f"Report for {town}, {day}: {WEATHER[day]} over the {FACTS[town, 'river']}, all is well."
    return f"Write the {day} report for {town}.", answer


def _list(rng: random.Random) -> tuple[str, str]:
    town = rng.choice(TOWNS)
    attributes = rng.sample(list(ATTRIBUTES), 2)
    lines = [f"- {attribute}: {FACTS[town, attribute]}" for attribute in attributes]
    return f"List the {attributes[0]} and {attributes[1]} of {town}.", "\n".join(lines)


def patterns_chat(rng: random.Random, split: Split) -> Chat:
    """One of four small forms to write: a note, a verse, a report, a list."""
    while True:
        question, answer = rng.choice((_note, _verse, _report, _list))(rng)
        if belongs_to(split, "patterns", question):
            return Chat("patterns", _turns(rng, [(question, answer)]), choices=70)


def note_sentence(key: str, code: str) -> str:
    return f"The key of {key} is {code}."


def filler_sentence(rng: random.Random) -> str:
    """One sentence that holds no key: a scene (2 in 3) or a fact of the world."""
    if rng.random() < 0.33:
        return fact_sentence(rng.choice(TOWNS), rng.choice(list(ATTRIBUTES)))
    adjective, actor, verb = rng.choice(SCENE_ADJECTIVES), rng.choice(SCENE_ACTORS), rng.choice(SCENE_VERBS)
    return f"The {adjective} {actor} {verb} {rng.choice(SCENE_PREPOSITIONS)} the {rng.choice(SCENE_PLACES)}."


def _key_pairs(rng: random.Random, split: Split, shape: RecallShape) -> list[tuple[str, str]]:
    """`key_count` distinct keys with distinct codes; what is held out is the combination of all pairs.

    Holding out single pairs measures something else: a model that never met "amber is falcon" in thousands of texts
    learns that the two do not go together, and doubts its own eyes (87 % recalled, against 100 % in training).
    """
    while True:
        keys, codes = rng.sample(KEY_WORDS, shape.key_count), rng.sample(CODE_WORDS, shape.key_count)
        pairs = list(zip(keys, codes, strict=True))
        if shape.avoid_held_out_pairs:
            allowed = all(belongs_to(split, "recall", key, code) for key, code in pairs)
        else:
            allowed = belongs_to(split, "recall", *sorted(pairs))
        if allowed:
            return pairs


def recall_chat(rng: random.Random, split: Split, shape: RecallShape, measure: MeasureLength) -> Chat:
    """Filler with `key_count` notes in it, filling `body_length`, then questions about `turns` of the keys.

    The last question is about the note at `depth`.
    """
    pairs = _key_pairs(rng, split, shape)
    notes = [note_sentence(key, code) for key, code in pairs]
    left = shape.body_length - sum(measure(note) for note in notes)
    sentences: list[str] = []
    while True:
        sentence = filler_sentence(rng)
        left -= measure(sentence)
        if left < 0:
            break
        sentences.append(sentence)
    for note in notes[1:]:
        sentences.insert(rng.randint(0, len(sentences)), note)
    depth = rng.random() if shape.depth is None else shape.depth
    sentences.insert(round(depth * len(sentences)), notes[0])
    asked = [*pairs[1 : shape.turns], pairs[0]]
    turns = [(f"What is the key of {key}?", note_sentence(key, code)) for key, code in asked]
    turns[0] = (" ".join(["Read this.", *sentences, turns[0][0]]), turns[0][1])
    return Chat("recall", _turns(rng, turns), choices=shape.key_count, depth=depth, key_count=shape.key_count)


SHORT_SKILLS: dict[str, Callable[[random.Random, Split], Chat]] = {
    "facts": facts_chat,
    "arithmetic": arithmetic_chat,
    "copy": copy_chat,
    "patterns": patterns_chat,
}
SKILLS: tuple[str, ...] = (*SHORT_SKILLS, "recall")


def chats(seed: int, split: Split, skill: str, count: int, measure: MeasureLength = len) -> Iterator[Chat]:
    """`count` chats of one skill; recall chats have 3 to 6 keys in a body of 180 (of `measure`'s units)."""
    rng = random.Random(f"{seed}|{split}|{skill}")
    for _ in range(count):
        if skill == "recall":
            yield recall_chat(rng, split, RecallShape(body_length=180, key_count=rng.randint(3, 6)), measure)
        else:
            yield SHORT_SKILLS[skill](rng, split)
