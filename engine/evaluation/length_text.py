"""Documents to measure on: from a file, a folder, or what ships with the program, each of one length in tokens.

Owns where text comes from and how documents get their length. Must not know torch or models.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from engine.data.chat_template import TemplateRefusal
from engine.data.files import Record, detect_format, read_records, require_file
from engine.data.load import DEMO, GENERAL
from engine.data.rows import FileFormat, Message
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.evaluation.haystack_frame import Ids
from engine.resources import demo_dir, profiles_dir

_TEXT_FILES = (".txt", ".md", ".jsonl", ".json", ".parquet", ".csv")
_CHARACTERS_PER_TOKEN = 12
"""More than any tokenizer's on prose: so much text is tokenised at first."""
_LIBRARY_CHARACTERS = 6
"""More than any tokenizer's on source code."""
_STRANGE = 1.1
"""So many times more tokens per character of English than of the demo's few words: this tokenizer is the demo's (1.3).
Others take more for the demo's invented names."""
_KEYS = ("text", "content", "document", "body")
_CHATS = ("messages", "conversations")


@dataclass(frozen=True, slots=True)
class Documents:
    """Texts of exactly `length` tokens each, those that a tokenizer puts before a text included."""

    start: Ids
    """What the tokenizer puts before a text; every piece of a document begins with it too."""
    texts: tuple[Ids, ...]
    """Without `start`."""
    length: int
    origin: str = ""
    """Where they came from, for people."""
    notes: tuple[str, ...] = ()
    own: str = ""
    """The user's text, some of it, for hay; empty for what ships with the program."""

    def whole(self) -> list[Ids]:
        """The documents, `length` tokens each."""
        return [self.start + text for text in self.texts]

    def ends(self, length: int) -> list[Ids]:
        """Rows of `length` tokens that end where the documents end."""
        return [self.start + text[len(text) - length + len(self.start) :] for text in self.texts]

    def pieces(self, length: int, most: int) -> list[Ids]:
        """Up to `most` rows of `length` tokens side by side, one of every document first."""
        size = length - len(self.start)
        places = range(0, len(self.texts[0]) - size + 1, size) if self.texts else range(0)
        return [self.start + text[place : place + size] for place in places for text in self.texts][:most]


def load_text(tokenizer: ChatTokenizer, source: str, length: int, most: int) -> Documents:
    """Up to `most` documents of `length` tokens.

    `source` is "demo", "general", a file or a folder; "" takes the demo's for the demo's tokenizer, else "general":
    plain English, and where that is too short the source text of Python's library, which is on every machine.
    Documents that are too short are joined in their order, and the notes say so. Raises EngineError
    `evaluation.no_text`, `evaluation.text_too_short`, and `data.*` for files that cannot be read.
    """
    source = source or default_source(tokenizer)
    texts, origin = _read(tokenizer, source)
    if source == GENERAL and len(texts[0]) < most * length * _LIBRARY_CHARACTERS:
        texts += _library(most * length * _LIBRARY_CHARACTERS)
        origin += ", and the source text of Python's own library"
    start = tokenizer.with_start(())
    size = length - len(start)
    long, short = _sorted_by_length(tokenizer, texts, size)
    notes = []
    documents = [ids[:size] for ids in long[:most]]
    if len(documents) < most and short:
        joined = _joined(tokenizer, short, size, most - len(documents))
        if joined:
            documents += joined
            notes.append(
                f"{len(joined)} of {len(documents)} documents are shorter texts of {origin}, joined in their order."
            )
    if not documents:
        found = sum(map(len, short))
        raise EngineError(
            "evaluation.text_too_short",
            f"{origin} has too little text for {length:,} tokens.",
            cause=f"It gives {found:,} tokens in all.",
            next_step=f"Give a --text with at least {length:,} tokens (about {length * 4:,} characters), "
            f"or measure --lengths up to {found + len(start):,}.",
        )
    if len(documents) < most:
        notes.append(f"{len(documents)} documents instead of {most}: {origin} has no more text of {length:,} tokens.")
    own = "" if source in (DEMO, GENERAL) else "\n".join(texts)[:400_000]
    return Documents(start, tuple(documents), length, origin, tuple(notes), own)


