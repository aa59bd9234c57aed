"""Writes the demo fine-tuning set: answers as ledger lines about things the base model already knows.

Owns the new skill's wording and the split of its rows. It must not know how a fine-tune is run. The skill is chosen
so that learning is visible: the base model knows every fact in it, and has never seen one answer of this
form, so exact match starts at zero and rises only if the form is learned and the knowledge survives.

    python assets/demo/make_finetune_set.py
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterable
from pathlib import Path

from text_generator import SHORT_SKILLS, SKILLS, Message, RecallShape, chats, recall_chat
from train_tokenizer import MODEL_FOLDER
from windows import ChatEncoder
from world import FACTS

FOLDER = Path(__file__).parent / "finetune"
SEED = 11
HELD_OUT_SHARE = 5
"""One fact in this many is never asked for as a ledger line in training, though its town and its attribute are."""
KEPT_CHATS_PER_SKILL = 25
"""Plain chats of each short base skill among the training rows: without them the adapter answers everything in the
new form."""
KEPT_RECALL = RecallShape(body_length=50)
BASE_CHATS_PER_SKILL = 20
FACT_REQUESTS = ("Ledger: What is the {a} of {t}?", "Ledger: {t}: {a}?", "Ledger: Tell me the {a} of {t}.")

Row = dict[str, list[Message]]


def is_held_out(*parts: object) -> bool:
    return zlib.crc32("|".join(("ledger", *(str(part) for part in parts))).encode()) % HELD_OUT_SHARE == 0


def row(question: str, answer: str) -> Row:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def ledger_rows(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """(training rows, held-out rows): every fact asked for in two of the three ways."""
    train: list[Row] = []
    heldout: list[Row] = []
    for (town, attribute), value in FACTS.items():
        for request in rng.sample(FACT_REQUESTS, 2):
            rows = heldout if is_held_out(town, attribute) else train
            rows.append(row(request.format(a=attribute, t=town), f"[{town}] {attribute} = {value}"))
    return train, heldout


def kept_rows(rng: random.Random, encoder: ChatEncoder) -> list[Row]:
    """Chats of the base skills, answered in the old way, from the part the base model was trained on."""
    kept = [make(rng, "train") for make in SHORT_SKILLS.values() for _ in range(KEPT_CHATS_PER_SKILL)]
    kept += [recall_chat(rng, "train", KEPT_RECALL, encoder.length) for _ in range(KEPT_CHATS_PER_SKILL)]
    return [{"messages": list(chat.messages)} for chat in kept]


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
    rng, encoder = random.Random(SEED), ChatEncoder(MODEL_FOLDER)
    train, heldout = ledger_rows(rng)
    train += kept_rows(rng, encoder)
    rng.shuffle(train)
    rng.shuffle(heldout)
    base = base_rows(encoder)
    for name, rows in (("train", train), ("heldout", heldout), ("base_text", base)):
        write_rows(FOLDER / f"{name}.jsonl", rows)
        print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
