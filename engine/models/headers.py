"""Safetensors headers: which tensors a checkpoint holds, without reading any tensor.

Owns the file format (8 bytes of length, JSON, data) and the sharded index, and checks both completely, because a
half-downloaded file must be found here and not after an hour of training. Must not know any model family.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from engine.errors import EngineError
from engine.models.config import read_json_object

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
LARGEST_HEADER_BYTES = 100_000_000
"""The format's own limit."""

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

_SHARD = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<total>\d{5})\.safetensors$")
_GIT_LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One stored tensor."""

    name: str
    dtype: str
    """The format's name: "BF16", "U8", ..."""
    shape: tuple[int, ...]
    data_bytes: int
    file: Path
    offset_bytes: int = 0
    """Of its data, from the start of the file."""

    @property
    def elements(self) -> int:
        """How many stored numbers; packed formats hold several parameters in each."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Headers:
    """All tensors of one checkpoint, nothing deduplicated."""

    tensors: tuple[TensorHeader, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        """Sum of all stored numbers."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def data_bytes(self) -> int:
        """Bytes of tensor data, without the headers."""
        return sum(tensor.data_bytes for tensor in self.tensors)


def read_headers(path: Path) -> Headers:
    """The headers of a `.safetensors` file, or of a folder with one or more. Raises EngineError `safetensors.*`."""
    if not path.is_dir():
        return Headers(read_file_header(path), (path,))
    index = path / INDEX_NAME
    if index.exists():
        return _read_sharded(path, index)
    single = path / SINGLE_NAME
    if single.exists():
        return Headers(read_file_header(single), (single,))
    return _read_loose(path)


def read_file_header(path: Path) -> tuple[TensorHeader, ...]:
    """The tensors of one file, in the order of their data. Raises EngineError `safetensors.*`."""
    try:
        with path.open("rb") as stream:
            file_bytes = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            header_bytes = _header_length(path, prefix, file_bytes)
            raw = stream.read(header_bytes)
    except OSError as error:
        raise EngineError(
            "safetensors.unreadable",
            f"Cannot read {path}.",
            cause=error.strerror or str(error),
            next_step="Check that the file is there and that you may read it.",
        ) from error
    return _parse_header(path, raw, 8 + header_bytes, file_bytes)


def parse_head(path: Path, head: bytes) -> tuple[TensorHeader, ...]:
    """The tensors that a file's first bytes (length and JSON) announce, whether or not the file is there; `path` is
    what the tensors say they are in. Raises EngineError `safetensors.damaged`."""
    try:
        tree = msgspec.json.decode(head[8:].rstrip(b" \x00"))
        ends = [entry["data_offsets"][1] for name, entry in tree.items() if name != "__metadata__"]
        file_bytes = len(head) + max(ends, default=0)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise _damaged(path, "its header cannot be read", str(error)) from error
    return _parse_header(path, head[8:], len(head), file_bytes)


def _header_length(path: Path, prefix: bytes, file_bytes: int) -> int:
    if file_bytes == 0:
        raise _damaged(path, "the file is empty (0 bytes)")
    if len(prefix) < 8:
        raise _damaged(path, f"the file has only {file_bytes} bytes")
    if _GIT_LFS.startswith(prefix):
        raise EngineError(
            "safetensors.pointer",
            f"{path} is a Git LFS pointer, not the weights.",
            cause="The repository was cloned without its large files.",
            next_step="Run `git lfs install` and `git lfs pull` in that folder.",
        )
    length = int.from_bytes(prefix, "little")
    if length > LARGEST_HEADER_BYTES:
        raise _damaged(path, f"its header claims to be {length:,} bytes long", "It may not be a safetensors file.")
    if length < 2:
        raise _damaged(path, f"its header claims to be {length} bytes long")
    if 8 + length > file_bytes:
        raise _damaged(path, f"its header needs {8 + length:,} bytes and the file ends after {file_bytes:,}")
    return length


