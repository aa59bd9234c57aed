"""The certificate of an expansion, from what was done; and what an undo needs to find in it.

Owns filling `engine.expansion.certificate`. Must not know how tensors were made.
"""

from __future__ import annotations

import base64
import importlib.metadata
import platform
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import msgspec

from engine.expansion.certificate import Certificate, FileEntry, TensorEntry
from engine.expansion.operator_choice import is_exact, losses
from engine.expansion.plan_io import plan_tree
from engine.expansion.recipe import Recipe
from engine.models.headers import TensorHeader
from engine.surgery.order import Prepared, program, recipes_sha256
from engine.surgery.reader import TensorReader

_KEPT_BYTES = 4 << 20
"""Originals of rescaled vectors up to this size are kept for an undo."""


class SourceFileLayout(msgspec.Struct, frozen=True):
    """A source's weight file, so that an undo can write it again as it was."""

    name: str
    header: str
    """Its first bytes (length and JSON), deflated, base64."""


class Undo(msgspec.Struct, frozen=True, kw_only=True):
    """`Certificate.undo`."""

    config: dict[str, Any]
    files: tuple[SourceFileLayout, ...]
    index: str = ""
    """The source's index file, deflated, base64; "" when it had none."""
    values: dict[str, str]
    """Small tensors whose values changed or that were left behind: name -> bytes, base64."""
    recipes_sha256: str


@dataclass(frozen=True, slots=True)
class Spent:
    """What the work took."""

    seconds: float
    peak_rss_bytes: int
    bytes_written: int


def certificate(
    prepared: Prepared, files: Sequence[FileEntry], undo: Undo, sources: Sequence[FileEntry], spent: Spent
) -> Certificate:
    """Everything but the proof."""
    plan = prepared.plan
    return Certificate(
        source=str(prepared.source.resolve()),
        source_files=tuple(sources),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        program=program(),
        versions={"python": platform.python_version(), "numpy": importlib.metadata.version("numpy")},
        plan=plan_tree(plan),
        operators=dict(plan.operators),
        exact=is_exact(plan),
        parameters_before=prepared.headers.elements,
        parameters_after=sum(prod(recipe.shape) for recipe in prepared.recipes),
        notes=losses(plan),
        tensors=_tensors(prepared),
        files=tuple(files),
        undo=msgspec.to_builtins(undo),
        seconds=spent.seconds,
        peak_rss_bytes=spent.peak_rss_bytes,
        bytes_written=spent.bytes_written,
    )


def undo_section(prepared: Prepared, reader: TensorReader) -> Undo:
    """What the output alone does not say about its source."""
    index = prepared.source / "model.safetensors.index.json"
    return Undo(
        config=dict(prepared.config),
        files=tuple(SourceFileLayout(path.name, packed(_head(path))) for path in prepared.headers.files),
        index=packed(index.read_bytes()) if index.is_file() else "",
        values=_values(prepared, reader),
        recipes_sha256=recipes_sha256(prepared.recipes),
    )


def packed(content: bytes) -> str:
    """Bytes as text, deflated."""
    return base64.b64encode(zlib.compress(content, 9)).decode()


def unpacked(text: str) -> bytes:
    """The inverse of `packed`."""
    return zlib.decompress(base64.b64decode(text))


def _head(path: Any) -> bytes:
    with path.open("rb") as file:
        prefix: bytes = file.read(8)
        return prefix + file.read(int.from_bytes(prefix, "little"))


def _tensors(prepared: Prepared) -> dict[str, TensorEntry]:
    entries = {}
    for shard in prepared.shards:
        for placed in shard.tensors:
            recipe = placed.recipe
            entries[recipe.name] = TensorEntry(
                file=shard.name,
                shape=recipe.shape,
                dtype=recipe.dtype,
                operators=recipe.operators,
                sources=tuple(source.name for source in recipe.sources),
                new=recipe.new,
                new_spans=recipe.new_spans,
            )
    return entries


def _values(prepared: Prepared, reader: TensorReader) -> dict[str, str]:
    """Vectors that no output tensor holds bit for bit."""
    whole = {recipe.sources[0].name for recipe in prepared.recipes if _holds_original(recipe, prepared)}
    kept = {}
    for tensor in prepared.headers.tensors:
        if tensor.name not in whole and len(tensor.shape) <= 1 and tensor.data_bytes <= _KEPT_BYTES:
            kept[tensor.name] = packed(reader.read_all(tensor))
    return kept


def _holds_original(recipe: Recipe, prepared: Prepared) -> bool:
    source = recipe.sources[0] if len(recipe.sources) == 1 else None
    plain = recipe.scale == 1.0 and recipe.shift == 0.0 and recipe.noise == 0.0 and recipe.constant is None
    return source is not None and not source.made and not recipe.new and plain and not _scaled(recipe)


def _scaled(recipe: Recipe) -> bool:
    return any(run.scale != 1.0 or run.noise for axis in recipe.maps for run in axis)


def is_vector(tensor: TensorHeader) -> bool:
    """Whether an undo keeps its values in the certificate."""
    return len(tensor.shape) <= 1
