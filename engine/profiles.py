"""Typed reading of TOML at the edge: text in, frozen structs out, errors with file, line and key.

Owns the mapping from TOML mistakes to clear errors. Must not know what any profile means.
"""

from __future__ import annotations

import enum
import re
import tomllib
import typing
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine.errors import EngineError
from engine.resources import profiles_dir

T = TypeVar("T")


def load_toml(path: Path, kind: type[T], *, what: str = "file") -> T:
    """Read `path` as `kind`. Raises EngineError `toml.*` that names file, line and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EngineError(
            "toml.unreadable",
            f"Cannot read {what} {path}.",
            cause=error.strerror or str(error),
            next_step="Check the path and its permissions.",
        ) from error
    except UnicodeDecodeError as error:
        raise EngineError(
            "toml.encoding", f"{path} is not UTF-8 text.", cause=str(error), next_step="Save the file as UTF-8."
        ) from error
    return parse_toml(text, kind, name=str(path), what=what)


def parse_toml(text: str, kind: type[T], *, name: str, what: str = "file") -> T:
    """Parse TOML `text` as `kind`; `name` is how messages call it. Raises EngineError `toml.*`."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EngineError(
            "toml.syntax",
            f"{name} is not valid TOML.",
            cause=str(error),
            next_step="Correct that line; strings need quotes, and a key may appear once.",
        ) from error
    try:
        return msgspec.convert(tree, kind, strict=True)
    except msgspec.ValidationError as error:
        message, key = _split_validation(str(error))
        line = _line_of(text, key)
        where = f"line {line}, " if line else ""
        allowed = allowed_words(kind, key)
        raise EngineError(
            "toml.value",
            f"{name}: {where}key '{key}': {message}{f'; allowed: {allowed}' if allowed else ''}.",
            cause=f"This {what} does not have the expected shape.",
            next_step="Correct the value; `scaler-wizard` writes commented files that show every key.",
        ) from error


def load_profile(relative: str, kind: type[T]) -> T:
    """Read one file of `profiles/`."""
    return load_toml(profiles_dir() / relative, kind, what="profile")


def allowed_words(kind: type[Any], key: str) -> str:
    """What the field at dotted `key` of a struct takes: "from 1 to 1,024", "one of qlora, lora"; "" when anything."""
    *tables, leaf = key.split(".")
    for table in tables:
        kind = _hint(kind, table)[0]
    hint, metas = _hint(kind, leaf)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(str(member.value) for member in hint)}"
    for meta in metas:
        low = f"{meta.ge:,}" if meta.ge is not None else f"above {meta.gt:,}" if meta.gt is not None else ""
        high = f"{meta.le:,}" if meta.le is not None else f"below {meta.lt:,}" if meta.lt is not None else ""
        if low and high:
            return f"from {low} to {high}" if meta.gt is None else f"{low}, at most {high}"
        if low or high:
            return (low if meta.gt is not None else f"at least {low}") if low else f"at most {high}"
    return ""


def _hint(kind: Any, field: str) -> tuple[Any, list[msgspec.Meta]]:
    """A field's bare type and its limits; (object, []) when there is no such field."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return object, []
    hint = typing.get_type_hints(kind, include_extras=True).get(field, object)
    if typing.get_origin(hint) is not typing.Annotated:
        return hint, []
    bare, *extras = typing.get_args(hint)
    return bare, [extra for extra in extras if isinstance(extra, msgspec.Meta)]


def _split_validation(message: str) -> tuple[str, str]:
    """msgspec says "Expected `int`, got `str` - at `$.train.rank`" -> (message, "train.rank")."""
    text, _, path = message.partition(" - at `$")
    key = path.rstrip("`").lstrip(".")
    unknown = re.search(r"unknown field `([^`]+)`", text)
    missing = re.search(r"missing required field `([^`]+)`", text)
    named = unknown or missing
    if named:
        key = f"{key}.{named.group(1)}" if key else named.group(1)
    return text.replace("Object", "It").strip(), key or "(top level)"


def _line_of(text: str, key: str) -> int | None:
    """The line where dotted `key` is set; falls back to its table's line; None when it is nowhere."""
    parts = [part for part in re.split(r"\.|\[[^\]]*\]", key) if part]
    if not parts:
        return None
    wanted_table, leaf = parts[:-1], parts[-1]
    table: list[str] = []
    table_line: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?", line)
        if header:
            table = [part.strip().strip('"') for part in header.group(1).split(".")]
            if table in (wanted_table, parts):
                table_line = table_line or number
            continue
        if table == wanted_table and re.match(rf"\s*\"?{re.escape(leaf)}\"?\s*=", line):
            return number
    return table_line
