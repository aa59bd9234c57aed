"""A source's shards: read from the cache, made where they are missing, made again where they are damaged.

Owns the folder of one source. Must not know other sources, nor which documents are trained on.

    CACHE/web-3f2a9c41d0b7e655/
      source.json             what was read, with which tokenizer
      shard-00000.{tokens,documents,json} ...
      lock

A shard counts once its record is there. A process that is killed loses the shard it was writing; the next one reads on
behind the last record. Nothing is changed in place, so that what another process has mapped stays what it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.corpus.beside import Known, Wanted, forget, known_of, write_known
from engine.corpus.documents import Document, Found
from engine.corpus.faults import BadInputPolicy, FaultCounts, FaultTally
from engine.corpus.report import Progress
from engine.corpus.shards import (
    Cursor,
    Shard,
    ShardRecord,
    ShardWriter,
    is_sound,
    open_shard,
    read_record,
    shard_path,
)
from engine.corpus.source import SOURCE_NAME, Identity, State, TextSource, first_change
from engine.corpus.tokenising import Encoded, encoded
from engine.corpus.tokenizer import TextTokenizer, all_cores
from engine.jobs.layout import write_atomic
from engine.jobs.lock import take
from engine.paths import ensure_writable

_EVERY_SECONDS = 1.0
_LOCK = "lock"
Tell = Callable[[Progress], None]


class SourceCache:
    """The shards of one source, as many as were asked for."""

    def __init__(
        self,
        source: TextSource,
        tokenizer: TextTokenizer,
        home: Path,
        wanted: Wanted,
        policy: BadInputPolicy,
        shard_tokens: int,
        tell: Tell,
    ) -> None:
        self.folder = home / source.definition.folder_name
        self.source = source
        self.records: list[ShardRecord] = []
        self.exhausted = False
        self.made = 0
        self.redone = 0
        self.seconds = 0.0
        self.needed_tokens = 0
        self._tokenizer = tokenizer
        self._wanted = wanted
        self._policy = policy
        self._shard_tokens = shard_tokens
        self._tell = tell
        self._told = 0.0
        self._checked = 0
        """Shards whose files were compared with their records."""

    @property
    def tokens(self) -> int:
        return sum(record.tokens for record in self.records)

    @property
    def faults(self) -> FaultCounts:
        return sum((record.faults for record in self.records), FaultCounts())

    def faults_of(self, shards: int) -> FaultCounts:
        """Of the first shards; of all of them also what comes behind the last document."""
        used = self.records if shards == self._checked else self.records[:shards]
        return sum((record.faults for record in used), FaultCounts())

    def open(self) -> None:
        """Look at what is there. Raises EngineError `corpus.not_found`, `corpus.hub`, `home.unwritable`."""
        ensure_writable(self.folder)
        with self._locked():
            identity = self._identity()
            state = self.source.state(identity.state if identity is not None else None)
            for leftover in self.folder.glob(".*.part"):
                leftover.unlink(missing_ok=True)
            self._load(identity.state if identity is not None else None, state)
            fresh = Identity(definition=self.source.definition, state=state)
            if fresh != identity:
                content = msgspec.json.format(msgspec.json.encode(fresh), indent=1)
                write_atomic(self.folder / SOURCE_NAME, content + b"\n")

    def ensure(self, tokens: int | None) -> None:
        """Have shards with so many tokens, sound ones, or all that the source has; None is all.

        Raises EngineError `corpus.bad_input`, `corpus.hub`, `disk.full`.
        """
        self.needed_tokens = tokens or 0
        with self._locked(), all_cores():
            started, made = time.monotonic(), self.made + self.redone
            self._take_over()
            self._check(tokens)
            self._judge()
            while not self.exhausted and (tokens is None or self.tokens < tokens):
                self._make(tokens)
            self._policy.check(self.source.name, self._documents, self.faults, at_end=True)
            if self.made + self.redone > made:
                self.seconds += time.monotonic() - started

    def shards(self) -> list[Shard]:
        """Those that were asked for, mapped."""
        return [open_shard(self.folder, number, record) for number, record in enumerate(self.records[: self._checked])]

    def known(self, number: int, shard: Shard) -> Known:
        """What the job needs to know of a shard's documents beside their tokens."""
        return known_of(self.folder, number, shard, self._wanted, self._tokenizer)

    @property
    def _documents(self) -> int:
        return sum(record.documents for record in self.records)

    # ── what is there ─────────────────────────────────────────────────────────────────────────────────────────────
    def _identity(self) -> Identity | None:
        try:
            return msgspec.json.decode((self.folder / SOURCE_NAME).read_bytes(), type=Identity)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _load(self, before: State | None, now: State) -> None:
        """Take over the shards of files that are as they were; remove the others."""
        numbers = sorted(int(path.stem.partition("-")[2]) for path in self.folder.glob("shard-*.json"))
        changed = first_change(before, now) if before is not None else 0
        count = numbers[-1] + 1 if numbers else 0
        for number in range(count):
            record = read_record(self.folder, number) or self._between(number)
            if record is None or record.begin != self._end or _is_stale(record, changed, before, now):
                self._remove(number, count)
                break
            self.records.append(record)

    def _take_over(self) -> None:
        """Shards that another process has made meanwhile."""
        while (record := read_record(self.folder, len(self.records))) is not None and record.begin == self._end:
            self.records.append(record)
        self.exhausted = bool(self.records and self.records[-1].last)

    @property
    def _end(self) -> Cursor:
        return self.records[-1].end if self.records else Cursor()

    def _between(self, number: int) -> ShardRecord | None:
        """Stands for a damaged record between two good ones: its files cannot be what it says, so it is made again."""
        behind = read_record(self.folder, number + 1)
        if behind is None:
            return None
        return msgspec.structs.replace(
            behind, begin=self._end, end=behind.begin, tokens_sha256="", last=False, faults=FaultCounts()
        )

    def _remove(self, first: int, count: int) -> None:
        for number in range(first, count):
            for kind in ("json", "tokens", "documents"):
                shard_path(self.folder, number, kind).unlink(missing_ok=True)
            forget(self.folder, number)

    def _check(self, tokens: int | None) -> None:
        """Compare files with records as far as they are needed, and make damaged shards again."""
        enough = 0
        for number, record in enumerate(self.records):
            if tokens is not None and enough >= tokens:
                return
            if number >= self._checked:
                self._say("checking")
                if not is_sound(self.folder, number, record):
                    self._redo(number, record)
                self._checked = number + 1
            enough += self.records[number].tokens

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time; another one's work is waited for, since it is this one's too."""
        while (handle := take(self.folder / _LOCK, patience_seconds=_EVERY_SECONDS)) is None:
            self._say("waiting", always=True)
        try:
            yield
        finally:
            os.close(handle)

    # ── what is made ──────────────────────────────────────────────────────────────────────────────────────────────
    def _make(self, tokens: int | None) -> None:
        """Shards from where the last one ends, until there are `tokens` or the source ends."""
        filling = _Filling(self, self._end)
        try:
            for batch in encoded(self.source.read(self._end), self._tokenizer, self._wanted):
                filling.add(batch, self._shard_tokens)
                if tokens is not None and self.tokens + filling.tokens >= tokens:
                    break
                self._judge(filling)
                self._say("reading", filling)
            else:
                self.exhausted = True
        except BaseException:
            filling.close(last=False)  # what was read is not read again
            raise
        filling.close(last=self.exhausted)

    def _redo(self, number: int, record: ShardRecord) -> None:
        """The same documents once more, under the same name."""
        forget(self.folder, number)
        filling = _Filling(self, record.begin, number)
        for batch in encoded(_until(self.source.read(record.begin), record), self._tokenizer, self._wanted):
            filling.add(batch, 0)
            self._say("reading", filling)
        filling.close(last=record.last, end=record.end)
        self.redone += 1

    def put(self, number: int, record: ShardRecord) -> None:
        """A finished shard."""
        if number < len(self.records):
            self.records[number] = record
        else:
            self.records.append(record)
            self.made += 1
            self._checked = max(self._checked, number + 1)

    def _judge(self, filling: _Filling | None = None) -> None:
        documents, faults = self._documents, self.faults
        if filling is not None:
            documents, faults = documents + filling.documents, faults + filling.faults
        self._policy.check(self.source.name, documents, faults, at_end=False)

    def _say(self, doing: str, filling: _Filling | None = None, *, always: bool = False) -> None:
        now = time.monotonic()
        if not always and now - self._told < _EVERY_SECONDS:
            return
        self._told = now
        self._tell(
            Progress(
                source=self.source.name,
                doing=doing,
                documents=self._documents + (filling.documents if filling is not None else 0),
                tokens=self.tokens + (filling.tokens if filling is not None else 0),
                text_bytes=sum(record.text_bytes for record in self.records),
                unreadable=self.faults.documents + (filling.faults.documents if filling is not None else 0),
                needed_tokens=self.needed_tokens,
            )
        )

    def start_shard(self, number: int) -> ShardWriter:
        return ShardWriter(self.folder, number, self._tokenizer.kind)

    def finish_shard(self, number: int, writer: ShardWriter, known: list[Known], **facts: Any) -> None:
        """Files first, then what is known beside them, then the record."""
        write_known(self.folder, number, self._wanted, known)
        self.put(number, writer.finish(tokenizer=(self._tokenizer.sha256, self._tokenizer.version), **facts))


class _Filling:
    """The shard that is being written, and the next one when it is full."""

    def __init__(self, cache: SourceCache, begin: Cursor, number: int | None = None) -> None:
        self._cache = cache
        self._number = len(cache.records) if number is None else number
        self._begin = self._end = begin
        self._writer: ShardWriter | None = None
        self._known: list[Known] = []
        self._faults = FaultCounts()
        """Before the shard's last document."""
        self._behind = FaultTally()
        """Behind it: the next document's shard has them, which may be made by another job. The last shard has all."""

    @property
    def tokens(self) -> int:
        return self._writer.tokens if self._writer is not None else 0

    @property
    def documents(self) -> int:
        return self._writer.documents if self._writer is not None else 0

    @property
    def faults(self) -> FaultCounts:
        return self._faults + self._behind.counts

    def add(self, batch: Encoded, shard_tokens: int) -> None:
        """Documents of a batch, into as many shards as they fill; 0 makes one of any size."""
        first, count = 0, len(batch.ends)
        while first < count:
            begin = int(batch.ends[first - 1]) if first else 0
            room = shard_tokens - self.tokens
            last = count if not shard_tokens else int(np.searchsorted(batch.ends, begin + room)) + 1
            last = min(max(last, first + 1), count)
            self._write(batch.part(first, last))
            if shard_tokens and self.tokens >= shard_tokens:
                self.close(last=False)
            first = last
        for at, fault in batch.faults:
            if at >= count:
                self._behind.add(fault)

    def _write(self, part: Encoded) -> None:
        if self._writer is None:
            self._writer = self._cache.start_shard(self._number)
        writer, self._writer = self._writer, None  # a writer that could not write has removed its files
        writer.add(part.ids, part.documents)
        self._writer = writer
        self._known.append(part.known)
        self._end = part.after[-1]
        for _, fault in part.faults:
            self._behind.add(fault)
        self._faults, self._behind = self.faults, FaultTally()

    def close(self, *, last: bool, end: Cursor | None = None) -> None:
        """Finish what there is; at the end of a source also a shard without documents, which holds its faults."""
        if self._writer is None:
            if not last and end is None:
                return
            self._writer = self._cache.start_shard(self._number)
        writer, known, faults = self._writer, self._known, self.faults if last else self._faults
        self._writer, self._known, self._faults = None, [], FaultCounts()
        self._cache.finish_shard(
            self._number, writer, known, begin=self._begin, end=end or self._end, last=last, faults=faults
        )
        self._number += 1
        self._begin = self._end


def _is_stale(record: ShardRecord, changed: int | None, before: State | None, now: State) -> bool:
    """Whether a shard may hold what is no longer so. The last one knows of files behind its documents too."""
    if record.last and before is not None and before != now:
        return True
    return changed is not None and record.end.file >= changed


def _until(found: Found, record: ShardRecord) -> Found:
    """What belongs to a shard: everything up to the document it ends with, or to the end of its source."""
    for one in found:
        if isinstance(one, Document) and not record.last and one.after == record.end:
            yield one
            return
        yield one
