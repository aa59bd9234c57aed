"""What a model and its export are both asked: prompts in the chat template, texts for the tokenizer, held-out text.

Owns the choice: the run's own held-out rows where there is a run, else what ships with the program and suits the
tokenizer. Must not know programs or figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from engine.data.chat_template import TemplateRefusal
from engine.data.files import detect_format
from engine.data.formats import read_rows
from engine.data.load import DEMO, resolve_file
from engine.data.rows import Message, SourceRow
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.evaluation.asked import Asked
from engine.evaluation.length_text import default_source
from engine.export.gguf_special import unnamed_stops
from engine.export.stops import stop_ids
from engine.jobs.spec import JobSpec
from engine.models.config import CONFIG_NAME, read_json_object, text_part
from engine.models.shape import read_shape
from engine.resources import demo_dir, profiles_dir

CHATS = 6
NEW_TOKENS = 48
PASSAGE_TOKENS = 256
HELD_OUT_TOKENS = 1024
"""About a minute for a model of 7 billion parameters on a desktop's processor, in either program."""
LONGEST_PROMPT = 256
ODD = "Straße  42,\t3.14 — naïve café;  «слово» 你好 🙂\n\n\n\tdef f(x):  # 1000000\n    return x**2\n"
"""Runs of spaces, digits, other scripts, a line of code: where tokenizers part."""
_ENGLISH = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colours.",
    "Explain in one sentence why the sky is blue.",
    "Translate into German: good morning",
    "What comes next: 2, 4, 8, 16?",
)


def asked_of(folder: Path, spec: JobSpec | None) -> Asked:
    """The questions for the model in `folder`; `spec` is that of the run it came from. Raises EngineError `model.*`."""
    tokenizer = ChatTokenizer.load(folder)
    config = read_json_object(folder / CONFIG_NAME, code="model.config_damaged", what="a model config")
    shape = read_shape(text_part(config)[0], str(folder / CONFIG_NAME))
    window = shape.context_length
    rows = list(_rows(spec)) if spec is not None else []
    new_tokens = min(NEW_TOKENS, max(window // 4, 1))
    most = min(LONGEST_PROMPT, window - new_tokens)
    shipped = _shipped_prompts(tokenizer)
    chats = _fitting(tokenizer, [*_prompts(rows), *shipped], most)
    passages, origin = _passages(tokenizer, rows, min(PASSAGE_TOKENS, window))
    stops = tuple(stop_ids(folder, tokenizer))
    rendered = tuple(tokenizer.render(turns, add_generation_prompt=True) for turns in chats)
    return Asked(
        chats=tuple(tuple({"role": turn.role, "content": turn.content} for turn in turns) for turns in chats),
        rendered=rendered,
        has_template=not tokenizer.template.is_default,
        texts=(*(turns[-1].content for turns in chats), ODD),
        passages=passages,
        stops=stops,
        unnamed_stops=unnamed_stops(stops, tokenizer),
        new_tokens=new_tokens,
        vocabulary=shape.vocabulary,
        passages_from=origin,
    )


def _rows(spec: JobSpec) -> Iterator[SourceRow]:
    """The run's held-out rows, else its training rows; none where they are no longer there."""
    named = [(spec.data.heldout, "heldout"), (spec.data.train, "train")]
    for source, part in named if not spec.streams else named[:1]:
        if not source:
            continue
        try:
            path = resolve_file(source, part)
            yield from islice((row for row in read_rows(path, detect_format(path)) if isinstance(row, SourceRow)), 64)
        except (EngineError, OSError):
            continue
        return


def _prompts(rows: Sequence[SourceRow]) -> list[tuple[Message, ...]]:
    """Each row's turns up to its last answer."""
    found = []
    for row in rows:
        last = max((at for at, turn in enumerate(row.messages) if turn.role == "assistant"), default=0)
        if last:
            found.append(row.messages[:last])
    return found


def _shipped_prompts(tokenizer: ChatTokenizer) -> list[tuple[Message, ...]]:
    if default_source(tokenizer) == DEMO:
        said = json.loads((demo_dir() / "prompts.json").read_text("utf-8"))["prompts"]
        return [tuple(Message(turn["role"], turn["content"]) for turn in one["messages"]) for one in said]
    return [(Message("user", text),) for text in _ENGLISH]


def _fitting(
    tokenizer: ChatTokenizer, prompts: Sequence[tuple[Message, ...]], most: int
) -> tuple[tuple[Message, ...], ...]:
    """The first prompts that the template takes and the window holds, no two alike."""
    found: list[tuple[Message, ...]] = []
    for turns in dict.fromkeys(prompts):
        try:
            length = len(tokenizer.chat_ids(turns, add_generation_prompt=True))
        except TemplateRefusal:
            continue
        if length <= most:
            found.append(turns)
        if len(found) == CHATS:
            break
    return tuple(found)


def _passages(
    tokenizer: ChatTokenizer, rows: Sequence[SourceRow], longest: int
) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Up to HELD_OUT_TOKENS ids in pieces of at most `longest`, and where they came from."""
    found: list[tuple[int, ...]] = []
    for row in rows:
        try:
            ids = tokenizer.text_ids(row.text) if row.text else tokenizer.chat_ids(row.messages)
        except TemplateRefusal:
            continue
        if len(ids) > 1 and sum(map(len, found)) < HELD_OUT_TOKENS:
            found.append(ids[:longest])
    if found:
        return tuple(found), "the run's own held-out rows"
    if default_source(tokenizer) == DEMO:
        path = demo_dir() / "finetune" / "base_text.jsonl"
        said = (row for row in read_rows(path, detect_format(path)) if isinstance(row, SourceRow))
        return _passages(tokenizer, list(islice(said, 64)), longest)[0], "the demo's held-out text"
    ids = tokenizer.text_ids((profiles_dir() / "base_text.txt").read_text("utf-8"))[:HELD_OUT_TOKENS]
    pieces = [ids[at : at + longest] for at in range(0, len(ids), longest)]
    return tuple(piece for piece in pieces if len(piece) > 1), "the plain English that ships with the program"
