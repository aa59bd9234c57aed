"""Typed reading of TOML at the edge: text in, frozen structs out, errors with file, line and key.

Owns the mapping from TOML mistakes to clear errors. Must not know what any profile means.
"""

from __future__ import annotations

import enum
import math
import re
import tomllib
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine.errors import EngineError
from engine.resources import profiles_dir
from engine.toml_lines import line_of, numbered_from_one

T = TypeVar("T")
NOT_FINITE = "Expected a finite number"


def load_toml(path: Path, kind: type[T], *, what: str = "file") -> T:
    """Read `path` as `kind`. Raises EngineError `toml.*` that names file, line and key."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors begin a file with a byte-order mark
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
    if key := not_finite(tree):  # it passes every lower limit, and ends in sums that cannot be done
        raise _bad_value(text, kind, key, NOT_FINITE, name, what)
    try:
        return msgspec.convert(tree, kind, strict=True)
    except msgspec.ValidationError as error:
        message, key = _split_validation(str(error))
        raise _bad_value(text, kind, key, message, name, what) from error


def _bad_value(text: str, kind: type[Any], key: str, message: str, name: str, what: str) -> EngineError:
    line = line_of(text, key)
    where = f"line {line}, " if line else ""
    allowed = allowed_words(kind, key)
    return EngineError(
        "toml.value",
        f"{name}: {where}key '{key}': {message}{f'; allowed: {allowed}' if allowed else ''}.",
        cause=f"This {what} does not have the expected shape.",
        next_step="Correct the value; `scaler-wizard` writes commented files that show every key.",
    )


def not_finite(tree: Any, key: str = "") -> str:
    """The first key of plain tables and lists that holds "inf" or "nan", rows counted from 1; "" for none."""
    if isinstance(tree, float):
        return "" if math.isfinite(tree) else key
    inner: Iterable[tuple[str, Any]] = ()
    if isinstance(tree, dict):
        inner = ((f"{key}.{name}" if key else str(name), value) for name, value in tree.items())
    elif isinstance(tree, list | tuple):
        inner = ((f"{key}[{number}]", value) for number, value in enumerate(tree, 1))
    return next(filter(None, (not_finite(value, name) for name, value in inner)), "")


def load_profile(relative: str, kind: type[T]) -> T:
    """Read one file of `profiles/`."""
    return load_toml(profiles_dir() / relative, kind, what="profile")


def allowed_words(kind: type[Any], key: str) -> str:
    """What the field at dotted `key` of a struct takes: "from 1 to 1,024", "one of qlora, lora"; "" when anything."""
    *tables, leaf = re.sub(r"\[[^\]]*\]", "", key).split(".")
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
    """A field's bare type (of an array that of its rows, of an optional one what it may be) and its limits; (object,
    []) when there is no such field."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return object, []
    hint, metas = typing.get_type_hints(kind, include_extras=True).get(field, object), []
    while True:
        arguments = typing.get_args(hint)
        if typing.get_origin(hint) is typing.Annotated:
            metas += [extra for extra in arguments[1:] if isinstance(extra, msgspec.Meta)]
            hint = arguments[0]
        elif arguments and (typing.get_origin(hint) is tuple or type(None) in arguments):
            hint = next(argument for argument in arguments if argument is not type(None))
        else:
            return hint, metas


def _split_validation(message: str) -> tuple[str, str]:
    """msgspec says "Expected `int`, got `str` - at `$.stages[0].layers`" -> (message, "stages[1].layers"): for people
    rows count from 1."""
    text, _, path = message.partition(" - at `$")
    key = numbered_from_one(path.rstrip("`").lstrip("."))
    unknown = re.search(r"unknown field `([^`]+)`", text)
    missing = re.search(r"missing required field `([^`]+)`", text)
    named = unknown or missing
    if named:
        key = f"{key}.{named.group(1)}" if key else named.group(1)
    return text.replace("Object", "It").strip(), key or "(top level)"
