"""`adapter_config.json` as peft writes it, as checked values: what an adapter is, and what is no update of matrices.

Owns the fields that change what an adapter computes, and the refusals of what cannot be said as an update. Must not
know tensors. Where peft changes the base's weights when it loads an adapter (PiSSA, OLoRA), `Start` says how.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import EngineError
from engine.models.adapter import ADAPTER_CONFIG
from engine.models.config import read_json_object

LARGEST_RANK = 1 << 20

Number = TypeVar("Number", int, float)


class Start(StrEnum):
    """What peft takes out of the base's weights before it adds the update, at every load."""

    NONE = "none"
    PISSA = "pissa"
    """The r largest singular directions (arXiv 2404.02948)."""
    OLORA = "olora"
    """scale x the first r columns of Q and rows of R, W = QR (arXiv 2406.01775)."""


class Bias(StrEnum):
    """Which of the base's own biases the adapter replaces."""

    NONE = "none"
    ALL = "all"
    LORA_ONLY = "lora_only"


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What `adapter_config.json` says."""

    rank: int
    alpha: float
    rslora: bool
    dora: bool
    start: Start
    start_drawn: bool
    """PiSSA by a randomised decomposition: every load takes out something a little different."""
    init: str
    """`init_lora_weights` in words: "true", "pissa_niter_16", "eva"."""
    bias: Bias
    lora_bias: bool
    rank_pattern: tuple[tuple[str, int], ...]
    alpha_pattern: tuple[tuple[str, float], ...]
    targets: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    token_rows: tuple[tuple[str, tuple[int, ...]], ...]
    """Module name (empty: the input embedding) -> rows that `trainable_token_indices` names."""
    fan_in_fan_out: bool
    ensure_weight_tying: bool
    """`ensure_weight_tying`: the head follows the embedding."""
    base: str
    revision: str
    task_type: str
    peft_version: str

    @property
    def kind(self) -> str:
        """In a few words: "LoRA", "rsLoRA", "DoRA from PiSSA"."""
        name = "DoRA" if self.dora else "LoRA"
        if self.rslora:
            name = f"rs{name}"
        names = {Start.PISSA: "PiSSA", Start.OLORA: "OLoRA"}
        if self.start is Start.NONE:
            return name
        start = names[self.start]
        return start if name == "LoRA" else f"{name} from {start}"

    def rank_of(self, module: str) -> int:
        """The rank that the config gives a module."""
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / r, with rsLoRA alpha / sqrt(r) (arXiv 2312.03732)."""
        alpha, rank = _by_pattern(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _by_pattern(pattern: tuple[tuple[str, Number], ...], module: str, otherwise: Number) -> Number:
    """peft's rule: the first key that is, as a regular expression, the end of the name from a dot on."""
    for key, value in pattern:
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return otherwise


_REFUSED_FIELDS = {
    "alora_invocation_tokens": "it works only after certain tokens (aLoRA), which is no change of weights",
    "arrow_config": "it routes each token to other adapters (Arrow), which is no change of weights",
    "kasa_config": "it removes part of the base's weights when it is loaded (KaSA)",
    "layer_replication": "it repeats layers of the base",
    "megatron_config": "it was made for Megatron's layers",
    "monteclora_config": "it draws its weights at random (MonteCLoRA)",
    "target_parameters": "it targets bare parameters (experts), not modules",
    "use_bdlora": "its factors are block-diagonal (BD-LoRA)",
    "use_qalora": "its factors are grouped for quantised weights (QA-LoRA)",
}
_REFUSED_STARTS = {
    "corda": "CorDA took directions out of the base that only its training data can tell",
    "lora_ga": "LoRA-GA took directions out of the base that only its training data can tell",
    "loftq": "LoftQ belongs to weights that were quantised together with it",
}
_CONVERT = (
    "Where it was trained, save it with save_pretrained(..., path_initial_model_for_weight_conversion=...): that gives "
    "plain LoRA for the original base."
)


def read_config(folder: Path) -> AdapterConfig:
    """Raises EngineError `adapter.config` for a damaged file, `adapter.kind` for what is no update of matrices."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise EngineError(
            "adapter.config",
            f"{folder} is not an adapter: it has no {ADAPTER_CONFIG}.",
            cause="The file is missing." if folder.is_dir() else "There is no such folder.",
            next_step="Give a folder that peft's save_pretrained wrote, or a run that trained an adapter.",
        )
    tree = read_json_object(path, code="adapter.config", what="an adapter's config")
    return parse_config(tree, str(folder))


def parse_config(tree: Mapping[str, Any], where: str) -> AdapterConfig:
    """The config in `tree`; `where` is how messages call it. Raises EngineError `adapter.config`, `adapter.kind`."""
    _refuse(tree, where)
    read = _Reader(tree, where)
    init = str(tree.get("init_lora_weights", True)).lower()
    start = next((s for s in (Start.PISSA, Start.OLORA) if init.split("_")[0] == s.value), Start.NONE)
    rank = read.count("r")
    ranks, alphas = read.numbers("rank_pattern"), read.numbers("alpha_pattern")
    return AdapterConfig(
        rank=rank,
        alpha=read.number("lora_alpha", 8.0),
        rslora=read.flag("use_rslora"),
        dora=read.flag("use_dora"),
        start=start,
        start_drawn=init.startswith("pissa_"),
        init=init,
        bias=read.bias(),
        lora_bias=read.flag("lora_bias"),
        rank_pattern=tuple((key, read.positive(f"rank_pattern.{key}", value)) for key, value in ranks),
        alpha_pattern=alphas,
        targets=read.names("target_modules"),
        modules_to_save=read.names("modules_to_save"),
        token_rows=read.token_rows(),
        fan_in_fan_out=read.flag("fan_in_fan_out"),
        ensure_weight_tying=read.flag("ensure_weight_tying"),
        base=read.text("base_model_name_or_path"),
        revision=read.text("revision"),
        task_type=read.text("task_type"),
        peft_version=read.text("peft_version"),
    )


def _refuse(tree: Mapping[str, Any], where: str) -> None:
    kind = str(tree.get("peft_type", "")).upper()
    if kind != "LORA":
        raise _no_update(where, f"Its type is {kind or 'not given'}; only LoRA and its relatives are read.")
    for field, reason in _REFUSED_FIELDS.items():
        if tree.get(field):
            raise _no_update(where, f"'{field}' is set: {reason}.")
    init = str(tree.get("init_lora_weights", True)).lower()
    for name, reason in _REFUSED_STARTS.items():
        if init.startswith(name):
            raise _no_update(where, f"{reason}.", _CONVERT)


def _no_update(where: str, cause: str, next_step: str = "") -> EngineError:
    return EngineError(
        "adapter.kind",
        f"The adapter in {where} is of a kind that cannot be used here.",
        cause=cause,
        next_step=next_step or "Use it with peft itself, or train a LoRA, rsLoRA, DoRA, PiSSA or OLoRA adapter.",
    )


class _Reader:
    """Typed getters over the tree; every mistake names its key."""

    def __init__(self, tree: Mapping[str, Any], where: str) -> None:
        self._tree, self._where = tree, where

    def text(self, key: str) -> str:
        value = self._tree.get(key)
        return value if isinstance(value, str) else ""

    def flag(self, key: str) -> bool:
        value = self._tree.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value)
        return bool(value)

    def count(self, key: str) -> int:
        return self.positive(key, self._tree.get(key, 8))

    def positive(self, key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LARGEST_RANK:
            raise self._wrong(key, value)
        if value != int(value):
            raise self._wrong(key, value)
        return int(value)

    def number(self, key: str, otherwise: float) -> float:
        return self._finite(key, self._tree.get(key, otherwise))

    def numbers(self, key: str) -> tuple[tuple[str, float], ...]:
        value = self._tree.get(key) or {}
        if not isinstance(value, dict):
            raise self._wrong(key, value)
        return tuple((self._expression(key, name), self._finite(f"{key}.{name}", one)) for name, one in value.items())

    def names(self, key: str) -> tuple[str, ...]:
        value = self._tree.get(key)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._wrong(key, value)
        return tuple(sorted(value))

    def bias(self) -> Bias:
        value = self._tree.get("bias", "none")
        try:
            return Bias(value)
        except ValueError:
            raise self._wrong("bias", value) from None

    def token_rows(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        key = "trainable_token_indices"
        value = self._tree.get(key)
        if value is None:
            return ()
        tables = value if isinstance(value, dict) else {"": value}
        for rows in tables.values():
            if not isinstance(rows, list) or not all(type(row) is int and row >= 0 for row in rows):
                raise self._wrong(key, value)
        return tuple((str(name), tuple(rows)) for name, rows in tables.items())

    def _finite(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(key, value)
        return float(value)

    def _expression(self, key: str, name: str) -> str:
        try:
            re.compile(name)
        except re.error:
            raise self._wrong(key, name) from None
        return name

    def _wrong(self, key: str, value: Any) -> EngineError:
        return EngineError(
            "adapter.config",
            f"{ADAPTER_CONFIG} in {self._where} has an impossible value for '{key}'.",
            cause=f"It is {str(value)[:60]!r}.",
            next_step="Save the adapter again, or download it again.",
        )
