"""Writes the demo model's skills as tasks for lm-eval: `tasks/questions/<skill>.jsonl`, 400 held-out chats each.

Owns what a question is: the chat up to the answer as the demo's own template renders it, and the answer with its end
mark. It must not know how tasks are run. The chats are those of `evaluate_model.py` (same seed), so a task's accuracy
is the exact match that `scores.json` names.

    python assets/demo/make_tasks.py
"""

from __future__ import annotations

import json
from pathlib import Path

from evaluate_model import CHATS_PER_SKILL, HELD_OUT_SEED
from text_generator import SKILLS, Chat, chats
from train_tokenizer import MODEL_FOLDER
from windows import ChatEncoder

QUESTIONS_FOLDER = Path(__file__).parent / "tasks" / "questions"
BEFORE_TURN, END_MARK = "<|im_start|>", "<|im_end|>"


def question(chat: Chat) -> dict[str, str]:
    """The prompt ends with the header of the answer's turn."""
    turns = [f"{BEFORE_TURN}{turn['role']}\n{turn['content']}{END_MARK}\n" for turn in chat.messages[:-1]]
    return {"prompt": "".join([*turns, f"{BEFORE_TURN}assistant\n"]), "answer": f"{chat.answer}{END_MARK}"}


def main() -> None:
    encoder = ChatEncoder(MODEL_FOLDER)
    QUESTIONS_FOLDER.mkdir(parents=True, exist_ok=True)
    for skill in SKILLS:
        made = [question(chat) for chat in chats(HELD_OUT_SEED, "heldout", skill, CHATS_PER_SKILL, encoder.length)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in made]
        (QUESTIONS_FOLDER / f"{skill}.jsonl").write_text("".join(lines), "utf-8")
        print(f"{skill}: {len(made)} questions")


if __name__ == "__main__":
    main()
