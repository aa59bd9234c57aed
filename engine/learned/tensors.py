"""Tensors read from and written to safetensors files by byte range, one at a time.

Owns the bytes. Must not know layers. Nothing is mapped: mapped pages count as the process's memory, and the file of
made layers may be larger than memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.models.headers import TensorHeader

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def read_tensor(header: TensorHeader) -> Tensor:
    """A stored tensor in its own type. Raises EngineError `learned.dtype`, `safetensors.damaged`, `weights.nan`."""
    dtype = DTYPES.get(header.dtype)
    if dtype is None:
        raise EngineError(
            "learned.dtype",
            f"'{header.name[:80]}' is stored as {header.dtype}, which nothing can be computed with.",
            cause="Quantised layers can be copied, but not averaged or predicted.",
            next_step="Use the model's unquantised weights, or the operator identity.",
        )
    content = bytearray(header.data_bytes)
    with header.file.open("rb", buffering=0) as stream:
        stream.seek(header.offset_bytes)
        if _read_into(stream.fileno(), memoryview(content)) != header.data_bytes:
            raise EngineError(
                "safetensors.damaged",
                f"{header.file} ends within tensor '{header.name[:80]}'.",
                cause="The file was cut after its header was read.",
                next_step="Download the model again.",
            )
    tensor = torch.frombuffer(content, dtype=dtype).reshape(header.shape) if content else torch.empty(header.shape)
    if not bool(torch.isfinite(tensor).all()):
        raise EngineError(
            "weights.nan",
            f"Tensor '{header.name[:80]}' in {header.file.name} holds a number that is not finite.",
            cause="A model with such weights answers nonsense, and so would the larger one.",
            next_step="Download the model again; if it stays, use another version of it.",
        )
    return tensor


def _read_into(handle: int, target: memoryview) -> int:
    done = 0
    while done < len(target):
        count = os.readv(handle, [target[done:]])
        if count == 0:
            break
        done += count
    return done


class TensorFile:
    """A safetensors file of known contents, filled in any order; it has its name once it is complete."""

    def __init__(self, path: Path, entries: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
        """`entries` are name, type as safetensors calls it, and shape."""
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        header: dict[str, object] = {}
        self._places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]] = {}
        offset = 0
        for name, dtype, shape in entries:
            size_bytes = DTYPES[dtype].itemsize
            for extent in shape:
                size_bytes *= extent
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size_bytes]}
            self._places[name] = (offset, DTYPES[dtype], shape)
            offset += size_bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._data_start = 8 + len(text)
        self._open = set(self._places)
        self._stream = self._partial.open("wb", buffering=0)
        self._stream.write(len(text).to_bytes(8, "little") + text)
        self._stream.truncate(self._data_start + offset)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._open:
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._partial.replace(self._path)
            return
        self._stream.close()
        self._partial.unlink(missing_ok=True)
        if kind is None:
            raise RuntimeError(f"{len(self._open)} tensors were never written, {sorted(self._open)[0]} among them")

    def write(self, name: str, tensor: Tensor) -> None:
        """Store a tensor, rounded to its stored type."""
        offset, dtype, shape = self._places[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {shape}")
        flat = tensor.detach().to(dtype).contiguous().reshape(-1).view(torch.uint8)
        content = memoryview(flat.numpy().data)
        done = 0
        while done < len(content):
            done += os.pwrite(self._stream.fileno(), content[done:], self._data_start + offset + done)
        self._open.discard(name)
