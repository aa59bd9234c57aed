"""The tokens a proof is measured on: real text through the model's own tokenizer.

Owns where the text comes from and how many tokens are taken. Must not know models. Where a folder has no usable
tokenizer the ids are drawn at random, and the words that go into the certificate say so.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from engine.data.rows import Message
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.resources import demo_dir, profiles_dir

RANDOM_SEED = 20_261
LONGEST_ROW = 512
STRANGE_TEXT = 1.5
"""So many times more tokens per character of English than of the demo's few words: this tokenizer is the demo's."""


@dataclass(frozen=True, slots=True)
class ProofText:
    """One row of token ids, and where it came from in words."""

    ids: tuple[int, ...]
    origin: str


def proof_text(model_dir: Path, vocab_size: int, tokens: int, file: Path | None) -> ProofText:
    """`tokens` ids below `vocab_size`. Raises EngineError `proof.text` when `file` cannot be used."""
    given, name = (_read(file), file.name) if file is not None else ("", "the demo corpus")
    try:
        tokenizer = ChatTokenizer.load(model_dir)
        ids = tokenizer.text_ids(given) if file is not None else _demo_ids(tokenizer)
        why = "its tokenizer has more tokens than the model" if ids and max(ids) >= vocab_size else ""
    except EngineError as error:
        ids, why = (), error.what.rstrip(".")
    if why:
        return ProofText(_random_ids(vocab_size, tokens), f"{tokens} random token ids, seed {RANDOM_SEED} ({why})")
    if len(ids) < 2:
        raise EngineError(
            "proof.text",
            f"{name} has too little text to measure anything.",
            cause=f"It gives {len(ids)} tokens.",
            next_step="Give a text of a few paragraphs.",
        )
    taken = ids[:tokens]
    return ProofText(taken, f"{len(taken)} tokens of {name}")


def _random_ids(vocab_size: int, tokens: int) -> tuple[int, ...]:
    draw = random.Random(RANDOM_SEED)
    return tuple(draw.randrange(vocab_size) for _ in range(tokens))


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(
            "proof.text",
            f"Cannot read {file} as text.",
            cause=str(error),
            next_step="Give a UTF-8 text file.",
        ) from error


def _demo_ids(tokenizer: ChatTokenizer) -> tuple[int, ...]:
    """Plain English and the demo's own dialogues, first the one that the tokenizer was made for."""
    english = (profiles_dir() / "base_text.txt").read_text("utf-8")
    rows = (demo_dir() / "finetune" / "base_text.jsonl").read_text("utf-8").splitlines()
    said = [[Message(turn["role"], turn["content"]) for turn in json.loads(row)["messages"]] for row in rows]
    dialogues = "\n".join(turn.content for turns in said for turn in turns)
    plain, spoken = tokenizer.text_ids(english), tokenizer.text_ids(dialogues)
    if len(plain) / len(english) < STRANGE_TEXT * len(spoken) / len(dialogues):
        return plain + spoken
    try:
        chats = [tokenizer.chat_ids(turns) for turns in said]
    except EngineError:
        chats = [spoken]
    return tuple(token for chat in chats for token in chat) + plain
