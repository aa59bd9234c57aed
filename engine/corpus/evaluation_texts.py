"""The texts that a job is evaluated on, as far as a spec names them: what documents must not share runs of words with.

Owns which there are. Must not know how models are measured; questions of benchmarks come from whoever loads those.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from engine.corpus.documents import Document, Limits
from engine.corpus.files import SourceFile, source_files
from engine.corpus.reading import read_files
from engine.corpus.shards import Cursor
from engine.data.files import Record, detect_format, read_records
from engine.data.load import GENERAL
from engine.errors import EngineError
from engine.jobs.spec import JobSpec
from engine.resources import demo_rows_file, profiles_dir

_LIMITS = Limits(64 << 20, 64 << 10)
_BASE_TEXT = "base_text"


def evaluation_texts(spec: JobSpec) -> Iterator[str]:
    """Of [[suites]] and data.base_text; paths in the spec are absolute. Raises EngineError `corpus.not_found`."""
    yield from texts_of("data.base_text", spec.data.base_text)
    for suite in spec.suites:
        yield from texts_of(suite.name, suite.path, suite.field)


def texts_of(name: str, path: str, field: str = "text") -> Iterator[str]:
    """All text of a file, a folder or a pattern, "general", "demo" or "demo-long"; of rows every piece of text there
    is, since what is asked and what is answered both count."""
    if not path:
        return
    shipped = profiles_dir() / "base_text.txt" if path == GENERAL else demo_rows_file(path, _BASE_TEXT)
    for file in source_files(name, str(shipped or path)):
        yield from _texts(file, field)


def _texts(file: SourceFile, field: str) -> Iterator[str]:
    try:
        form = detect_format(Path(file.path))
    except EngineError:  # packed, or nothing that has rows
        found = read_files((file,), field, _LIMITS, Cursor())
        yield from (one.text for one in found if isinstance(one, Document))
        return
    for record in read_records(Path(file.path), form):
        if isinstance(record, Record) and (text := "\n".join(_strings(record.value))):
            yield text


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_strings, value.values()))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_strings, value))