def default_source(tokenizer: ChatTokenizer) -> str:
    """ "demo" for a tokenizer that spells plain English out and knows the demo's words, else "general"."""
    english = (profiles_dir() / "base_text.txt").read_text("utf-8")
    rows = read_records(demo_dir() / "finetune" / "base_text.jsonl", FileFormat.JSONL)
    said = " ".join(_said(row.value) for row in islice(rows, 50) if isinstance(row, Record))
    plain, known = len(tokenizer.encode(english)) / len(english), len(tokenizer.encode(said)) / len(said)
    return DEMO if plain > _STRANGE * known else GENERAL


def _said(value: object) -> str:
    return " ".join(message.content for message in _turns(value))


def _read(tokenizer: ChatTokenizer, source: str) -> tuple[list[str], str]:
    """The texts in order, and what to call them."""
    if source == GENERAL:
        return [(profiles_dir() / "base_text.txt").read_text("utf-8")], "the plain English that ships with the program"
    if source == DEMO:
        long = demo_dir() / "long" / "heldout.jsonl"
        file = long if long.is_file() else demo_dir() / "finetune" / "base_text.jsonl"
        return list(_texts(tokenizer, file)), "the demo's held-out text"
    path = Path(source).expanduser()
    if not path.is_dir():
        require_file(path)
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _TEXT_FILES) if path.is_dir() else [path]
    texts = [text for file in files for text in _texts(tokenizer, file) if text.strip()]
    if not texts:
        raise EngineError(
            "evaluation.no_text",
            f"There is no text in {path}.",
            next_step="Give a text file, a .jsonl with a text in each row, or a folder of those.",
        )
    return texts, path.name


def _library(characters: int) -> list[str]:
    """Modules of Python's library in the order of their names, until there are so many characters."""
    texts: list[str] = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        if characters <= 0:
            break
        texts.append(file.read_text("utf-8", errors="replace"))
        characters -= len(texts[-1])
    return texts


def _texts(tokenizer: ChatTokenizer, file: Path) -> Iterator[str]:
    """One text for a plain file, one per row for the others."""
    form = detect_format(file)
    if form is FileFormat.TEXT:
        yield file.read_text("utf-8", errors="replace")
        return
    for record in read_records(file, form):
        if isinstance(record, Record):
            yield _text_of(tokenizer, record.value)


def _text_of(tokenizer: ChatTokenizer, value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return ""
    for key in _KEYS:
        if isinstance(value.get(key), str):
            return str(value[key])
    said = _turns(value)
    try:
        return tokenizer.render(said) if said else ""
    except (TemplateRefusal, EngineError):
        return "\n".join(message.content for message in said)


def _turns(value: object) -> list[Message]:
    """The turns of a chat row; none for other rows."""
    if not isinstance(value, dict):
        return []
    turns: list[object] = next((value[key] for key in _CHATS if isinstance(value.get(key), list)), [])
    return [
        Message(str(turn.get("role") or turn.get("from")), str(turn.get("content") or turn.get("value") or ""))
        for turn in turns
        if isinstance(turn, dict)
    ]


def _sorted_by_length(tokenizer: ChatTokenizer, texts: Sequence[str], size: int) -> tuple[list[Ids], list[Ids]]:
    """The texts as tokens: those of `size` and more (their beginnings), and the shorter ones."""
    long: list[Ids] = []
    short: list[Ids] = []
    for text in texts:
        ids = tokenizer.encode(text[: size * _CHARACTERS_PER_TOKEN])
        if len(ids) < size and len(text) > size * _CHARACTERS_PER_TOKEN:
            ids = tokenizer.encode(text)
        (long if len(ids) >= size else short).append(ids)
    return long, short


def _joined(tokenizer: ChatTokenizer, short: Sequence[Ids], size: int, most: int) -> list[Ids]:
    """Texts one after another until there are `size` tokens, as often as they last."""
    between = tokenizer.encode("\n\n")
    documents: list[Ids] = []
    current: list[int] = []
    for ids in short:
        current += [*between, *ids] if current else ids
        if len(current) >= size:
            documents.append(tuple(current[:size]))
            current = []
            if len(documents) == most:
                break
    return documents
