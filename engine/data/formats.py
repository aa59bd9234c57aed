"""What a record means: chat, ShareGPT, Alpaca, prompt/completion or text, told by its field names.

Owns the known shapes of rows and every reason for not understanding one. Must not know files, templates or tokens.
Each record is judged by itself, so a file may mix kinds; the report says when it does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.data.files import Record, read_records
from engine.data.rows import DropReason, FileFormat, Message, Problem, RowKind, SourceRow

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("input", "output"))
_UNSUPPORTED_IN_ROW = ("tools", "functions", "images", "image", "audio", "videos")
_UNSUPPORTED_IN_TURN = ("tool_calls", "function_call", "reasoning_content", "thinking", "reasoning")


class _Unusable(Exception):
    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def read_rows(path: Path, form: FileFormat) -> Iterator[SourceRow | Problem]:
    """The rows of a file in order, with a Problem in the place of each that cannot be used."""
    return understand(read_records(path, form))


def understand(records: Iterable[Record | Problem]) -> Iterator[SourceRow | Problem]:
    """Records as rows; problems pass through."""
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        try:
            yield _row(record)
        except _Unusable as error:
            yield Problem(error.reason, record.line, error.detail)


def _row(record: Record) -> SourceRow:
    if not isinstance(record.value, dict):
        raise _Unusable(DropReason.NOT_AN_OBJECT, f"found {_kind_name(record.value)}")
    fields = {str(key).strip().strip("\ufeff").lower(): value for key, value in record.value.items()}
    for name in _UNSUPPORTED_IN_ROW:
        if fields.get(name):
            raise _Unusable(DropReason.UNSUPPORTED_FIELD, f"the row has {name}")
    if _has(fields, "messages"):
        return _chat(record.line, RowKind.CHAT, fields, "messages")
    if _has(fields, "conversations"):
        return _chat(record.line, RowKind.SHAREGPT, fields, "conversations")
    if _has(fields, "instruction"):
        return _alpaca(record.line, fields)
    for prompt, answer in _PAIRS:
        if prompt in fields and answer in fields:
            return _pair(record.line, fields, prompt, answer)
    if "text" in fields:
        return SourceRow(
            line=record.line,
            kind=RowKind.TEXT,
            text=_text(fields["text"], "text"),
            ignored=_ignored(fields, ("text",)),
        )
    names = ", ".join(sorted(map(repr, fields))[:8]) or "none"
    raise _Unusable(DropReason.UNKNOWN_KEYS, f"fields: {names}")


def _has(fields: dict[str, object], name: str) -> bool:
    return fields.get(name) is not None


def _chat(line: int, kind: RowKind, fields: dict[str, object], name: str) -> SourceRow:
    turns = fields[name]
    if isinstance(turns, str):
        turns = _from_cell(turns, name)
    if not isinstance(turns, list):
        raise _Unusable(DropReason.NOT_TEXT, f"{name} is {_kind_name(turns)}, not a list of turns")
    if not turns:
        raise _Unusable(DropReason.EMPTY_CONTENT, f"{name} has no turns")
    ignored: set[str] = set()
    messages = [_message(turn, number, ignored) for number, turn in enumerate(turns, start=1)]
    return SourceRow(
        line=line,
        kind=kind,
        messages=_with_system(fields, messages),
        ignored=(*_ignored(fields, (name, "system")), *sorted(ignored)),
    )


def _from_cell(text: str, name: str) -> object:
    """CSV and Parquet columns may hold the list of turns as JSON text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Unusable(DropReason.BAD_JSON, f"{name} is text but not a JSON list: {error}") from error


def _message(turn: object, number: int, ignored: set[str]) -> Message:
    if not isinstance(turn, dict):
        raise _Unusable(DropReason.NOT_AN_OBJECT, f"turn {number} is {_kind_name(turn)}")
    role = turn.get("role", turn.get("from"))
    known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise _Unusable(DropReason.UNKNOWN_ROLE, f"turn {number} has role {_short(role)}")
    for name in _UNSUPPORTED_IN_TURN:
        if turn.get(name):
            raise _Unusable(DropReason.UNSUPPORTED_FIELD, f"turn {number} has {name}")
    key = "content" if "content" in turn else "value"
    if key not in turn:
        raise _Unusable(DropReason.UNKNOWN_KEYS, f"turn {number} has neither content nor value")
    ignored.update(
        f"turn.{k}" for k, v in turn.items() if k not in ("role", "from", key, *_UNSUPPORTED_IN_TURN) and v is not None
    )
    content = _joined_parts(turn[key])
    return Message(known, _text(content, f"turn {number} ({role})", may_be_empty=known == "system"))


def _joined_parts(content: object) -> object:
    """Content written as a list of text parts is their text; any other part is not text."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    kept = [text for text in texts if isinstance(text, str)]
    return "".join(kept) if len(kept) == len(content) else content


def _with_system(fields: dict[str, object], messages: list[Message]) -> tuple[Message, ...]:
    system = fields.get("system")
    if isinstance(system, str) and system.strip() and (not messages or messages[0].role != "system"):
        return (Message("system", _text(system, "system")), *messages)
    return tuple(messages)


def _alpaca(line: int, fields: dict[str, object]) -> SourceRow:
    output = next((name for name in ("output", "response", "completion") if _has(fields, name)), None)
    if output is None:
        raise _Unusable(DropReason.UNKNOWN_KEYS, "instruction without output")
    instruction = _text(fields["instruction"], "instruction")
    answer = _text(fields[output], output)
    given = _text(fields.get("input") or "", "input", may_be_empty=True)
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    heading = f"### Instruction:\n{instruction}\n\n"
    middle = f"### Input:\n{given}\n\n" if given.strip() else ""
    return SourceRow(
        line=line,
        kind=RowKind.ALPACA,
        messages=_with_system(fields, [Message("user", question), Message("assistant", answer)]),
        prompt=f"{heading}{middle}### Response:\n",
        answer=answer,
        ignored=_ignored(fields, ("instruction", "input", output, "system")),
    )


def _pair(line: int, fields: dict[str, object], prompt_name: str, answer_name: str) -> SourceRow:
    used = (prompt_name, answer_name, "system")
    asked, answered = fields[prompt_name], fields[answer_name]
    if isinstance(asked, list) and isinstance(answered, list):
        turns = {"messages": [*asked, *answered], "system": fields.get("system")}
        row = _chat(line, RowKind.PROMPT_COMPLETION, turns, "messages")
        return SourceRow(line, row.kind, row.messages, ignored=(*_ignored(fields, used), *row.ignored))
    prompt = _text(asked, prompt_name)
    answer = _text(answered, answer_name)
    return SourceRow(
        line=line,
        kind=RowKind.PROMPT_COMPLETION,
        messages=_with_system(fields, [Message("user", prompt), Message("assistant", answer)]),
        prompt=prompt,
        answer=answer,
        ignored=_ignored(fields, used),
    )


def _text(value: object, what: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise _Unusable(DropReason.NOT_TEXT, f"{what} is {_kind_name(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Unusable(DropReason.BAD_UTF8, f"{what} has half of a surrogate pair") from error
    if not value.strip() and not may_be_empty:
        raise _Unusable(DropReason.EMPTY_CONTENT, f"{what} is empty")
    return value


def _ignored(fields: dict[str, object], used: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name, value in fields.items() if name not in used and value not in (None, "", [], {})))


def _kind_name(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
