"""Which tokens carry loss: finds the assistant's answers in the rendered text and proves that they are intact.

Owns the search (prefix rendering) and the round-trip check. Must not know files or reports.

    rendered   <start>user ⏎ Hi <end> ⏎ <start>assistant ⏎ Hello! <end> ⏎
    prefix     <start>user ⏎ Hi <end> ⏎ <start>assistant ⏎                  turns before it + generation prompt
    trained                                                Hello! <end>

The start of an answer is the length of the prefix, which must be exactly how the whole text begins; the answer must
follow as it stands in the file; the end-of-turn token that the template puts after it is trained too, so that the model
learns to stop. Text the template puts between prefix and answer (an empty thinking block) is what the model
will have to write itself, so it is trained as well.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.data.chat_template import TemplateRefusal
from engine.data.rows import Message, Note
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError

if TYPE_CHECKING:
    from tokenizers import Encoding

_MARK = "answer7f3aMARK"


class RoundTripFailure(Exception):
    """What was written and what would be trained differ; the message shows where."""


@dataclass(frozen=True, slots=True)
class TurnShape:
    """What the template puts around an answer."""

    before: str
    """Between the generation prompt and the answer; "" for most templates."""
    end: str
    """After the answer up to the end-of-turn token; the whole rest when there is no such token."""
    end_is_token: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Characters of the rendered text that are trained, for one answer."""

    start: int
    end: int


def probe_shape(tokenizer: ChatTokenizer) -> TurnShape:
    """The shape of an answer, from one question and one answer. Raises EngineError `data.template_round_trip`."""
    question = Message("user", "question7f3a")
    try:
        prefix = tokenizer.render([question], add_generation_prompt=True)
        full = tokenizer.render([question, Message("assistant", _MARK)])
    except TemplateRefusal as error:
        raise EngineError(
            "data.template_round_trip",
            "The model's chat template refuses a plain question and answer.",
            cause=str(error),
            next_step="Use a model whose template takes user and assistant turns.",
        ) from error
    try:
        _check_prefix(prefix, full)
        at = full.find(_MARK, len(prefix))
        if at < 0:
            raise RoundTripFailure(f"the answer is missing from the rendered text {_show(full)}")
    except RoundTripFailure as error:
        raise round_trip_error(tokenizer, str(error)) from error
    rest = full[at + len(_MARK) :]
    end, is_token = _end_of_turn(tokenizer, rest)
    return TurnShape(before=full[len(prefix) : at], end=end, end_is_token=is_token)


def round_trip_error(tokenizer: ChatTokenizer, where: str) -> EngineError:
    """The refusal to train with a template whose text is not what the model will see."""
    return EngineError(
        "data.template_round_trip",
        f"The chat template ({tokenizer.template.origin}) does not round-trip, so the wrong tokens would be trained.",
        cause=where[:1].upper() + where[1:] + ".",
        next_step="Repair the template in the model's folder, or use rows that it leaves unchanged.",
    )


def _end_of_turn(tokenizer: ChatTokenizer, rest: str) -> tuple[str, bool]:
    """`rest` up to and including its first special token, and whether there is one."""
    if not rest:
        return "", False
    encoding = tokenizer.encode_batch([rest])[0]
    for index, number in enumerate(encoding.ids):
        if number in tokenizer.special_ids or number == tokenizer.eos_id:
            return rest[: encoding.offsets[index][1]], True
    return rest, False


def answer_spans(
    tokenizer: ChatTokenizer, shape: TurnShape, messages: Sequence[Message], full: str, *, only_last: bool
) -> tuple[list[Span], set[Note]]:
    """The trained characters of the row's answers, and notes. Raises RoundTripFailure or TemplateRefusal."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    spans: list[Span] = []
    notes: set[Note] = set()
    for index in answers[-1:] if only_last else answers:
        prefix = tokenizer.render(messages[:index], add_generation_prompt=True)
        _check_prefix(prefix, full)
        start = len(prefix)
        content = messages[index].content
        at = start
        if shape.before or not full.startswith(content, start):
            at = _marked_position(tokenizer, messages, index, full, start)
        written = _written_form(content, full, at)
        if written != content:
            notes.add(Note.WHITESPACE_TRIMMED)
        end = at + len(written)
        if full.startswith(shape.end, end):
            end += len(shape.end)
        else:
            notes.add(Note.TURN_NOT_CLOSED)
        spans.append(Span(start, end))
    if not shape.end_is_token:
        notes.add(Note.TURN_NOT_CLOSED)
    return spans, notes


def _marked_position(tokenizer: ChatTokenizer, messages: Sequence[Message], index: int, full: str, start: int) -> int:
    """Where the answer begins, found by rendering the same turns with a mark in its place."""
    marked = [*messages[:index], replace(messages[index], content=_MARK), *messages[index + 1 :]]
    text = tokenizer.render(marked)
    at = text.find(_MARK, start)
    if at < 0 or text[:at] != full[:at]:
        raise RoundTripFailure(f"the text before answer {index + 1} depends on the answer: {_show(full[start:])}")
    return at


def _written_form(content: str, full: str, at: int) -> str:
    """The answer as the template writes it: as it stands, or without whitespace around it."""
    for form in (content, content.strip(), content.lstrip(), content.rstrip()):
        if full.startswith(form, at):
            return form
    raise RoundTripFailure(f"the answer {_show(content)} becomes {_show(full[at:])} when rendered")


def _check_prefix(prefix: str, full: str) -> None:
    if full.startswith(prefix):
        return
    same = next((i for i, (a, b) in enumerate(zip(prefix, full, strict=False)) if a != b), min(len(prefix), len(full)))
    raise RoundTripFailure(
        f"at character {same} the prompt continues {_show(prefix[same:])} but with the answer it continues "
        f"{_show(full[same:])}"
    )


def _show(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def span_tokens(tokenizer: ChatTokenizer, encoding: Encoding, text: str, span: Span) -> tuple[int, int, bool]:
    """First and past-the-last token of a span, and whether its first token also covers prompt text.

    Raises RoundTripFailure when the tokens do not spell the span.
    """
    first = _token_at(encoding, span.start, span.end)
    if first is None:
        raise RoundTripFailure(f"no token covers the answer {_show(text[span.start : span.end])}")
    after = _token_at(encoding, span.end, len(text))
    last = len(encoding.ids) if after is None else after
    if after is not None and _begin(encoding, after) < span.end:
        last += 1
    begins = _begin(encoding, first)
    straddles = begins < span.start
    if straddles and text[begins : span.start].strip():
        raise RoundTripFailure(f"one token joins prompt and answer: {_show(text[begins : span.end])}")
    decoded = tokenizer.decode(encoding.ids[first:last])
    expected = text[span.start : span.end]
    if decoded != expected and _bare(decoded) != _bare(expected):
        raise RoundTripFailure(f"the answer {_show(expected)} decodes to {_show(decoded)}")
    return first, last, straddles


def _token_at(encoding: Encoding, start: int, stop: int) -> int | None:
    """The token of the first character from `start` on that has one."""
    for position in range(start, stop):
        found = encoding.char_to_token(position)
        if found is not None:
            return found
    return None


def _begin(encoding: Encoding, token: int) -> int:
    chars = encoding.token_to_chars(token)
    return chars[0] if chars else 0


def _bare(text: str) -> str:
    """Text for comparison across tokenizers that normalise: composed, without whitespace."""
    return "".join(unicodedata.normalize("NFKC", text).split())
