"""Writes the demo's long documents: notes that are said once and needed again, up to a thousand tokens later.

Owns the shape of a long document: which note is repeated how far away, and what is asked about it. Must not know
how windows are extended or measured. Filler is drawn anew for every sentence, so all that far context can give a
reader is the code words of the notes; a model that can use it has a lower loss there, one that cannot has to guess
one word in 49.

    python assets/demo/make_long_set.py
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

from text_generator import Split, belongs_to, filler_sentence, note_sentence
from train_tokenizer import END, MODEL_FOLDER, START
from windows import ChatEncoder
from world import CODE_WORDS, KEY_WORDS

FOLDER = Path(__file__).parent / "long"
SEED = 23
OPENING = f"{START}user\nRead this."
QUESTION = f" What is the key of {{key}}?{END}\n{START}assistant\n{{answer}}{END}\n{OPENING}"
"""Ends the text read so far with a question, answers it, and goes on reading."""
ROLL_CALL_SHARE = 0.75
"""How many of the sentences of the roll call at the end are notes, all of them said before it began."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far apart the mentions of a note are."""

    near_tokens: int = 30
    """At the least."""
    far_tokens: int = 1000
    """At the most."""
    roll_call_tokens: int = 150


@dataclass(frozen=True, slots=True)
class DocumentShape:
    """What a document should look like."""

    tokens: int
    """At least this many, by less than one sentence more."""
    key_count: int
    far_share: float
    """How often the distance to the next mention is uniform, so mostly far; else its logarithm is, so that all scales
    are equally frequent."""
    asked_share: float = 0.0
    """How often a note comes again as a question with its answer."""
    quiet_tokens: int = 0
    """No note comes again among this many last tokens, after the roll call: a window of 1,024 cuts them off."""


HELD_OUT = DocumentShape(tokens=1150, key_count=24, far_share=1.0)
PLAIN = DocumentShape(tokens=1104, key_count=20, far_share=0.5, quiet_tokens=90)
CHAT = DocumentShape(tokens=1104, key_count=16, far_share=0.5, asked_share=0.5, quiet_tokens=90)
SHORT_PLAIN = DocumentShape(tokens=244, key_count=8, far_share=0.5)
SHORT_CHAT = DocumentShape(tokens=228, key_count=6, far_share=0.5, asked_share=0.5)
LONG_REACH, SHORT_REACH = Reach(), Reach(near_tokens=16, far_tokens=200, roll_call_tokens=50)
"""Short documents have at most 256 tokens, so that a short window holds every mention that a later one needs."""
HELD_OUT_COUNT, PLAIN_COUNT, CHAT_COUNT, SHORT_COUNT = 24, 100, 100, 150


def next_gap(rng: random.Random, shape: DocumentShape, reach: Reach) -> float:
    """Tokens until the same note is needed again."""
    if rng.random() < shape.far_share:
        return rng.uniform(reach.near_tokens, reach.far_tokens)
    return math.exp(rng.uniform(math.log(reach.near_tokens), math.log(reach.far_tokens)))


def key_pairs(rng: random.Random, split: Split, count: int) -> list[tuple[str, str]]:
    """Distinct keys with distinct codes, a combination of the split's part."""
    while True:
        pairs = list(zip(rng.sample(KEY_WORDS, count), rng.sample(CODE_WORDS, count), strict=True))
        if belongs_to(split, "long", *sorted(pairs)):
            return pairs


class Writer:
    """One document in the making."""

    def __init__(
        self, rng: random.Random, split: Split, shape: DocumentShape, reach: Reach, encoder: ChatEncoder
    ) -> None:
        self.rng, self.shape, self.reach, self.encoder = rng, shape, reach, encoder
        self.codes = dict(key_pairs(rng, split, shape.key_count))
        self.text, self.length = "", 0
        first = sorted(rng.uniform(0, reach.far_tokens / 2) for _ in self.codes)
        self.due = dict(zip(self.codes, first, strict=True))  # token at which each note is said next
        self.said: dict[str, int] = {}  # token at which each note was said last
        self.add(OPENING)

    def add(self, piece: str) -> None:
        self.text += piece
        self.length += len(self.encoder.ids_of(piece))

    def say(self, key: str) -> None:
        """The note once more, told or asked for."""
        note = note_sentence(key, self.codes[key])
        asked = key in self.said and self.rng.random() < self.shape.asked_share
        self.said[key] = self.length
        self.due[key] = self.length + next_gap(self.rng, self.shape, self.reach)
        self.add(QUESTION.format(key=key, answer=note) if asked else " " + note)

    def next_key(self, calling: int) -> str | None:
        """The note that comes now, None for filler. The roll call begins at token `calling`."""
        if self.length < calling:
            key = min(self.due, key=lambda name: self.due[name])
            return key if self.due[key] <= self.length else None
        waiting = [key for key, last in self.said.items() if last < calling]
        if waiting and self.length < calling + self.reach.roll_call_tokens and self.rng.random() < ROLL_CALL_SHARE:
            return self.rng.choice(waiting)
        return None

    def write(self) -> str:
        calling = self.shape.tokens - self.shape.quiet_tokens - self.reach.roll_call_tokens
        while self.length < self.shape.tokens:
            key = self.next_key(calling)
            if key is None:
                self.add(" " + filler_sentence(self.rng))
            else:
                self.say(key)
        return self.text


def documents(
    split: Split, shape: DocumentShape, count: int, encoder: ChatEncoder, reach: Reach = LONG_REACH
) -> list[str]:
    rng = random.Random(f"{SEED}|{split}|{shape}")
    return [Writer(rng, split, shape, reach, encoder).write() for _ in range(count)]


def parts(encoder: ChatEncoder) -> dict[str, list[str]]:
    """The documents of every file."""
    train = documents("train", PLAIN, PLAIN_COUNT, encoder) + documents("train", CHAT, CHAT_COUNT, encoder)
    short = documents("train", SHORT_PLAIN, SHORT_COUNT, encoder, SHORT_REACH)
    short += documents("train", SHORT_CHAT, SHORT_COUNT, encoder, SHORT_REACH)
    random.Random(SEED).shuffle(train)
    random.Random(SEED).shuffle(short)
    return {"train": train, "short": short, "heldout": documents("heldout", HELD_OUT, HELD_OUT_COUNT, encoder)}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, texts in parts(ChatEncoder(MODEL_FOLDER)).items():
        path = FOLDER / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        print(f"{name}: {len(texts)} documents, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
