"""`config.json` as checked values: JSON in, typed getters out, every mistake an error that names the key.

Owns reading the file and the rules for missing, null and mistyped keys. Must not know what any family looks like.
Stdlib `json` is used here because configs in the wild contain `Infinity` and `NaN`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from engine.errors import EngineError

CONFIG_NAME = "config.json"
LARGEST_CONFIG_BYTES = 16 * 1024**2
LARGEST_VALUE = 10**9
"""No size in a model's config is above this; larger ones are mistakes."""
LARGEST_LAYER_COUNT = 10_000

_TEXT_KEYS = ("text_config", "language_config", "llm_config")


def read_json_object(path: Path, *, code: str, what: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises EngineError `<code>` with what is wrong with the file."""
    try:
        if path.stat().st_size > LARGEST_CONFIG_BYTES and path.name == CONFIG_NAME:
            raise EngineError(code, f"{path} is too large to be {what}.", next_step="Download the file again.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise EngineError(
            code,
            f"Cannot read {path}.",
            cause=error.strerror or str(error),
            next_step="Check the path and permissions.",
        ) from error
    except UnicodeDecodeError as error:
        raise EngineError(
            code, f"{path} is not text.", cause=str(error), next_step="Download the file again."
        ) from error
    return parse_json_object(text, code=code, name=str(path))


def parse_json_object(text: str, *, code: str, name: str) -> dict[str, Any]:
    """The JSON object in `text`; `name` is how messages call it. Raises EngineError `<code>`."""
    if not text.strip():
        raise EngineError(
            code, f"{name} is empty.", cause="An interrupted download leaves this.", next_step="Download it again."
        )
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EngineError(
            code,
            f"{name} is not valid JSON.",
            cause=str(error) or "nested too deeply",
            next_step="Correct the file, or download it again.",
        ) from error
    if not isinstance(tree, dict):
        raise EngineError(
            code, f"{name} must hold a JSON object, not a {type(tree).__name__}.", next_step="Download it again."
        )
    return tree


class _Missing:
    """Marks a key without a default: its absence is an error."""


REQUIRED: Final = _Missing()


@dataclass(frozen=True, slots=True)
class ConfigReader:
    """Typed getters over one config; `defaults` are the family's own for keys the file omits."""

    tree: Mapping[str, Any]
    name: str = CONFIG_NAME
    defaults: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    """What messages put before a key: "rope_scaling." for a nested object."""

    def raw(self, *keys: str) -> Any:
        """The first of `keys` that is present and not null, else the first family default, else None."""
        for key in keys:
            if self.tree.get(key) is not None:
                return self.tree[key]
        if any(key in self.tree for key in keys):
            return None
        return next((self.defaults[key] for key in keys if key in self.defaults), None)

    def has(self, *keys: str) -> bool:
        """Whether one of `keys` is written and not null."""
        return any(self.tree.get(key) is not None for key in keys)

    def integer(self, *keys: str, default: int | _Missing = REQUIRED, low: int = 1, high: int = LARGEST_VALUE) -> int:
        """A whole number between `low` and `high`; a null or missing key takes `default`."""
        value = self.raw(*keys)
        if value is None:
            value = self._fallback(keys, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(self._present(keys), value, "a whole number")
        if not low <= value <= high:
            raise self.wrong(self._present(keys), value, f"between {low:,} and {high:,}")
        return value

    def number(self, *keys: str, default: float | _Missing = REQUIRED, above: float = 0.0) -> float:
        """A finite number above `above`; a null or missing key takes `default`."""
        value = self.raw(*keys)
        if value is None:
            value = self._fallback(keys, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(self._present(keys), value, "a number")
        if isinstance(value, int) and abs(value) > 10**300:
            raise self.wrong(self._present(keys), value, "a number of reasonable size")
        if not math.isfinite(value) or value <= above:
            raise self.wrong(self._present(keys), value, f"a finite number above {above:g}")
        return float(value)

    def flag(self, *keys: str, default: bool = False) -> bool:
        """True or false; a null or missing key takes the family's default, else `default`."""
        value = self.raw(*keys)
        if value is None:
            return default
        if value in (0, 1):
            return bool(value)
        raise self.wrong(self._present(keys), value, "true or false")

    def text(self, *keys: str, default: str = "") -> str:
        """A string; a null or missing key takes `default`."""
        value = self.raw(*keys)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(self._present(keys), value, "a text")
        return value

    def table(self, *keys: str) -> dict[str, Any]:
        """A nested object; empty when the key is null or missing."""
        value = self.raw(*keys)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(self._present(keys), value, "an object")
        return value

    def items(self, *keys: str) -> list[Any]:
        """A list; empty when the key is null or missing."""
        value = self.raw(*keys)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(self._present(keys), value, "a list")
        return value

    def wrong(self, key: str, value: object, expected: str) -> EngineError:
        """The error for a value that does not fit; the caller raises it."""
        shown, key = _shown(value), f"{self.prefix}{key}"
        return EngineError(
            "model.config_value",
            f"{self.name}: key '{key}' is {shown}, expected {expected}.",
            cause="The config does not describe a model that can be built.",
            next_step=f"Correct '{key}' in {self.name}, or download the original file again.",
        )

    def _present(self, keys: tuple[str, ...]) -> str:
        """The one of `keys` that the file writes, for messages."""
        return next((key for key in keys if key in self.tree), keys[0])

    def _fallback(self, keys: tuple[str, ...], default: object) -> Any:
        if not isinstance(default, _Missing):
            return default
        raise EngineError(
            "model.config_incomplete",
            f"{self.name}: key '{self.prefix}{keys[0]}' is missing.",
            cause="The size of the model cannot be worked out without it.",
            next_step="Download the original config.json again.",
        )


def _shown(value: object) -> str:
    """A value as a message shows it: short, whatever it is."""
    try:
        shown = repr(value)
    except ValueError:
        return "a number with thousands of digits"
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def text_part(tree: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The language model's part of a multimodal config, and the key it was under ("" when the config is plain)."""
    for key in _TEXT_KEYS:
        part = tree.get(key)
        if not isinstance(part, dict):
            continue
        merged = dict(part)
        for inherited in ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config"):
            if merged.get(inherited) is None and tree.get(inherited) is not None:
                merged[inherited] = tree[inherited]
        return merged, key
    return tree, ""


def architecture_class(tree: Mapping[str, Any]) -> str:
    """The first entry of `architectures`, or ""."""
    names = tree.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    return ""
