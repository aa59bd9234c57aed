"""The certificate of an expansion, from what was done; and what an undo needs to find in it.

Owns filling `engine.expansion.certificate`. Must not know how tensors were made.
"""

from __future__ import annotations

import base64
import importlib.metadata
import platform
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.expansion.certificate import Certificate, FileEntry, TensorEntry
from engine.expansion.operator_choice import is_exact, losses
from engine.expansion.plan_io import plan_tree
from engine.expansion.recipe import Recipe
from engine.models.config import CONFIG_NAME
from engine.models.headers import INDEX_NAME, Headers, TensorHeader
from engine.models.weights import EMBEDDING_NAMES, count_weights
from engine.surgery.order import Prepared, program, recipes_sha256
from engine.surgery.reader import TensorReader

_KEPT_BYTES = 64 << 20
"""Originals up to this size are kept for an undo, when they shrink below the next figure."""
_PACKED_BYTES = 1 << 20
_COMPARED_BYTES = 4 << 20


class SourceFileLayout(msgspec.Struct, frozen=True):
    """A source's weight file, so that an undo can write it again as it was."""

    name: str
    header: str
    """Its first bytes (length and JSON), deflated, base64."""


class Undo(msgspec.Struct, frozen=True, kw_only=True):
    """`Certificate.undo`. Files and values are deflated and in base64: `packed`."""

    config: str
    """The source's config.json, byte for byte."""
    files: tuple[SourceFileLayout, ...]
    index: str = ""
    """The source's index file; "" when it had none."""
    values: dict[str, str]
    """Small tensors that the output does not hold bit for bit: rescaled gains, tables that loaders make anew."""
    same: dict[str, str] = {}
    """Tensor left behind -> tensor that holds the same bytes: a head stored beside the embedding it is tied to."""
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
        parameters_before=_parameters(prepared, prepared.headers),
        parameters_after=_parameters(prepared, _headers_after(prepared)),
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
    index = prepared.source / INDEX_NAME
    values, same = _left_behind(prepared, reader)
    return Undo(
        config=packed((prepared.source / CONFIG_NAME).read_bytes()),
        files=tuple(SourceFileLayout(path.name, packed(_head(path))) for path in prepared.headers.files),
        index=packed(index.read_bytes()) if index.is_file() else "",
        values=values,
        same=same,
        recipes_sha256=recipes_sha256(prepared.recipes),
    )


def packed(content: bytes) -> str:
    """Bytes as text, deflated."""
    return base64.b64encode(zlib.compress(content, 9)).decode()


def unpacked(text: str) -> bytes:
    """The inverse of `packed`."""
    return zlib.decompress(base64.b64decode(text))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        prefix: bytes = file.read(8)
        return prefix + file.read(int.from_bytes(prefix, "little"))


def _parameters(prepared: Prepared, headers: Headers) -> int:
    """Packed numbers unpacked, a head counted once where it is tied."""
    section = prepared.config.get("quantization_config")
    counted = count_weights(headers, section if isinstance(section, Mapping) else {}, multimodal=False)
    return counted.parameters - (counted.head_parameters if prepared.layout.traits.tied else 0)


def _headers_after(prepared: Prepared) -> Headers:
    tensors = tuple(
        TensorHeader(one.recipe.name, one.recipe.dtype, one.recipe.shape, one.data_bytes, Path(shard.name))
        for shard in prepared.shards
        for one in shard.tensors
    )
    return Headers(tensors, tuple(Path(shard.name) for shard in prepared.shards))


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


def _left_behind(prepared: Prepared, reader: TensorReader) -> tuple[dict[str, str], dict[str, str]]:
    """Values of small tensors that no output tensor holds bit for bit, and tensors that equal another one."""
    used = {source.name for recipe in prepared.recipes for source in recipe.sources}
    whole = {recipe.sources[0].name for recipe in prepared.recipes if holds_original(recipe)}
    tensors = {tensor.name: tensor for tensor in prepared.headers.tensors}
    embedding = next((name for name in tensors if name.endswith(EMBEDDING_NAMES)), "")
    values: dict[str, str] = {}
    same: dict[str, str] = {}
    for name, tensor in tensors.items():
        if name in whole or tensor.data_bytes > _KEPT_BYTES:
            if name not in used and embedding and _equal(reader, tensor, tensors[embedding]):
                same[name] = embedding
            continue
        if len(tensor.shape) <= 1 or name not in used:
            text = packed(reader.read_all(tensor))
            if len(text) <= _PACKED_BYTES:
                values[name] = text
            elif embedding and _equal(reader, tensor, tensors[embedding]):
                same[name] = embedding
    return values, same


def _equal(reader: TensorReader, one: TensorHeader, other: TensorHeader) -> bool:
    """Whether two stored tensors have the same bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(
        reader.read_part(one, start, _COMPARED_BYTES) == reader.read_part(other, start, _COMPARED_BYTES)
        for start in range(0, one.data_bytes, _COMPARED_BYTES)
    )


def holds_original(recipe: Recipe) -> bool:
    """Whether a tensor's first copies are its one source, bit for bit."""
    source = recipe.sources[0] if len(recipe.sources) == 1 else None
    plain = recipe.scale == 1.0 and recipe.shift == 0.0 and recipe.noise == 0.0 and recipe.constant is None
    scaled = any(run.scale != 1.0 or run.noise for axis in recipe.maps for run in axis)
    return source is not None and not source.made and not recipe.new and plain and not scaled
