"""Rows to tokens: renders, encodes in batches, masks, cuts, and says why a row cannot be used.

Owns `RowEncoder`. Must not know files or reports. Rows longer than `max_length` are cut at the end and say so
(`EncodedRow.truncated`); plain text is continued in further rows instead, each beginning with the last token of the one
before, so that every token is predicted exactly once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

from engine.data.chat_template import TemplateRefusal
from engine.data.masking import (
    RoundTripFailure,
    Span,
    TurnShape,
    answer_spans,
    probe_shape,
    span_tokens,
)
from engine.data.rows import DropReason, EncodedRow, Message, Note, Problem, RowKind, SourceRow
from engine.data.tokenizer import ChatTokenizer
from engine.jobs.spec import TrainOn

if TYPE_CHECKING:
    from tokenizers import Encoding

BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    max_length: int
    train_on: TrainOn
    keep_prompts: bool = False
    """Also encode each row's prompt, to let the model answer it."""
    close_text: bool = True
    """Put the end token behind plain text."""


@dataclass(frozen=True, slots=True)
class _Rendered:
    row: SourceRow
    text: str
    spans: tuple[Span, ...]
    """Empty means that every token is trained."""
    notes: frozenset[Note]
    plain: bool
    """True when the tokenizer's own start token belongs in front."""


