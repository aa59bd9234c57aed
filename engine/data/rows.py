"""The words of the data pipeline: what a file holds, what a row becomes, why a row is left out.

Owns the types that reading, encoding, packing and reporting share. Must not know files, tokenizers or templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FileFormat(StrEnum):
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    TEXT = "text"

    @property
    def located_by(self) -> str:
        """What a place in such a file is counted in: "line", or "row" (the first is 1)."""
        return "line" if self in (FileFormat.JSONL, FileFormat.TEXT) else "row"


class RowKind(StrEnum):
    CHAT = "chat"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"
    PROMPT_COMPLETION = "prompt_completion"
    TEXT = "text"


class DropReason(StrEnum):
    """Why a row is not trained on; the text of each is in `REASON_TEXT`."""

    BAD_JSON = "bad_json"
    BAD_UTF8 = "bad_utf8"
    BAD_CSV = "bad_csv"
    NOT_AN_OBJECT = "not_an_object"
    UNKNOWN_KEYS = "unknown_keys"
    EMPTY_CONTENT = "empty_content"
    NOT_TEXT = "not_text"
    UNKNOWN_ROLE = "unknown_role"
    UNSUPPORTED_FIELD = "unsupported_field"
    NO_ANSWER = "no_answer"
    TEMPLATE_REFUSED = "template_refused"
    ROUND_TRIP = "round_trip"
    ALL_CUT = "all_cut"
    NOTHING_TRAINED = "nothing_trained"


REASON_TEXT: dict[DropReason, str] = {
    DropReason.BAD_JSON: "not valid JSON",
    DropReason.BAD_UTF8: "not valid UTF-8 text",
    DropReason.BAD_CSV: "a CSV row with broken quotes or a wrong number of fields",
    DropReason.NOT_AN_OBJECT: "a JSON value that is not an object with named fields",
    DropReason.UNKNOWN_KEYS: "none of the known sets of fields is there",
    DropReason.EMPTY_CONTENT: "a turn or a field is empty",
    DropReason.NOT_TEXT: "a turn or a field is not text",
    DropReason.UNKNOWN_ROLE: "a turn has a missing or unknown role",
    DropReason.UNSUPPORTED_FIELD: "tool calls, tool lists or reasoning fields, which are not trained on",
    DropReason.NO_ANSWER: "no assistant turn to learn from",
    DropReason.TEMPLATE_REFUSED: "the chat template refuses the turns",
    DropReason.ROUND_TRIP: "the chat template or the tokenizer changes the answer",
    DropReason.ALL_CUT: "every trained token lies beyond max_length",
    DropReason.NOTHING_TRAINED: "no token of it would carry loss",
}


class Note(StrEnum):
    """Something about a row that is used all the same."""

    WHITESPACE_TRIMMED = "whitespace_trimmed"
    BOUNDARY_TOKEN = "boundary_token"
    PROMPT_DIFFERS = "prompt_tokens_differ"
    TURN_NOT_CLOSED = "turn_not_closed"
    CONTROL_TOKEN = "control_token_in_text"
    TEXT_SPLIT = "text_split"


NOTE_TEXT: dict[Note, str] = {
    Note.WHITESPACE_TRIMMED: "the template trims whitespace around the answer",
    Note.BOUNDARY_TOKEN: "one token covers the end of the prompt and the start of the answer",
    Note.PROMPT_DIFFERS: "the prompt alone becomes other tokens than in front of its answer",
    Note.TURN_NOT_CLOSED: "no end-of-turn token follows the answer, so stopping is not learnt from it",
    Note.CONTROL_TOKEN: "the text contains special tokens, which become real control tokens",
    Note.TEXT_SPLIT: "longer than max_length, continued in further sequences; nothing is lost",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One row that is left out, and where it is."""

    reason: DropReason
    line: int
    """Line of the file or number of the row: see `FileFormat.located_by`."""
    detail: str


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row as understood, before any template or tokenizer.

    Chat-like rows have `messages`; Alpaca and prompt/completion rows also have `prompt` and `answer`, the plain form
    used with models that have no chat template; text rows have only `text`.
    """

    line: int
    kind: RowKind
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    answer: str = ""
    text: str = ""
    ignored: tuple[str, ...] = ()
    """Names of fields that were there and are not used."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row as the model sees it. `trained[i]`: predicting token `i` carries loss; token 0 is never predicted."""

    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    line: int
    kind: RowKind
    messages: tuple[Message, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    """Tokens to give the model so that it writes the last answer; empty for text rows."""
    answer: str = ""
    """The last answer as written in the file, the reference of exact match; empty for text rows."""
    full_length: int = 0
    """Tokens before anything was cut; `len(input_ids)` when nothing was."""
    digest: bytes = b""
    """Identifies the row's text; equal rows have equal digests."""
    prompt_digest: bytes = b""
    """Identifies everything before the last answer."""
    part: int = 0
    """Above 0 for the continuations of a long text row."""
    notes: tuple[Note, ...] = ()
    """Observations that are counted in the report."""

    @property
    def trained_tokens(self) -> int:
        return sum(self.trained)

    @property
    def truncated(self) -> bool:
        return self.full_length > len(self.input_ids)
