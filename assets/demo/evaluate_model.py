"""Scores the demo model on held-out chats and writes `scores.json` and the model card beside it.

Owns what is measured and how the card reads. It must not know how the model was trained beyond the counters the
training left behind. Exact match is counted without generating: greedy decoding reproduces an answer exactly when
every answer token, the end mark included, is the most likely one after the tokens before it.

    python assets/demo/evaluate_model.py
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from text_generator import SKILLS, Chat, RecallShape, chats, recall_chat
from train_tokenizer import CONTEXT_TOKENS, MODEL_FOLDER
from transformers import AutoModelForCausalLM
from windows import ChatEncoder

HELD_OUT_SEED = 1001
CHATS_PER_SKILL = 400
DEPTH_BUCKETS = 8
KEY_COUNTS = (3, 5, 8)
CHATS_PER_CELL = 50
FULL_WINDOW_BODY_TOKENS = 216
"""Body of a recall chat that, with headers, question and answer, fills 236 to 256 tokens."""
BATCH_CHATS = 32
CHANCE_NOTES = {
    "facts": "one value in 12",
    "arithmetic": "one result in 100 to 199",
    "copy": "three or more items out of hundreds",
    "patterns": "at best one slot value in 7",
    "recall": "one key in 3 to 6",
}


@dataclass(frozen=True, slots=True)
class Score:
    """Over the answer tokens of `chat_count` chats."""

    chat_count: int
    loss: float
    """Mean negative log-likelihood of an answer token, nats."""
    perplexity: float
    exact_match: float
    """Share of chats whose whole answer is reproduced by greedy decoding."""
    chance: float
    """Exact match of a guesser who knows the form of the answer: mean of 1 / choices."""


def score_chats(model: torch.nn.Module, encoder: ChatEncoder, scored: Iterable[Chat]) -> Score:
    """Scores the last answer of every chat; earlier answers are given as context."""
    items = list(scored)
    losses: list[float] = []
    matches = 0
    for begin in range(0, len(items), BATCH_CHATS):
        rows = [encoder.encode(chat) for chat in items[begin : begin + BATCH_CHATS]]
        longest = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in rows])  # (B, T), padded on the right
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits.float()  # (B, T, V)
        for index, (chat, row) in enumerate(zip(items[begin:], rows, strict=False)):
            end = max(place for place, is_answer in enumerate(row.is_answer) if is_answer) + 1
            start = end - len(encoder.ids_of(chat.answer)) - 1
            predicted, target = logits[index, start - 1 : end - 1], ids[index, start:end]
            losses += torch.nn.functional.cross_entropy(predicted, target, reduction="none").tolist()
            matches += bool((predicted.argmax(-1) == target).all())
    loss = sum(losses) / len(losses)
    chance = sum(1 / chat.choices for chat in items) / len(items)
    return Score(len(items), loss, math.exp(loss), matches / len(items), chance)


def full_window_recall_chats(encoder: ChatEncoder, key_count: int, bucket: int, count: int) -> list[Chat]:
    """Held-out recall chats that fill the window, the asked note inside depth bucket `bucket` of DEPTH_BUCKETS."""
    rng = random.Random(f"{HELD_OUT_SEED}|depth|{key_count}|{bucket}")
    made = []
    for _ in range(count):
        shape = RecallShape(FULL_WINDOW_BODY_TOKENS, key_count, depth=(bucket + rng.random()) / DEPTH_BUCKETS)
        made.append(recall_chat(rng, "heldout", shape, encoder.length))
    return made


def recall_by_depth(model: torch.nn.Module, encoder: ChatEncoder, count: int) -> dict[int, list[float]]:
    """Number of keys -> exact match in each depth bucket."""
    table: dict[int, list[float]] = {}
    for key_count in KEY_COUNTS:
        cells = [full_window_recall_chats(encoder, key_count, bucket, count) for bucket in range(DEPTH_BUCKETS)]
        table[key_count] = [score_chats(model, encoder, cell).exact_match for cell in cells]
    return table


def load_model(folder: Path) -> torch.nn.Module:
    """The bf16 file as it is, computed in bf16."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True).eval()


def evaluate(folder: Path) -> dict[str, object]:
    """Everything the card shows, as plain JSON."""
    model, encoder = load_model(folder), ChatEncoder(folder)
    skills = {
        skill: asdict(
            score_chats(model, encoder, chats(HELD_OUT_SEED, "heldout", skill, CHATS_PER_SKILL, encoder.length))
        )
        for skill in SKILLS
    }
    table = recall_by_depth(model, encoder, CHATS_PER_CELL)
    by_depth = [sum(row[bucket] for row in table.values()) / len(table) for bucket in range(DEPTH_BUCKETS)]
    return {
        "held_out_seed": HELD_OUT_SEED,
        "parameter_count": sum(parameter.numel() for parameter in model.parameters()),
        "weight_file_bytes": (folder / "model.safetensors").stat().st_size,
        "skills": skills,
        "recall_chats_per_cell": CHATS_PER_CELL,
        "recall_by_key_count_and_depth": table,
        "recall_by_depth": by_depth,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def skill_table(skills: dict[str, dict[str, float]]) -> str:
    lines = [
        "| skill | chats | loss (nats/token) | perplexity | exact match | chance | chance is |",
        "|---|---|---|---|---|---|---|",
    ]
    for skill, score in skills.items():
        lines.append(
            f"| {skill} | {score['chat_count']} | {score['loss']:.4f} | {score['perplexity']:.3f} "
            f"| {score['exact_match']:.1%} | {score['chance']:.1%} | {CHANCE_NOTES[skill]} |"
        )
    return "\n".join(lines)


def depth_table(table: dict[int, list[float]], by_depth: list[float]) -> str:
    edges = [f"{bucket / DEPTH_BUCKETS:.3g}-{(bucket + 1) / DEPTH_BUCKETS:.3g}" for bucket in range(DEPTH_BUCKETS)]
    lines = [f"| keys | {' | '.join(edges)} |", "|---" * (DEPTH_BUCKETS + 1) + "|"]
    for key_count, row in table.items():
        lines.append(f"| {key_count} | {' | '.join(f'{value:.0%}' for value in row)} |")
    lines.append(f"| all | {' | '.join(f'{value:.1%}' for value in by_depth)} |")
    return "\n".join(lines)


def write_card(folder: Path, scores: dict[str, object], record: dict[str, object]) -> None:
    """README.md from the template beside this script, with every figure filled in."""
    template = (Path(__file__).parent / "model_card_template.md").read_text()
    card = template.format(
        parameters_millions=scores["parameter_count"] / 1e6,
        file_megabytes=scores["weight_file_bytes"] / 1e6,
        context=CONTEXT_TOKENS,
        skills=skill_table(scores["skills"]),
        depths=depth_table(scores["recall_by_key_count_and_depth"], scores["recall_by_depth"]),
        per_bucket=CHATS_PER_CELL * len(KEY_COUNTS),
        held_out_seed=HELD_OUT_SEED,
        plan=json.dumps(record["plan"]),
        step=record["step"],
        seconds=record["seconds"],
        **scores["versions"],
    )
    (folder / "README.md").write_text(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-folder", type=Path, default=MODEL_FOLDER)
    arguments = parser.parse_args()
    scores = evaluate(arguments.model_folder)
    record = json.loads((arguments.model_folder / "training.json").read_text())
    (arguments.model_folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    write_card(arguments.model_folder, scores, record)
    print(skill_table(scores["skills"]))
    print(depth_table(scores["recall_by_key_count_and_depth"], scores["recall_by_depth"]))


if __name__ == "__main__":
    main()
