"""The documents of a perplexity suite: from a file, a folder, what ships with the program, or a source's held-out part.

Owns reading them and cutting them to pieces. Must not know torch or models beyond a tokenizer. A piece is short enough
for the window, so that it is scored in one go, and is one item of the paired bootstrap: a book in one file would be a
single item otherwise, and say nothing about how sure a difference is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.corpus.documents import Document, Limits
from engine.corpus.files import source_files
from engine.corpus.reading import read_files
from engine.corpus.shards import Cursor
from engine.data.chat_template import TemplateRefusal
from engine.data.files import Record, detect_format, read_records
from engine.data.load import GENERAL
from engine.data.rows import Message
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.evaluation.findings import SuiteText
from engine.resources import demo_rows_file, profiles_dir

BASE_TEXT = "base_text"
"""The suite of `data.base_text`."""
USUAL_WINDOW = 2048
"""Of a model whose config names none."""
LONGEST_PIECE = 1024
"""Tokens, where the window allows it."""
_CHARACTERS_PER_TOKEN = 12
"""More than any tokenizer's on prose: so much text is tokenised to find the end of a piece."""
_TEXT_FILES = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".parquet", ".pq", ".csv", ".tsv")
_PACKED_FILES = (".gz", ".zst", ".xz", ".bz2")
_LIMITS = Limits(64 << 20, 64 << 10)
"""Of packed files: the longest document and line, bytes."""
_FIELDS = ("text", "content", "document", "body")
_CHATS = ("messages", "conversations")


def read_suite(name: str, source: str, field: str, tokenizer: ChatTokenizer, window: int, most: int) -> SuiteText:
    """The suite `name` from `source`: "general", "demo", "demo-long", a file or a folder; about `most` tokens of it.

    Raises EngineError `suite.no_text`, and `data.*` for files that cannot be read.
    """
    documents = cut_documents(_documents(source, field, tokenizer), tokenizer, window, most)
    if not documents:
        raise EngineError(
            "suite.no_text",
            f"The suite '{name}' has no text: {source}.",
            cause=f"No row has a text under '{field}'." if field != "text" else "",
            next_step="Give a text file, rows with a text or turns in each, or a folder of those.",
        )
    return SuiteText(name, documents)


def digest(suite: SuiteText) -> str:
    """Identifies the documents: only the same ones can be compared."""
    found = hashlib.sha256()
    for document in suite.documents:
        found.update(len(document).to_bytes(8, "little") + document.encode())
    return found.hexdigest()[:16]


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────────────────────
def cut_documents(texts: Iterable[str], tokenizer: ChatTokenizer, window: int, most: int) -> tuple[str, ...]:
    """Pieces of at most a window in the order of the texts, until there are `most` tokens; the last one is cut."""
    longest = min((window or USUAL_WINDOW) - 1 - len(tokenizer.with_start(())), LONGEST_PIECE)
    pieces: list[str] = []
    left = most
    for text in texts:
        while text.strip() and left > 0:
            piece, tokens = _piece(text, tokenizer, max(min(longest, left), 8))
            text = text[len(piece) :]
            left -= tokens
            if piece.strip():
                pieces.append(piece)
        if left <= 0:
            break
    return tuple(pieces)


def _piece(text: str, tokenizer: ChatTokenizer, most: int) -> tuple[str, int]:
    """The beginning of `text` that has at most about `most` tokens, and how many it has; ends between words where that
    can be had."""
    head = text[: most * _CHARACTERS_PER_TOKEN]
    encoding = tokenizer.encode_batch([head])[0]
    count = len(encoding.ids)
    if count <= most:
        return head, count
    end = max(encoding.offsets[most][0], 1)
    between = max(head.rfind("\n", 0, end), head.rfind(" ", 0, end))
    return (head[:between] if between > end // 2 else head[:end]), most


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _documents(source: str, field: str, tokenizer: ChatTokenizer) -> Iterator[str]:
    if source == GENERAL:  # every line is a text of its own
        yield from (profiles_dir() / "base_text.txt").read_text("utf-8").splitlines()
        return
    path = demo_rows_file(source, BASE_TEXT) or Path(source).expanduser()
    if path.is_dir():
        names = (*_TEXT_FILES, *_PACKED_FILES)
        for file in sorted(file for file in path.rglob("*") if file.suffix.lower() in names):
            yield from _of_file(file, field, tokenizer)
    else:
        yield from _of_file(path, field, tokenizer)


def _of_file(path: Path, field: str, tokenizer: ChatTokenizer) -> Iterator[str]:
    """A plain file in its paragraphs, of other files one text per row; packed ones as a source would be read."""
    if path.suffix.lower() in _PACKED_FILES:
        found = read_files(source_files(path.name, str(path)), field, _LIMITS, Cursor())
        yield from (one.text for one in found if isinstance(one, Document))
        return
    for record in read_records(path, detect_format(path)):
        if isinstance(record, Record):
            yield _text_of(record.value, field, tokenizer)


def _text_of(value: object, field: str, tokenizer: ChatTokenizer) -> str:
    """The text of a row, or its turns as the model's template renders them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return ""
    for key in (field, *_FIELDS):
        if isinstance(value.get(key), str):
            return str(value[key])
    said = _turns(value)
    try:
        return tokenizer.render(said) if said else ""
    except (TemplateRefusal, EngineError):
        return "\n".join(message.content for message in said)


def _turns(row: dict[str, object]) -> list[Message]:
    turns: object = next((row[key] for key in _CHATS if isinstance(row.get(key), list)), [])
    assert isinstance(turns, list)
    return [
        Message(str(turn.get("role") or turn.get("from")), str(turn.get("content") or turn.get("value") or ""))
        for turn in turns
        if isinstance(turn, dict)
    ]
