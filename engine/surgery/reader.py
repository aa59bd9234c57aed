"""Source tensors by file and byte range: opened read-only, read into the caller's memory, searched for NaN.

Owns file handles and the checks on what was read. Must not know recipes. `pread` and not a memory map: mapped pages
count as the process's own memory, and a file that is cut while it is mapped kills the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np

from engine.errors import EngineError
from engine.expansion.recipe import Source
from engine.models.headers import TensorHeader
from engine.surgery import numbers
from engine.surgery.numbers import Array

_AHEAD_BYTES = 32 << 20


class TensorReader:
    """The tensors of a source model and, where layers were made before the surgery, of those."""

    def __init__(self, tensors: Iterable[TensorHeader], made: Iterable[TensorHeader] = ()) -> None:
        self._tensors = {(tensor.name, False): tensor for tensor in tensors}
        self._tensors |= {(tensor.name, True): tensor for tensor in made}
        self._handles: dict[Path, int] = {}

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give all file handles back."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def find(self, source: Source) -> TensorHeader:
        """The stored tensor a recipe names. Raises EngineError `surgery.missing_tensor`."""
        tensor = self._tensors.get((source.name, source.made))
        if tensor is None:
            where = "layers made beforehand" if source.made else "source model"
            raise EngineError(
                "surgery.missing_tensor",
                f"There is no tensor '{source.name}' in the {where}.",
                cause="The plan was made for another model, or the download is not complete.",
                next_step="Check the model with `scaler-wizard inspect`, then plan again.",
            )
        return tensor

    def read(self, tensor: TensorHeader, start_element: int, target: Array) -> None:
        """Fill `target` (contiguous, of the storage type) with elements from `start_element` on. Raises EngineError
        `weights.nan` when a number is not finite, `safetensors.damaged` when the file ends too early, and IndexError
        for elements that the tensor does not have."""
        if start_element < 0 or (start_element + target.size) * target.itemsize > tensor.data_bytes:
            raise IndexError(f"elements {start_element} to {start_element + target.size} of '{tensor.name}'")
        offset = tensor.offset_bytes + start_element * target.itemsize
        self._read_bytes(tensor, offset, target.reshape(-1).view(np.uint8).data)
        found = numbers.find_not_finite(target, tensor.dtype)
        if found:
            raise EngineError(
                "weights.nan",
                f"Tensor '{tensor.name}' in {tensor.file.name} holds a number that is {found}.",
                cause="A model with such weights answers nonsense, and so would the larger one.",
                next_step="Download the model again; if it stays, use another version of it.",
            )

    def read_all(self, tensor: TensorHeader) -> bytes:
        """The bytes of a small tensor."""
        return self.read_part(tensor, 0, tensor.data_bytes)

    def read_part(self, tensor: TensorHeader, start_bytes: int, count: int) -> bytes:
        """At most `count` of a tensor's bytes."""
        content = bytearray(min(count, tensor.data_bytes - start_bytes))
        self._read_bytes(tensor, tensor.offset_bytes + start_bytes, memoryview(content))
        return bytes(content)

    def ahead(self, tensor: TensorHeader) -> None:
        """Tell the system that this tensor comes next."""
        handle = self._handle(tensor.file)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, tensor.offset_bytes, min(tensor.data_bytes, _AHEAD_BYTES), os.POSIX_FADV_WILLNEED)

    def place(self, tensor: TensorHeader, start_element: int, itemsize: int) -> tuple[int, int]:
        """(open file, offset) of an element; the file stays open as long as this reader."""
        return self._handle(tensor.file), tensor.offset_bytes + start_element * itemsize

    def _read_bytes(self, tensor: TensorHeader, offset: int, target: memoryview) -> None:
        handle = self._handle(tensor.file)
        done = 0
        while done < len(target):
            count = os.preadv(handle, [target[done:]], offset + done)
            if count == 0:
                raise EngineError(
                    "safetensors.damaged",
                    f"{tensor.file} ends within tensor '{tensor.name}'.",
                    cause="The file was cut after its header was read.",
                    next_step="Leave the source alone while it is expanded; download it again if it is incomplete.",
                )
            done += count

    def _handle(self, path: Path) -> int:
        handle = self._handles.get(path)
        if handle is None:
            try:
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise EngineError(
                    "safetensors.unreadable", f"Cannot read {path}.", cause=error.strerror or str(error)
                ) from error
            self._handles[path] = handle
        return handle
