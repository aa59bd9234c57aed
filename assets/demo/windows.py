"""Chats as fixed-length token windows with a weight for every target token.

Owns the encoding of a chat (equal to the chat template's), packing, and the dense key-value windows that teach
retrieval. It must not know about the model. A batch is a pure function of (seed, stage, step), which is what makes
a resumed training continue exactly where it stopped.

Dims: B windows, T = CONTEXT_TOKENS inputs; a window holds T + 1 tokens, the last T of them are targets.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from text_generator import SHORT_SKILLS, SKILLS, Chat, RecallShape, recall_chat
from tokenizers import Tokenizer
from train_tokenizer import CONTEXT_TOKENS, END, START
from world import CODE_WORDS, KEY_WORDS

CONTEXT_WEIGHT = 0.15
"""Weight of a token that is not part of an answer; answers weigh 1."""
WINDOW_KINDS = ("dense", "recall", "packed")
KINDS: tuple[str, ...] = (*SKILLS, "dense")
PAIR_FORM = " {k} {c}"
DENSE_FORMS = (PAIR_FORM, " {k} is {c}.", " The key of {k} is {c}.")
"""From the barest form of a dense pair to the one that recall chats use."""
QUESTION_TOKENS = 32
"""Upper bound of what a recall chat needs per question: the question, the answer and their headers."""


@dataclass(frozen=True, slots=True)
class Batch:
    ids: np.ndarray  # (B, T + 1) int64
    weights: np.ndarray  # (B, T) float32, weight of target ids[:, 1:]
    kinds: np.ndarray  # (B, T) int64, index into KINDS of the target's chat


@dataclass(frozen=True, slots=True)
class StageShape:
    """The batches of one training stage."""

    token_count: int
    """T of this stage."""
    window_count: int
    """B of this stage."""
    forms: tuple[str, ...]
    """Wordings of a dense pair."""
    most_keys: int
    """Dense windows draw 2 to this many keys."""
    window_shares: tuple[float, float, float] = (1.0, 0.0, 0.0)
    """How often a window is dense, recall (a recall chat, then packed chats) or packed chats only."""
    packing_shares: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """How often a packed chat is of each of SHORT_SKILLS: facts, arithmetic, copy, patterns."""
    avoid_held_out_pairs: bool = False
    """Recall chats leave a tenth of all (key, code word) pairs out."""


STAGES: dict[str, StageShape] = {
    "pairs16": StageShape(16, 64, (PAIR_FORM,), most_keys=3),
    "pairs64": StageShape(64, 64, (PAIR_FORM,), most_keys=8),
    "recall": StageShape(CONTEXT_TOKENS, 16, DENSE_FORMS, most_keys=8),
    "mixed": StageShape(CONTEXT_TOKENS, 16, DENSE_FORMS, 20, (0.05, 0.3, 0.65), (0.17, 0.55, 0.16, 0.12), True),
    "drill": StageShape(CONTEXT_TOKENS, 16, DENSE_FORMS, 20, (0.03, 0.25, 0.72), (0.06, 0.68, 0.2, 0.06)),
}
"""In order. Attention starts out uniform, so a head that looks at the token before, which any lookup of a key needs,
gets a clear signal in 16 tokens and hardly any in 256: started at 256, key matching had not formed after 450 steps.
The drill comes when facts, patterns and recall are there: more room for arithmetic and copy, which are slow, and every
(key, code word) pair, so that no pair looks impossible."""


@dataclass(frozen=True, slots=True)
class Encoded:
    ids: list[int]
    is_answer: list[bool]


class ChatEncoder:
    """Encodes chats exactly as the chat template would, and marks the answer tokens."""

    def __init__(self, model_folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
        self.start, self.end = self.tokenizer.token_to_id(START), self.tokenizer.token_to_id(END)
        self.ids_of = cache(self._ids_of)
        self.length = cache(lambda sentence: len(self._ids_of(" " + sentence)))

    def _ids_of(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode(self, chat: Chat) -> Encoded:
        """Answer tokens are an assistant's content and the end mark after it."""
        ids: list[int] = []
        is_answer: list[bool] = []
        for message in chat.messages:
            head = [self.start, *self.ids_of(message["role"] + "\n")]
            content = [*self._ids_of(message["content"]), self.end]
            tail = self.ids_of("\n")
            ids += [*head, *content, *tail]
            scored = message["role"] == "assistant"
            is_answer += [False] * len(head) + [scored] * len(content) + [False] * len(tail)
        return Encoded(ids, is_answer)


