"""Searched factors from a file: an `extension.json`, a search's log, a config with longrope in it, or plain numbers.

Owns reading these forms. Must not know what a method makes of the factors, nor how many a model needs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from engine.context.certificate import CERTIFICATE_NAME, Certificate
from engine.context.method import Options
from engine.context.search_log import Trial
from engine.errors import EngineError

_LARGEST_BYTES = 64 << 20
_SEPARATORS = re.compile(r"[\s,;]+")
_FORMS = (
    "an extension.json, the log of a search, a config.json with long_factor, or one number per pair separated by "
    "commas or line ends"
)


@dataclass(frozen=True, slots=True)
class Factors:
    """One divisor per rotated pair, as a file gave them."""

    long: tuple[float, ...]
    short: tuple[float, ...] = ()
    attention_factor: float | None = None
    """m on cos and sin; None where the file does not say it."""
    critical_pair: int | None = None

    def applied(self, options: Options) -> Options:
        """`options` with these factors; what the user set stays."""
        return replace(
            options,
            long_divisors=self.long,
            short_divisors=self.short,
            attention_factor=options.attention_factor or self.attention_factor,
            critical_pair=options.critical_pair or self.critical_pair,
        )


def read_factors(path: Path) -> Factors:
    """The factors in `path`: a file, or a folder with an extension.json. Raises EngineError `context.factors`."""
    if path.is_dir():
        path = path / CERTIFICATE_NAME
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise _wrong(path, "it is too large for a list of factors")
        content = path.read_bytes()
    except OSError as error:
        raise _wrong(path, error.strerror or str(error)) from error
    text = content.decode(errors="replace").strip()
    if not text.startswith(("{", "[")):
        return Factors(_numbers(path, text))
    best = _from_log(text.splitlines())
    if best is not None:
        return best
    try:
        tree = msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise _wrong(path, f"it is neither JSON nor a search's log ({error})") from error
    return _from_tree(path, tree, content)


def _from_log(lines: list[str]) -> Factors | None:
    """The best trial of a search; None when these are not a search's lines."""
    trials = []
    for line in lines[1:]:
        try:
            trials.append(msgspec.json.decode(line, type=Trial))
        except msgspec.DecodeError:
            continue  # cut short by a kill, or not a search's log at all
    if not trials:
        return None
    best = min(trials, key=lambda trial: trial.score)
    return Factors(best.divisors, attention_factor=best.attention_factor, critical_pair=best.critical_pair or None)


def _from_tree(path: Path, tree: Any, content: bytes) -> Factors:
    if isinstance(tree, list):
        return Factors(_floats(path, "list", tree))
    if not isinstance(tree, dict):
        raise _wrong(path, "it holds no list of numbers")
    if "plan" in tree and "source" in tree:
        return _from_certificate(path, content)
    settings = _settings(tree)
    if settings is None:
        raise _wrong(path, "it has no 'long_factor'")
    short = settings.get("short_factor")
    long = _floats(path, "long_factor", settings["long_factor"])
    small = _floats(path, "short_factor", short) if short else ()
    m, pair = settings.get("attention_factor"), settings.get("critical_pair")
    return Factors(
        long,
        () if small == long else small,
        float(m) if isinstance(m, int | float) else None,
        pair if isinstance(pair, int) else None,
    )


def _settings(tree: dict[str, Any]) -> dict[str, Any] | None:
    """The innermost table with long factors: bare, under rope_parameters or rope_scaling, or by layer type."""
    if "long_factor" in tree:
        return tree
    for key in ("rope_parameters", "rope_scaling", "full_attention", "text_config"):
        inner = tree.get(key)
        if isinstance(inner, dict) and (found := _settings(inner)) is not None:
            return found
    return None


def _from_certificate(path: Path, content: bytes) -> Factors:
    try:
        scaling = msgspec.json.decode(content, type=Certificate).plan.scaled.scaling
    except (msgspec.DecodeError, StopIteration) as error:
        raise _wrong(path, f"it is no extension.json of this program ({error})") from error
    return Factors(scaling.divisors, scaling.short_divisors, scaling.attention_factor)


def _numbers(path: Path, text: str) -> tuple[float, ...]:
    """Numbers from lines; a first line of words is a heading."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and not re.search(r"\d", lines[0]):
        lines = lines[1:]
    words = [word for line in lines for word in _SEPARATORS.split(line.strip()) if word]
    return _floats(path, "list", words)


def _floats(path: Path, name: str, values: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise _wrong(path, f"its {name} is not made of numbers ({error})") from error
    if not numbers:
        raise _wrong(path, f"its {name} is empty")
    return numbers


def _wrong(path: Path, how: str) -> EngineError:
    return EngineError(
        "context.factors",
        f"Factors cannot be read from {path}.",
        cause=f"{how[0].upper()}{how[1:]}.",
        next_step=f"Give {_FORMS}.",
    )
