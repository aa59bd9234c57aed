"""A source as its cache sees it: what it is made of now, and its documents from any place on.

Owns the two kinds of source and what names a cached source. Must not know shards.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from engine.corpus.documents import Found, Limits
from engine.corpus.files import SourceFile, source_files
from engine.corpus.reading import read_files
from engine.corpus.shards import Cursor
from engine.errors import EngineError
from engine.jobs.spec_stream import HUB, SourceSection, StreamSection

SOURCE_NAME = "source.json"
"""Beside the shards: an Identity."""
FORMAT = 1
"""Of the cache; another one is another folder."""


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides a source's tokens but the present state of its files."""

    format: int = FORMAT
    path: str
    field: str
    config: str
    split: str
    longest_bytes: int
    text_bytes: int
    tokenizer_sha256: str

    @property
    def folder_name(self) -> str:
        """Of the cached source."""
        words = "".join(c if c.isalnum() else "-" for c in Path(self.path.removeprefix(HUB)).name)[:40].strip("-")
        return f"{words or 'text'}-{hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]}"


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the source was made of when it was read."""

    files: tuple[SourceFile, ...] = ()
    hub: str = ""
    """A data set's fingerprint: a commit, or names, sizes and times of local files."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """`source.json`."""

    definition: Definition
    state: State


class TextSource:
    """Files, or a data set on the hub."""

    def __init__(self, source: SourceSection, stream: StreamSection, tokenizer_sha256: str) -> None:
        self.name = source.name
        self._source = source
        self._limits = Limits(stream.longest_document_mb << 20, stream.text_kb << 10)
        self._files: tuple[SourceFile, ...] = ()
        self.is_hub = source.path.startswith(HUB)
        self.definition = Definition(
            path=source.path if self.is_hub else str(Path(source.path).expanduser().absolute()),
            field=source.field,
            config=source.config,
            split=source.split if self.is_hub else "",
            longest_bytes=self._limits.longest_bytes,
            text_bytes=self._limits.text_bytes,
            tokenizer_sha256=tokenizer_sha256,
        )

    def state(self, known: State | None) -> State:
        """What it is made of now; of a hub that cannot be reached, what was `known`. Raises EngineError
        `corpus.not_found` or `corpus.hub`."""
        if not self.is_hub:
            self._files = source_files(self.name, self.definition.path)
            return State(files=self._files)
        from engine.corpus.hub import HubText

        try:
            return State(hub=HubText(self._source).identity())
        except EngineError:
            if known is None:
                raise
            return known

    def read(self, begin: Cursor) -> Found:
        """Documents and faults from `begin` on."""
        if not self.is_hub:
            return read_files(self._files, self._source.field, self._limits, begin)
        from engine.corpus.hub import HubText

        return HubText(self._source).read(self._limits, begin)

    @property
    def file_count(self) -> int:
        """0 for a data set on the hub."""
        return len(self._files)

    def file_name(self, number: int) -> str:
        """Of a document's file."""
        return self._source.path if self.is_hub else self._files[number].path


def first_change(before: State, now: State) -> int | None:
    """The first file that is not as it was; None where all that were read are. A data set has one "file"."""
    if before.hub != now.hub:
        return 0
    for number, file in enumerate(before.files):
        if number >= len(now.files) or now.files[number] != file:
            return number
    return None