def _parse_header(path: Path, raw: bytes, start_bytes: int, file_bytes: int) -> tuple[TensorHeader, ...]:
    data_bytes = file_bytes - start_bytes
    try:
        tree = msgspec.json.decode(raw.rstrip(b" \x00"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not valid JSON", str(error)) from error
    if not isinstance(tree, dict):
        raise _damaged(path, "its header is not a JSON object")
    spans: list[tuple[int, int, TensorHeader]] = []
    for name, entry in tree.items():
        if name == "__metadata__":
            continue
        begin, end, tensor = _parse_entry(path, name, entry, data_bytes)
        spans.append((begin, end, replace(tensor, offset_bytes=start_bytes + begin)))
    spans.sort(key=lambda span: (span[0], span[1]))
    _check_spans(path, spans, data_bytes)
    return tuple(tensor for _, _, tensor in spans)


def _parse_entry(path: Path, name: str, entry: Any, data_bytes: int) -> tuple[int, int, TensorHeader]:
    shown = name if len(name) <= 80 else f"{name[:77]}..."
    if not isinstance(entry, dict):
        raise _damaged(path, f"the entry of tensor '{shown}' is not an object")
    dtype = entry.get("dtype")
    shape, offsets = _whole_numbers(entry.get("shape")), _whole_numbers(entry.get("data_offsets"))
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise _damaged(path, f"tensor '{shown}' has an unknown data type {str(dtype)[:40]!r}")
    if shape is None or len(shape) > 64 or prod(shape) >= 2**63:
        raise _damaged(path, f"tensor '{shown}' has an impossible shape")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"tensor '{shown}' has impossible data offsets")
    begin, end = offsets
    if end > data_bytes:
        raise _damaged(path, f"tensor '{shown}' ends at byte {end:,} and the data has only {data_bytes:,}")
    if prod(shape) * bits != (end - begin) * 8:
        raise _damaged(path, f"tensor '{shown}' of type {dtype} and shape {shape} does not take {end - begin:,} bytes")
    return begin, end, TensorHeader(name, str(dtype), shape, end - begin, path)


def _whole_numbers(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return tuple(value)
    return None


def _check_spans(path: Path, spans: list[tuple[int, int, TensorHeader]], data_bytes: int) -> None:
    position = 0
    for begin, end, tensor in spans:
        if begin < position:
            raise _damaged(path, f"the data of tensor '{tensor.name}' overlaps the one before it")
        if begin > position:
            raise _damaged(path, f"there is a hole of {begin - position:,} bytes before tensor '{tensor.name}'")
        position = end
    if position != data_bytes:
        raise _damaged(path, f"{data_bytes - position:,} bytes at its end belong to no tensor")


def _read_sharded(folder: Path, index: Path) -> Headers:
    weight_map = read_json_object(index, code="safetensors.index", what="an index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise EngineError(
            "safetensors.index",
            f"{index} has no 'weight_map'.",
            cause="It should name the file of every tensor.",
            next_step="Download the index again.",
        )
    shards = _shard_paths(folder, index, weight_map)
    found: dict[str, list[TensorHeader]] = {}
    for name, shard in shards.items():
        found[name] = [t for t in read_file_header(shard) if weight_map.get(t.name) == name]
    tensors = tuple(tensor for group in found.values() for tensor in group)
    missing = set(weight_map) - {tensor.name for tensor in tensors}
    if missing:
        raise EngineError(
            "safetensors.index",
            f"{index} names {len(missing)} tensors that its files do not hold.",
            cause=f"For example {_few(missing)}.",
            next_step="Download the model again; index and files are of different versions.",
        )
    return Headers(tensors, tuple(shards.values()))


def _shard_paths(folder: Path, index: Path, weight_map: dict[str, Any]) -> dict[str, Path]:
    names = set(map(_shown_name, weight_map.values()))
    for name in sorted(names):
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in name:
            raise EngineError(
                "safetensors.index",
                f"{index} points to '{name[:80]}', outside of its own folder.",
                cause="An index may only name files beside it; this one is damaged or hostile.",
                next_step="Do not use this model; get it from its original publisher.",
            )
        if not name.endswith(".safetensors"):
            raise EngineError(
                "safetensors.index",
                f"{index} points to '{name[:80]}', which is not a safetensors file.",
                cause="Only safetensors files are read: other formats can run code.",
                next_step="Download the safetensors version of the model.",
            )
    shards = {name: folder / name for name in sorted(names)}
    missing = [name for name, path in shards.items() if not _is_file(path)]
    if missing:
        raise EngineError(
            "safetensors.missing_shards",
            f"{len(missing)} of the {len(shards)} weight files are missing in {folder}.",
            cause=f"{INDEX_NAME} names {_few(missing)}.",
            next_step="Finish the download; `hf download` continues where it stopped.",
        )
    return shards


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _shown_name(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _read_loose(folder: Path) -> Headers:
    """A folder with neither the usual file nor an index: numbered shards, or one file of another name."""
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter"))
    shards = {path: match for path in files if (match := _SHARD.match(path.name))}
    if shards:
        total = max(int(match["total"]) for match in shards.values())
        present = {int(match["part"]) for match in shards.values()}
        missing = [part for part in range(1, total + 1) if part not in present]
        what = f"parts {_few(map(str, missing))} of {total}" if missing else INDEX_NAME
        raise EngineError(
            "safetensors.missing_shards",
            f"{what} {'are' if missing else 'is'} missing in {folder}.",
            cause="Without all parts and their index the model cannot be loaded.",
            next_step="Finish the download; `hf download` continues where it stopped.",
        )
    if len(files) != 1:
        what = "no safetensors file" if not files else f"{len(files)} unrelated safetensors files"
        raise EngineError(
            "safetensors.none",
            f"There is {what} in {folder}.",
            cause=f"Expected {SINGLE_NAME}, or shards with {INDEX_NAME}.",
            next_step="Download the model's safetensors files into that folder.",
        )
    note = f"The weights are in {files[0].name}; loaders look for {SINGLE_NAME}, rename it."
    return Headers(read_file_header(files[0]), (files[0],), (note,))


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    shown = ", ".join(listed[:3])
    return shown if len(listed) <= 3 else f"{shown} and {len(listed) - 3} more"


def _damaged(path: Path, how: str, detail: str = "") -> EngineError:
    return EngineError(
        "safetensors.damaged",
        f"{path} is damaged: {how}.",
        cause=detail or "An interrupted download or copy leaves files like this.",
        next_step="Delete the file and download it again.",
    )
