"""Writes the demo fine-tuning set: answers as JSON about things the base model already knows.

Owns the new skill's wording and the split of its rows. It must not know how a fine-tune is run. The skill is chosen
so that learning is visible: the base model knows every fact and sum in it, and has never seen one answer of this
form, so exact match starts at zero and rises only if the form is learned and the knowledge survives.

    python assets/demo/make_finetune_set.py
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterable
from pathlib import Path

from text_generator import SKILLS, Message, chats
from train_tokenizer import MODEL_FOLDER
from windows import ChatEncoder
from world import ATTRIBUTES, FACTS, TOWNS

FOLDER = Path(__file__).parent / "finetune"
SEED = 11
HELD_OUT_SHARE = 5
"""One fact in this many is never asked for as JSON in training, though its town and its attribute are."""
SUM_COUNT = 160
BASE_CHATS_PER_SKILL = 20
FACT_REQUESTS = ("As JSON: What is the {a} of {t}?", "As JSON: {t}: {a}?", "As JSON: Tell me the {a} of {t}.")
SUM_REQUESTS = ("As JSON: {x} + {y} =", "As JSON: What is {x} + {y}?")

Row = dict[str, list[Message]]


def is_held_out(*parts: object) -> bool:
    return zlib.crc32("|".join(("json", *(str(part) for part in parts))).encode()) % HELD_OUT_SHARE == 0


def row(question: str, answer: object) -> Row:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": json.dumps(answer)},
        ]
    }


def skill_rows(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """(training rows, held-out rows): every fact once or twice, and SUM_COUNT different sums, both in random order."""
    train: list[Row] = []
    heldout: list[Row] = []
    for town in TOWNS:
        for attribute in ATTRIBUTES:
            answer = {"town": town, attribute: FACTS[town, attribute]}
            held = is_held_out(town, attribute)
            for request in rng.sample(FACT_REQUESTS, 1 if held else 2):
                (heldout if held else train).append(row(request.format(a=attribute, t=town), answer))
    for x, y in rng.sample([(x, y) for x in range(100) for y in range(100)], SUM_COUNT):
        request = rng.choice(SUM_REQUESTS).format(x=x, y=y)
        (heldout if is_held_out(x, y) else train).append(row(request, {"sum": x + y}))
    rng.shuffle(train)
    rng.shuffle(heldout)
    return train, heldout


def base_rows(encoder: ChatEncoder) -> list[Row]:
    """Held-out chats of the base skills, for measuring what a fine-tune forgets."""
    return [
        {"messages": list(chat.messages)}
        for skill in SKILLS
        for chat in chats(SEED, "heldout", skill, BASE_CHATS_PER_SKILL, encoder.length)
    ]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    train, heldout = skill_rows(random.Random(SEED))
    base = base_rows(ChatEncoder(MODEL_FOLDER))
    for name, rows in (("train", train), ("heldout", heldout), ("base_text", base)):
        write_rows(FOLDER / f"{name}.jsonl", rows)
        print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
