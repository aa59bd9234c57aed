"""The fixed prompts of a run's samples and card, and the number of steps a spec means.

Owns what is read from the spec before the first step. Must not know the loop, nor any model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from engine.errors import EngineError, ExitCode
from engine.jobs.spec import JobSpec

if TYPE_CHECKING:
    from engine.data.load import PreparedData
    from engine.evaluation.answers import Question

ROW_QUESTIONS = 4
"""Held-out rows answered in full on the card when the spec names no prompts."""
DEMO_PROMPTS = "demo"


def card_questions(spec: JobSpec, data: PreparedData) -> tuple[Question, ...]:
    """The spec's own prompts, the demo's, or else the first held-out rows."""
    from engine.data.rows import Message
    from engine.evaluation.answers import chat_question, row_question

    tokenizer = data.tokenizer
    prompts = spec.evaluation.sample_prompts
    if prompts == (DEMO_PROMPTS,):
        return demo_questions(tokenizer)
    if prompts:
        return tuple(chat_question(tokenizer, [Message("user", prompt)]) for prompt in prompts)
    found = (row_question(tokenizer, row) for row in data.heldout)
    return tuple(question for question in found if question is not None)[:ROW_QUESTIONS]


def total_steps(spec: JobSpec, sequences: int) -> int:
    """Optimizer steps of the whole job, by the Trainer's own rule: an epoch's last step may be smaller."""
    training = spec.training
    if training.max_steps:
        return training.max_steps
    batches = -(-sequences // training.batch_size)
    steps_per_epoch = max(1, -(-batches // training.gradient_accumulation))
    steps = training.epochs * steps_per_epoch
    return int(steps) + (steps > int(steps))


def demo_questions(tokenizer: Any) -> tuple[Question, ...]:
    """The demo's own prompts with their expected answers."""
    from engine.data.rows import Message
    from engine.evaluation.answers import chat_question
    from engine.resources import demo_dir

    path = demo_dir() / "prompts.json"
    try:
        entries = msgspec.json.decode(path.read_bytes())["prompts"]
        return tuple(
            chat_question(
                tokenizer,
                [Message(turn["role"], turn["content"]) for turn in entry["messages"]],
                entry.get("expected", ""),
            )
            for entry in entries
        )
    except (OSError, msgspec.MsgspecError, KeyError, TypeError) as error:
        raise EngineError(
            "demo.prompts",
            "The demo's prompts cannot be read.",
            cause=f"{path}: {error}",
            next_step="Install scaler-wizard again.",
            exit_code=ExitCode.RUN_FAILED,
        ) from error
