"""How many tokens the sources of a job hold, told in seconds: counted where they are cached, else from a sample.

Owns the sampling. Must not read the text of a source as a whole. From each of a few files, evenly spread, the first
documents are tokenised; tokens per byte of them stand for the rest, compressed files being unpacked as far as their
first block. What is cached is counted as it will be trained on: without duplicates and what is held out.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.corpus.beside import Known
from engine.corpus.documents import Document, Limits
from engine.corpus.faults import Fault
from engine.corpus.files import Form, SourceFile, detect, source_files
from engine.corpus.prepare import corpus_home
from engine.corpus.reading import read_files
from engine.corpus.selection import Taken, select, take
from engine.corpus.shards import Cursor, Shard, open_shard, read_record
from engine.corpus.source import Identity, TextSource, first_change
from engine.corpus.tokenizer import TextTokenizer
from engine.corpus.unpacking import Damaged, Packing, read_some, unpacked
from engine.errors import EngineError
from engine.jobs.spec import JobSpec
from engine.jobs.spec_stream import HUB, SourceSection, StreamSection
from engine.schedule.amounts import AmountOrigin, SourceAmount
from engine.schedule.steps import tokens_to_read

IDENTITY = "source.json"
"""As `engine.corpus.cache` names it."""
SAMPLE_FILES = 4
SAMPLE_BYTES = 48 * 1024
"""Of text, per file."""
SAMPLE_DOCUMENTS = 200
_SHOWN_CHARACTERS = 400
_FIRST_BLOCK = 1 << 18
BYTES_PER_TOKEN = 4.2
"""Of plain text, where there is no tokenizer to ask. English has 4 to 4.5 in large vocabularies, code and other
languages less."""
SAMPLED = (0.7, 1.0, 1.15)
"""Documents are unlike each other, and duplicates are left out. Own estimate."""
COMPARED = 2_000_000
"""Cached documents whose digests are compared, in four seconds; of more, duplicates are as unknown as in a sample."""
GUESSED = (0.5, 1.0, 1.6)


def amounts_of(spec: JobSpec, tokenizer_dir: Path | None) -> tuple[SourceAmount, ...]:
    """Of every source of a spec whose paths are absolute. Raises EngineError `corpus.not_found` with the spec's key."""
    needed = tokens_to_read(spec)
    read = [source for source in spec.sources if needed is None or needed[source.name]]
    counted = _counted(read, spec.stream, tokenizer_dir)
    found = []
    for number, source in enumerate(spec.sources, 1):
        try:
            if source in read:
                found.append(_amount(source, spec.stream, tokenizer_dir, counted.get(source.name)))
            else:  # not read, so that nothing of it is compared with the others
                found.append(amount_of(source, spec.stream, tokenizer_dir))
        except EngineError as error:
            raise EngineError(
                error.code,
                error.what,
                cause=error.cause,
                next_step=error.next_step,
                exit_code=error.exit_code,
                key=f"sources[{number}].path",
            ) from error
    return tuple(found)


def amount_of(source: SourceSection, stream: StreamSection, tokenizer_dir: Path | None) -> SourceAmount:
    """Of a source by itself. Raises EngineError `corpus.not_found`."""
    return _amount(source, stream, tokenizer_dir, _counted([source], stream, tokenizer_dir).get(source.name))


def _amount(
    source: SourceSection, stream: StreamSection, tokenizer_dir: Path | None, counted: _Count | None
) -> SourceAmount:
    if source.path.startswith(HUB):
        return SourceAmount(source.name, 0, 0, 0.0, float(source.max_tokens), 0.0, AmountOrigin.UNKNOWN)
    files = source_files(source.name, source.path)
    size_bytes = sum(file.size_bytes for file in files)
    if counted is not None:
        figures = (counted.tokens * counted.least, counted.tokens, counted.tokens)
        origin, why = AmountOrigin.COUNTED, "" if counted.tokens else "no document that would be trained on"
        return SourceAmount(
            source.name, len(files), size_bytes, *figures, origin, documents=counted.documents, unreadable=why
        )
    limits = Limits(stream.longest_document_mb << 20, stream.text_kb << 10)
    pieces = [_sampled(file, source.field, limits) for file in _spread(files)]
    return _from_sample(source, files, pieces, _encoder(tokenizer_dir))


