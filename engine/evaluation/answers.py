"""Greedy answers to prompts, in batches with left padding and a key-value cache.

Owns generation. Must not know which prompts are asked or why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from engine.data.rows import EncodedRow, Message
from engine.data.tokenizer import ChatTokenizer
from engine.evaluation.model import LoadedModel

PROMPTS_PER_BATCH = 32


@dataclass(frozen=True, slots=True)
class Question:
    """One fixed prompt: as people read it, and as the model does."""

    prompt: str
    prompt_ids: tuple[int, ...]
    expected: str = ""


def chat_question(tokenizer: ChatTokenizer, messages: Sequence[Message], expected: str = "") -> Question:
    """A question from turns; `prompt` shows the last of them."""
    ids = tokenizer.chat_ids(messages, add_generation_prompt=True)
    return Question(messages[-1].content, ids, expected)


def row_question(tokenizer: ChatTokenizer, row: EncodedRow) -> Question | None:
    """A held-out row as a question; None for rows without an answer."""
    if not row.prompt_ids or not row.answer:
        return None
    turns = [message.content for message in row.messages if message.role == "user"]
    prompt = turns[-1] if turns else tokenizer.decode(row.prompt_ids, skip_special_tokens=True)
    return Question(prompt, row.prompt_ids, row.answer)


def answer_all(model: LoadedModel, questions: Sequence[Question], max_new_tokens: int) -> list[str]:
    """Greedy answers in the order of the questions; each ends at its end token or after `max_new_tokens`."""
    answers = [""] * len(questions)
    with model.inference(), model.autocast():
        for group in _groups(questions):
            prompts = [questions[index].prompt_ids for index in group]
            for index, text in zip(group, _generate(model, prompts, max_new_tokens), strict=True):
                answers[index] = text
    return answers


def _groups(questions: Sequence[Question]) -> Iterator[list[int]]:
    order = sorted(range(len(questions)), key=lambda i: (len(questions[i].prompt_ids), i))
    for start in range(0, len(order), PROMPTS_PER_BATCH):
        yield order[start : start + PROMPTS_PER_BATCH]


def _generate(model: LoadedModel, prompts: Sequence[tuple[int, ...]], max_new_tokens: int) -> list[str]:
    room = model.context_length - max_new_tokens
    if room > 0:
        prompts = [prompt[-room:] for prompt in prompts]
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), model.pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for number, prompt in enumerate(prompts):
        input_ids[number, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[number, width - len(prompt) :] = 1
    output = model.model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=end_ids(model) or None,
        pad_token_id=model.pad_id,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    ends = set(end_ids(model))
    return [model.tokenizer.decode(_until(row, ends), skip_special_tokens=True) for row in output[:, width:].tolist()]


def end_ids(model: LoadedModel) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and those of the model's generation config."""
    config = getattr(model.model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    ids = [named] if isinstance(named, int) else list(named or ())
    if model.tokenizer.eos_id is not None:
        ids.append(model.tokenizer.eos_id)
    return sorted(set(ids))


def _until(ids: Sequence[int], ends: set[int]) -> list[int]:
    kept: list[int] = []
    for number in ids:
        if number in ends:
            break
        kept.append(number)
    return kept