def dense_window(rng: random.Random, encoder: ChatEncoder, shape: StageShape) -> tuple[list[int], list[float]]:
    """Key-value pairs said again and again in random order; only values of keys seen before are weighed."""
    form = rng.choice(shape.forms)
    key_count = rng.randint(2, shape.most_keys)
    keys, codes = rng.sample(KEY_WORDS, key_count), rng.sample(CODE_WORDS, key_count)
    ids: list[int] = []
    weights: list[float] = []
    seen: set[int] = set()
    while len(ids) <= shape.token_count:
        index = rng.randrange(key_count)
        before, after = form.split(" {c}")
        head = encoder.ids_of(before.format(k=keys[index]))
        tail = encoder.ids_of(after) if after else []
        ids += [*head, *encoder.ids_of(" " + codes[index]), *tail]
        weights += [0.0] * len(head) + [1.0 if index in seen else 0.0] + [0.0] * len(tail)
        seen.add(index)
    return ids[: shape.token_count + 1], weights[: shape.token_count + 1]


def training_recall_chat(rng: random.Random, encoder: ChatEncoder, avoid_held_out_pairs: bool) -> Chat:
    """Two in three fill the whole window; the rest are shorter. One to four questions, three to eight keys."""
    turns = rng.randint(1, 4)
    room = CONTEXT_TOKENS - 8 - QUESTION_TOKENS * turns
    body = room if rng.random() < 0.67 else rng.randint(40, room)
    most_keys = min(8, body // 8)
    key_count = rng.randint(max(3, turns), max(3, turns, most_keys))
    shape = RecallShape(body, key_count, turns=turns, avoid_held_out_pairs=avoid_held_out_pairs)
    return recall_chat(rng, "train", shape, encoder.length)


def chat_window(
    rng: random.Random, encoder: ChatEncoder, shape: StageShape, recall: bool
) -> tuple[list[int], list[float], list[int]]:
    """Whole chats one after another from position 0, at most one of them recall, the last one cut at the end."""
    ids: list[int] = []
    weights: list[float] = []
    kinds: list[int] = []
    skills = list(SHORT_SKILLS)
    while len(ids) <= CONTEXT_TOKENS:
        if recall and not ids:
            chat = training_recall_chat(rng, encoder, shape.avoid_held_out_pairs)
        else:
            chat = SHORT_SKILLS[rng.choices(skills, shape.packing_shares)[0]](rng, "train")
        encoded = encoder.encode(chat)
        ids += encoded.ids
        weights += [1.0 if scored else CONTEXT_WEIGHT for scored in encoded.is_answer]
        kinds += [KINDS.index(chat.skill)] * len(encoded.ids)
    end = CONTEXT_TOKENS + 1
    return ids[:end], weights[:end], kinds[:end]


def make_batch(encoder: ChatEncoder, seed: int, stage: str, step: int) -> Batch:
    """Batch number `step` of one of the STAGES."""
    rng = random.Random(f"{seed}|{stage}|{step}")
    shape = STAGES[stage]
    rows: list[tuple[list[int], list[float], list[int]]] = []
    for _ in range(shape.window_count):
        kind = "dense" if shape.window_shares[0] == 1 else rng.choices(WINDOW_KINDS, shape.window_shares)[0]
        if kind == "dense":
            ids, weights = dense_window(rng, encoder, shape)
            rows.append((ids, weights, [KINDS.index("dense")] * len(ids)))
        else:
            rows.append(chat_window(rng, encoder, shape, kind == "recall"))
    return Batch(
        ids=np.array([row[0] for row in rows], dtype=np.int64),
        weights=np.array([row[1][1:] for row in rows], dtype=np.float32),
        kinds=np.array([row[2][1:] for row in rows], dtype=np.int64),
    )