@dataclass(frozen=True, slots=True)
class _Count:
    """What a cached source has to train on."""

    tokens: float
    documents: float
    least: float = 1.0
    """Share of the tokens that is left at the least, where not all duplicates are known."""


def _counted(
    sources: Sequence[SourceSection], stream: StreamSection, tokenizer_dir: Path | None
) -> Mapping[str, _Count]:
    """By name, of the sources that are all in the cache, as their files are now. Near duplicates and what is shared
    with an evaluation are not looked for here."""
    try:
        tokenizer = TextTokenizer(tokenizer_dir) if tokenizer_dir is not None else None
    except EngineError:
        return {}
    cached: dict[str, Taken] = {}
    for source in sources:
        shards = None if tokenizer is None or source.path.startswith(HUB) else _cached(source, stream, tokenizer)
        if shards is not None:
            cached[source.name] = Taken(
                shards,
                tuple(Known.nothing(len(shard.documents)) for shard in shards),
                take(shards, source.max_tokens or None),
            )
    if sum(taken.documents for taken in cached.values()) > COMPARED:
        return {
            name: _Count(float(taken.lengths().sum(dtype=np.int64)), taken.documents, SAMPLED[0])
            for name, taken in cached.items()
        }
    exact = msgspec.structs.replace(stream, deduplicate="off" if stream.deduplicate == "off" else "exact")
    least = SAMPLED[0] if stream.deduplicate == "near" else 1.0
    kept = [selection.counts.kept for selection in select(tuple(cached.values()), exact)]
    return {name: _Count(one.tokens, one.documents, least) for name, one in zip(cached, kept, strict=True)}


def _cached(source: SourceSection, stream: StreamSection, tokenizer: TextTokenizer) -> tuple[Shard, ...] | None:
    """Where all of the source is there."""
    shards: list[Shard] = []
    try:
        text = TextSource(source, stream, tokenizer.sha256)
        folder = corpus_home(stream) / text.definition.folder_name
        identity = msgspec.json.decode((folder / IDENTITY).read_bytes(), type=Identity)
        if first_change(identity.state, text.state(None)) is not None:
            return None
        while (record := read_record(folder, len(shards))) is not None:
            shards.append(open_shard(folder, len(shards), record))
            if len(shards[-1].documents) != record.documents:
                return None
            if record.last:
                return tuple(shards)
    except (EngineError, OSError, ValueError):  # files that are missing, cut or no JSON
        return None
    return None


@dataclass(frozen=True, slots=True)
class _Piece:
    """The beginning of one file."""

    file_bytes: int
    texts: tuple[str, ...] = ()
    unpacked_bytes: float = 0.0
    """Of the whole file, as far as its beginning tells."""
    read_bytes: int = 0
    """Of the unpacked file, for these texts; 0 for Parquet."""
    rows: int = 0
    """Of the whole file, where it says so (Parquet)."""
    why: str = ""


def _spread(files: Sequence[SourceFile]) -> list[SourceFile]:
    """A few, from the first to the last, empty ones passed over where there are others."""
    full = [file for file in files if file.size_bytes] or list(files)
    step = max(len(full) / SAMPLE_FILES, 1.0)
    return [full[int(number * step)] for number in range(min(SAMPLE_FILES, len(full)))]


