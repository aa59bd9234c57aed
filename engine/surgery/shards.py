"""The output's files before they exist: which tensor goes where, their names, headers and index.

Owns the safetensors format for writing. Must not know how tensors are made. Tensors keep the order they are given in,
except that within a file wider types come first, so that each begins at a multiple of its own width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import msgspec

from engine.errors import EngineError
from engine.expansion.recipe import Recipe
from engine.models.headers import DTYPE_BITS, SINGLE_NAME

DEFAULT_SHARD_BYTES = 5_000_000_000
_LEAST_SHARD_BYTES = 1_000


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor and where its data go."""

    recipe: Recipe
    offset_bytes: int
    """From the start of the file."""
    data_bytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One file."""

    name: str
    header: bytes
    """The length and the JSON."""
    tensors: tuple[Placed, ...]
    size_bytes: int


def split(recipes: Sequence[Recipe], shard_bytes: int) -> tuple[Shard, ...]:
    """Shards of at most `shard_bytes` (a larger tensor has one to itself). Raises EngineError `surgery.*`."""
    if shard_bytes < _LEAST_SHARD_BYTES:
        raise EngineError(
            "surgery.shard_size",
            f"A shard size of {shard_bytes} bytes is too small.",
            next_step=f"Give at least {_LEAST_SHARD_BYTES:,} bytes; --shard-size 5GB is usual.",
        )
    _check_names(recipes)
    groups: list[list[Recipe]] = []
    filled = shard_bytes
    for recipe in recipes:
        size = tensor_bytes(recipe)
        if not groups or filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(recipe)
        filled += size
    names = shard_names(len(groups))
    return tuple(_shard(name, group) for name, group in zip(names, groups, strict=True))


def shard_names(count: int) -> tuple[str, ...]:
    """The names that loaders look for."""
    if count == 1:
        return (SINGLE_NAME,)
    return tuple(f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1))


def tensor_bytes(recipe: Recipe) -> int:
    """Bytes of a tensor's data."""
    return prod(recipe.shape) * DTYPE_BITS[recipe.dtype] // 8


def index_bytes(shards: Sequence[Shard]) -> bytes:
    """`model.safetensors.index.json`."""
    placed = [(tensor.recipe.name, shard.name, tensor.data_bytes) for shard in shards for tensor in shard.tensors]
    tree = {
        "metadata": {"total_size": sum(size for _, _, size in placed)},
        "weight_map": {name: file for name, file, _ in sorted(placed)},
    }
    return msgspec.json.format(msgspec.json.encode(tree), indent=2) + b"\n"


def _shard(name: str, group: Sequence[Recipe]) -> Shard:
    ordered = sorted(group, key=lambda recipe: -DTYPE_BITS[recipe.dtype])
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    spans: list[tuple[Recipe, int, int]] = []
    for recipe in ordered:
        size = tensor_bytes(recipe)
        entries[recipe.name] = {
            "dtype": recipe.dtype,
            "shape": list(recipe.shape),
            "data_offsets": [position, position + size],
        }
        spans.append((recipe, position, size))
        position += size
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    placed = tuple(Placed(recipe, len(header) + begin, size) for recipe, begin, size in spans)
    return Shard(name, header, placed, len(header) + position)


def _check_names(recipes: Sequence[Recipe]) -> None:
    seen: set[str] = set()
    for recipe in recipes:
        if recipe.name in seen:
            raise EngineError("surgery.duplicate", f"The plan makes tensor '{recipe.name[:80]}' twice.")
        seen.add(recipe.name)
    if not recipes:
        raise EngineError("surgery.empty", "The plan makes no tensor.")
