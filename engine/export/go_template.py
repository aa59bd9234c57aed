"""A small evaluator of Go's text/template: as much of it as the Modelfiles written here use.

Owns that language. Must not know models. It is there for one reason: a template that was written for Ollama is run on
turns here and must give, byte for byte, the text that the model's own Jinja template gives.

Supported, as https://pkg.go.dev/text/template describes it: text; actions with `{{-` and `-}}` trimming; fields
(`.Content`, `$.System`, `$name`); strings in double quotes (as Go's strconv quotes them) and whole numbers; `range $i,
$m := pipeline`; `if`, `else`, `else if`, `end`; `:=` and `=`; the functions `eq`, `ne`, `and`, `or`, `not`, `len`,
`slice`. Anything else raises ValueError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_ACTION = re.compile(r"\{\{(- )?\s*(.*?)\s*( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\(|\)|:=|=|,|\$?[A-Za-z_.][\w.]*|\$[\w.]*|-?\d+)')


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Do:
    words: tuple[str, ...]


@dataclass(slots=True)
class _Block:
    """range or if; `rest` is the else part."""

    words: tuple[str, ...]
    body: list[_Text | _Do | _Block] = field(default_factory=list)
    rest: list[_Text | _Do | _Block] = field(default_factory=list)


_Nodes = list[_Text | _Do | _Block]


def execute(template: str, values: dict[str, Any]) -> str:
    """What Go writes for `values` ("System", "Messages" with "Role" and "Content"). Raises ValueError for what is not
    supported."""
    nodes = _parsed(iter(_pieces(template)), ("",))[0]
    out: list[str] = []
    _run(nodes, values, {"$": values}, out)
    return "".join(out)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _pieces(template: str) -> Iterator[str | tuple[str, ...]]:
    """Texts and actions (as words) in order, trimmed."""
    at, trim = 0, False
    for found in _ACTION.finditer(template):
        text = template[at : found.start()]
        text = text.lstrip(" \t\r\n") if trim else text
        yield text.rstrip(" \t\r\n") if found[1] else text
        yield _words(found[2])
        at, trim = found.end(), bool(found[3])
    text = template[at:]
    yield text.lstrip(" \t\r\n") if trim else text


def _words(action: str) -> tuple[str, ...]:
    words, at = [], 0
    while at < len(action.rstrip()):
        found = _TOKEN.match(action, at)
        if found is None:
            raise ValueError(f"not supported in a template: {action[at:]!r}")
        words.append(found[1])
        at = found.end()
    return tuple(words)


def _parsed(pieces: Iterator[str | tuple[str, ...]], ends: tuple[str, ...]) -> tuple[_Nodes, tuple[str, ...]]:
    """Nodes up to one of `ends` ("" is the end of the text), and the action that ended them."""
    nodes: _Nodes = []
    for piece in pieces:
        if isinstance(piece, str):
            nodes.append(_Text(piece))
        elif piece[:1] and piece[0] in ends:
            return nodes, piece
        elif piece[:1] and piece[0] in ("range", "if"):
            nodes.append(_block(piece, pieces))
        else:
            nodes.append(_Do(piece))
    if "" not in ends:
        raise ValueError("a block of the template has no end")
    return nodes, ()


def _block(words: tuple[str, ...], pieces: Iterator[str | tuple[str, ...]]) -> _Block:
    block = _Block(words)
    block.body, ended = _parsed(pieces, ("end", "else"))
    if ended[0] == "else" and len(ended) > 1:
        block.rest = [_block(ended[1:], pieces)]
    elif ended[0] == "else":
        block.rest = _parsed(pieces, ("end",))[0]
    return block


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _run(nodes: _Nodes, dot: Any, names: dict[str, Any], out: list[str]) -> None:
    for node in nodes:
        if isinstance(node, _Text):
            out.append(node.text)
        elif isinstance(node, _Do):
            _do(node.words, dot, names, out)
        elif node.words[0] == "range":
            _range(node, dot, names, out)
        else:
            chosen = node.body if _value(node.words[1:], dot, names) else node.rest
            _run(chosen, dot, names, out)


def _do(words: tuple[str, ...], dot: Any, names: dict[str, Any], out: list[str]) -> None:
    if len(words) > 2 and words[1] in (":=", "="):
        if words[1] == "=" and words[0] not in names:
            raise ValueError(f"{words[0]} was never declared")
        names[words[0]] = _value(words[2:], dot, names)
        return
    value = _value(words, dot, names)
    out.append(str(value).lower() if isinstance(value, bool) else str(value))


def _range(node: _Block, dot: Any, names: dict[str, Any], out: list[str]) -> None:
    words = node.words[1:]
    index = item = ""
    if ":=" in words:
        split = words.index(":=")
        named = [word for word in words[:split] if word != ","]
        index, item = (named[0], named[1]) if len(named) == 2 else ("", named[0])
        words = words[split + 1 :]
    found = _value(words, dot, names)
    for number, value in enumerate(found):
        names |= ({index: number} if index else {}) | ({item: value} if item else {})
        _run(node.body, value, names, out)
    if not found:
        _run(node.rest, dot, names, out)


def _value(words: tuple[str, ...], dot: Any, names: dict[str, Any]) -> Any:
    """One operand, or a function and its operands."""
    if not words:
        raise ValueError("an action of the template is empty")
    operands = _operands(words, dot, names)
    if words[0] in _FUNCTIONS:
        return _FUNCTIONS[words[0]](*operands)
    if len(operands) != 1:
        raise ValueError(f"not supported in a template: {' '.join(words)}")
    return operands[0]


def _operands(words: tuple[str, ...], dot: Any, names: dict[str, Any]) -> list[Any]:
    found = []
    at = 1 if words[0] in _FUNCTIONS else 0
    while at < len(words):
        if words[at] == "(":
            close = _closing(words, at)
            found.append(_value(words[at + 1 : close], dot, names))
            at = close + 1
        else:
            found.append(_operand(words[at], dot, names))
            at += 1
    return found


def _closing(words: tuple[str, ...], at: int) -> int:
    depth = 0
    for place in range(at, len(words)):
        depth += (words[place] == "(") - (words[place] == ")")
        if depth == 0:
            return place
    raise ValueError("a parenthesis of the template is not closed")


def _operand(word: str, dot: Any, names: dict[str, Any]) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if re.fullmatch(r"-?\d+", word):
        return int(word)
    head, _, path = word.partition(".")
    value = dot if not head else names.get(head, _MISSING)
    if value is _MISSING:
        raise ValueError(f"not supported in a template: {word}")
    for name in filter(None, path.split(".")):
        value = value[name]
    return value


_MISSING = object()
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda one, *others: one in others,
    "ne": lambda one, other: one != other,
    "and": lambda *operands: next((one for one in operands if not one), operands[-1]),
    "or": lambda *operands: next((one for one in operands if one), operands[-1]),
    "not": lambda one: not one,
    "len": len,
    "slice": lambda one, *ends: one[slice(*ends)] if len(ends) == 2 else one[ends[0] :],
}