class RowEncoder:
    """Encodes source rows with one tokenizer and one set of options."""

    def __init__(self, tokenizer: ChatTokenizer, options: EncodeOptions) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._shape: TurnShape | None = None
        special = sorted((text for text in tokenizer.special_texts if text), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, special)) or "(?!)")
        self._control_starts = {text[0] for text in special}
        self.round_trip_failures: list[str] = []
        """Where the first rows fail to round-trip."""

    @property
    def max_length(self) -> int:
        return self._options.max_length

    @property
    def end_is_token(self) -> bool:
        """Whether the template closes an answer with a special token; without one a model never learns to stop."""
        return self._shape is None or self._shape.end_is_token

    def encode(self, rows: Iterable[SourceRow]) -> Iterator[EncodedRow | Problem]:
        """Encoded rows and problems in the order of the rows; one text row may give several."""
        stream = iter(rows)
        while batch := list(islice(stream, BATCH_ROWS)):
            rendered = [self._render(row) for row in batch]
            texts = [item.text for item in rendered if isinstance(item, _Rendered)]
            encodings = iter(self._tokenizer.encode_batch(texts))
            for item in rendered:
                if isinstance(item, Problem):
                    yield item
                else:
                    yield from self._finish(item, next(encodings))

    def _render(self, row: SourceRow) -> _Rendered | Problem:
        try:
            if row.kind is RowKind.TEXT:
                return _Rendered(row, row.text, (), self._notes(row.text), plain=True)
            if self._is_plain(row):
                text = row.prompt + row.answer
                return _Rendered(row, text, (Span(len(row.prompt), len(text)),), self._notes(text), plain=True)
            return self._render_chat(row)
        except TemplateRefusal as error:
            return Problem(DropReason.TEMPLATE_REFUSED, row.line, str(error))
        except RoundTripFailure as error:
            return self._round_trip_problem(row, error)

    def _is_plain(self, row: SourceRow) -> bool:
        """Prompt and answer are joined as they stand when the model has no chat template of its own."""
        return bool(row.answer) and self._tokenizer.template.is_default

    def _render_chat(self, row: SourceRow) -> _Rendered | Problem:
        everything = self._options.train_on is TrainOn.ALL
        if not everything and not any(message.role == "assistant" for message in row.messages):
            return Problem(DropReason.NO_ANSWER, row.line, "roles: " + ", ".join(m.role for m in row.messages))
        if self._shape is None:
            self._shape = probe_shape(self._tokenizer)
        notes: set[Note] = set()
        for message in row.messages:
            notes |= self._notes(message.content)
        full = self._tokenizer.render(row.messages)
        if everything:
            return _Rendered(row, full, (), frozenset(notes), plain=False)
        only_last = self._options.train_on is TrainOn.LAST
        spans, more = answer_spans(self._tokenizer, self._shape, row.messages, full, only_last=only_last)
        return _Rendered(row, full, tuple(spans), frozenset(notes | more), plain=False)

    def _notes(self, text: str) -> frozenset[Note]:
        if any(start in text for start in self._control_starts) and self._control.search(text):
            return frozenset((Note.CONTROL_TOKEN,))
        return frozenset()

    def _round_trip_problem(self, row: SourceRow, error: RoundTripFailure) -> Problem:
        if len(self.round_trip_failures) < 3:
            self.round_trip_failures.append(f"line {row.line}: {error}")
        return Problem(DropReason.ROUND_TRIP, row.line, str(error))

    def _finish(self, item: _Rendered, encoding: Encoding) -> Iterator[EncodedRow | Problem]:
        ids = self._tokenizer.shared(encoding.ids)
        mask = bytearray(len(ids)) if item.spans else bytearray(b"\1" * len(ids))
        notes = set(item.notes)
        for span in item.spans:
            try:
                first, last, straddles = span_tokens(self._tokenizer, encoding, item.text, span)
            except RoundTripFailure as error:
                yield self._round_trip_problem(item.row, error)
                return
            mask[first:last] = b"\1" * (last - first)
            if straddles:
                notes.add(Note.BOUNDARY_TOKEN)
        if item.plain:
            started = self._tokenizer.with_start(ids)
            mask[:0] = bytes(len(started) - len(ids))
            ids = started
            if self._closes(item.row, ids):
                ids += (self._tokenizer.eos_id or 0,)
                mask.append(1)
            elif self._tokenizer.eos_id is None:
                notes.add(Note.TURN_NOT_CLOSED)
        try:
            whole = self._row(item, ids, mask, notes)
        except TemplateRefusal as error:
            yield Problem(DropReason.TEMPLATE_REFUSED, item.row.line, str(error))
            return
        yield from self._windows(whole) if item.row.kind is RowKind.TEXT else self._cut(whole)

    def _closes(self, row: SourceRow, ids: tuple[int, ...]) -> bool:
        eos = self._tokenizer.eos_id
        wanted = self._options.close_text or row.kind is not RowKind.TEXT
        return wanted and eos is not None and ids[-1:] != (eos,)

    def _row(self, item: _Rendered, ids: tuple[int, ...], mask: bytearray, notes: set[Note]) -> EncodedRow:
        if mask:
            mask[0] = 0
        row = item.row
        digest, prompt_digest = digests(row)
        prompt_ids = self._prompt_ids(row) if self._options.keep_prompts else ()
        if prompt_ids != ids[: len(prompt_ids)]:
            notes.add(Note.PROMPT_DIFFERS)
        return EncodedRow(
            input_ids=ids,
            trained=tuple(map(bool, mask)),
            line=row.line,
            kind=row.kind,
            messages=row.messages,
            prompt_ids=prompt_ids,
            answer=_last_answer(row.messages),
            full_length=len(ids),
            digest=digest,
            prompt_digest=prompt_digest,
            notes=tuple(sorted(notes)),
        )

    def _prompt_ids(self, row: SourceRow) -> tuple[int, ...]:
        if row.kind is RowKind.TEXT:
            return ()
        if self._is_plain(row):
            return self._tokenizer.text_ids(row.prompt)
        return self._tokenizer.chat_ids(_before_last_answer(row.messages), add_generation_prompt=True)

    def _cut(self, row: EncodedRow) -> Iterator[EncodedRow | Problem]:
        limit = self._options.max_length
        if not any(row.trained):
            yield Problem(DropReason.NOTHING_TRAINED, row.line, f"{row.full_length} tokens")
        elif len(row.input_ids) <= limit:
            yield row
        elif not any(row.trained[:limit]):
            first = row.trained.index(True) + 1
            detail = f"{row.full_length} tokens; the first trained one is number {first}, max_length is {limit}"
            yield Problem(DropReason.ALL_CUT, row.line, detail)
        else:
            yield replace(row, input_ids=row.input_ids[:limit], trained=row.trained[:limit])

    def _windows(self, row: EncodedRow) -> Iterator[EncodedRow | Problem]:
        limit = self._options.max_length
        if not any(row.trained):
            yield Problem(DropReason.NOTHING_TRAINED, row.line, f"{row.full_length} tokens")
        elif len(row.input_ids) <= limit:
            yield row
        else:
            notes = (*row.notes, Note.TEXT_SPLIT)
            for part, start in enumerate(range(0, len(row.input_ids) - 1, limit - 1)):
                ids = row.input_ids[start : start + limit]
                trained = (False, *row.trained[start + 1 : start + limit])
                yield replace(row, input_ids=ids, trained=trained, full_length=len(ids), part=part, notes=notes)


def _before_last_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "assistant":
            return messages[:index]
    return messages


def _last_answer(messages: tuple[Message, ...]) -> str:
    return next((m.content for m in reversed(messages) if m.role == "assistant"), "")


def digests(row: SourceRow) -> tuple[bytes, bytes]:
    """Identities of the row and of what comes before its last answer, the same in every file format."""
    if row.kind is RowKind.TEXT:
        found = blake2b(row.text.encode(), digest_size=16).digest()
        return found, found
    return _digest(row.messages), _digest(_before_last_answer(row.messages))


def _digest(messages: tuple[Message, ...]) -> bytes:
    found = blake2b(digest_size=16)
    for message in messages:
        found.update(message.role.encode() + b"\0" + message.content.encode() + b"\1")
    return found.digest()
