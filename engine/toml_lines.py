"""Which line of a TOML text sets which key, for messages about what the keys mean together.

Owns this map. Must not check anything: the text was read by `tomllib` before. Rows of arrays of tables count from 1, as
people count them: "stages[2].layers".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from engine.errors import EngineError

Path = tuple[str | int, ...]
_HEADER = re.compile(r"\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+)")
_STRING = re.compile(r"\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\])*\"|'[^']*'")
_NAMED = re.compile(r"(?<![\w.])([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+)+|[a-z_]+\[\d+\])|\[\[?([a-z_]+)\]\]?|^(task) = ")


def line_of(text: str, key: str) -> int | None:
    """The line where dotted `key` is set; of a key that is not there that of its table; None when that is nowhere."""
    found, path = key_lines(text), key_path(key)
    while path:
        if path in found:
            return found[path]
        path = path[:-1]
    return None


def key_path(key: str) -> Path:
    """ "stages[2].layers" -> ("stages", 2, "layers")."""
    parts: list[str | int] = []
    for name, number in re.findall(r"([^.\[\]]+)|\[(\d+)\]", key):
        parts.append(int(number) if number else name)
    return tuple(parts)


def numbered_from_one(key: str) -> str:
    """A key whose rows count from 0, as programs count, for people: "stages[0].layers" -> "stages[1].layers"."""
    return re.sub(r"\[(\d+)\]", lambda index: f"[{int(index.group(1)) + 1}]", key)


def key_lines(text: str) -> Mapping[Path, int]:
    """Every key and table header with its line, the first where one comes more than once."""
    found: dict[Path, int] = {}
    table: Path = ()
    rows: dict[Path, int] = {}
    for number, line in _logical_lines(text):
        header = _HEADER.match(line)
        if header:
            names = _parts(header.group(2))
            array = header.group(1) == "[["
            table = (*_numbered(names[:-1], rows), names[-1]) if array else _numbered(names, rows)
            found.setdefault(table, number)
            if array:
                rows[table] = rows.get(table, 0) + 1
                table = (*table, rows[table])
            found.setdefault(table, number)
            continue
        key = _KEY.match(line)
        if key:
            parts = _parts(key.group(1))
            for depth in range(1, len(parts) + 1):
                found.setdefault((*table, *parts[:depth]), number)
    return found


def located(error: EngineError, text: str) -> EngineError:
    """The same error with the line of the key that it is about: its `key`, or else the first one that its words name
    and the text holds. Unchanged where the text holds none."""
    found = key_lines(text)
    asked = (error.key,) if error.key else _named_in(error.what)
    line = next((found[key_path(key)] for key in asked if key_path(key) in found), None)
    if line is None:
        line = next((place for key in asked if (place := line_of(text, key)) is not None), None)
    if line is None:
        return error
    return EngineError(
        error.code,
        f"line {line}: {error.what}",
        cause=error.cause,
        next_step=error.next_step,
        exit_code=error.exit_code,
    )


def _named_in(words: str) -> tuple[str, ...]:
    return tuple("".join(groups) for groups in _NAMED.findall(words))


def _parts(names: str) -> Path:
    return tuple(next(name for name in groups if name or groups == ("", "", "")) for groups in _PART.findall(names))


def _numbered(names: Path, rows: Mapping[Path, int]) -> Path:
    """A table below a row of an array belongs to its newest row."""
    path: Path = ()
    for name in names:
        path = (*path, name)
        if path in rows:
            path = (*path, rows[path])
    return path


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that begin a header or a key: not those inside of texts and arrays over several lines."""
    quote, depth = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        begins = not quote and not depth
        if quote:
            if quote not in line:
                continue
            line = line.partition(quote)[2]
            quote = ""
        bare = _STRING.sub('""', line)
        opened = min((place for mark in ('"""', "'''") if (place := bare.find(mark)) >= 0), default=-1)
        if opened >= 0:
            quote, bare = bare[opened : opened + 3], bare[:opened]
        bare = bare.partition("#")[0]
        if begins:
            yield number, line
        if depth or not _HEADER.match(bare):
            depth = max(depth + bare.count("[") + bare.count("{") - bare.count("]") - bare.count("}"), 0)