def _sampled(file: SourceFile, field: str, limits: Limits) -> _Piece:
    try:
        opened = detect(file)
        if isinstance(opened, Fault):
            return _Piece(file.size_bytes, why=f"{file.path}: {opened.kind.value}")
        documents, fault = _first_documents(file, field, limits)
        if not documents:
            return _Piece(file.size_bytes, why=f"{file.path}: {fault.kind.value if fault else 'no text'}")
        texts = tuple(document.text for document in documents)
        if opened.form is Form.PARQUET:
            return _Piece(file.size_bytes, texts, rows=_parquet_rows(file.path))
        whole = file.size_bytes * _unpacked_ratio(file, opened.packing)
        return _Piece(file.size_bytes, texts, whole, documents[-1].after.byte)
    except OSError as error:
        return _Piece(file.size_bytes, why=f"{file.path}: {error.strerror or error}")


def _first_documents(file: SourceFile, field: str, limits: Limits) -> tuple[list[Document], Fault | None]:
    documents: list[Document] = []
    first_fault: Fault | None = None
    size = 0
    for one in islice(read_files([file], field, limits, Cursor()), SAMPLE_DOCUMENTS):
        if isinstance(one, Fault):
            first_fault = first_fault or one
            continue
        documents.append(one)
        size += len(one.text)
        if size >= SAMPLE_BYTES:
            break
    return documents, first_fault


def _unpacked_ratio(file: SourceFile, packing: Packing) -> float:
    """Unpacked bytes per byte of the file's first block."""
    if packing is Packing.NONE:
        return 1.0
    with open(file.path, "rb") as raw:
        block = raw.read(_FIRST_BLOCK)
    stream, size = unpacked(io.BytesIO(block), packing), 0
    try:
        while piece := read_some(stream, _FIRST_BLOCK):
            size += len(piece)
    except Damaged:  # the block ends inside of a frame
        pass
    return size / len(block) if size else 1.0


def _parquet_rows(path: str) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _from_sample(
    source: SourceSection, files: Sequence[SourceFile], pieces: Sequence[_Piece], encoder: Any
) -> SourceAmount:
    """Tokens per byte on disk of the pieces, times all bytes."""
    size_bytes = sum(file.size_bytes for file in files)
    read = [piece for piece in pieces if piece.texts]
    if not read:
        why = "; ".join(piece.why for piece in pieces if piece.why)
        return SourceAmount(source.name, len(files), size_bytes, 0, 0, 0, AmountOrigin.UNKNOWN, unreadable=why)
    tokens = documents = 0.0
    for piece in read:
        own = sum(_tokens_in(text, encoder) for text in piece.texts)
        whole = piece.rows / len(piece.texts) if piece.rows else piece.unpacked_bytes / piece.read_bytes
        tokens, documents = tokens + own * whole, documents + len(piece.texts) * whole
    sampled_bytes = max(sum(piece.file_bytes for piece in pieces), 1)
    per_byte = tokens / sampled_bytes
    low, likely, high = (per_byte * size_bytes * factor for factor in (SAMPLED if encoder is not None else GUESSED))
    most = float(source.max_tokens) or high
    origin = AmountOrigin.SAMPLE if encoder is not None else AmountOrigin.SIZE
    shown = read[0].texts[0][:_SHOWN_CHARACTERS]
    figures = (min(low, most), min(likely, most), min(high, most))
    documents *= size_bytes / sampled_bytes * figures[1] / max(likely, 1.0)
    return SourceAmount(source.name, len(files), size_bytes, *figures, origin, documents=documents, text=shown)


def _tokens_in(text: str, encoder: Any) -> float:
    """With the end of the document."""
    text = text[: SAMPLE_BYTES * 4]
    return (len(encoder.encode(text).ids) if encoder is not None else len(text.encode()) / BYTES_PER_TOKEN) + 1


def _encoder(tokenizer_dir: Path | None) -> Any:
    """The `tokenizers` object of the model, or None where there is none here."""
    path = tokenizer_dir / "tokenizer.json" if tokenizer_dir is not None else None
    if path is None or not path.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(os.fspath(path))
