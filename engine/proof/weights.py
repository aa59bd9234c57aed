"""Stored tensors by name, read when they are asked for: from a model folder, or partly from somewhere else.

Owns the open safetensors files. Must not know models. Nothing is kept; what a caller drops is free again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor

from engine.models.headers import TensorHeader, read_headers


class Replacement(Protocol):
    """Other values for some tensors of a folder: their unrounded ones, for example."""

    def names(self) -> frozenset[str]:
        """The tensors it has values for."""
        ...

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows `begin` to `end` of the tensor."""
        ...

    def check(self, name: str, stored: Tensor, unrounded: Tensor) -> None:
        """Raises EngineError when the rows cannot stand for those stored."""
        ...


class StoredTensors:
    """The tensors of one model folder; a context manager that holds its files open."""

    def __init__(self, folder: Path, replacement: Replacement | None = None) -> None:
        """Raises EngineError `safetensors.*` when a header cannot be read."""
        self.folder = folder
        self.headers: dict[str, TensorHeader] = {tensor.name: tensor for tensor in read_headers(folder).tensors}
        self._replacement = replacement
        self._replaced = replacement.names() if replacement else frozenset()
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._open.clear()
        self._stack.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """The stored shape."""
        return self.headers[name].shape

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows `begin` to `end` as stored, or replaced."""
        stored: Tensor = self._file(name).get_slice(name)[begin:end]
        if self._replacement is None or name not in self._replaced:
            return stored
        replaced = self._replacement.rows(name, begin, end)
        self._replacement.check(name, stored, replaced)
        return replaced

    def whole(self, name: str) -> Tensor:
        """The tensor as stored, or replaced."""
        if name in self._replaced:
            return self.rows(name, 0, self.shape(name)[0])
        tensor: Tensor = self._file(name).get_tensor(name)
        return tensor

    def lazily(self, names: Sequence[str]) -> dict[str, LazyTensor]:
        """The tensors as transformers' loader takes them: read when indexed, dropped when converted."""
        return {name: LazyTensor(self, name) for name in names}

    def _file(self, name: str) -> Any:
        from safetensors import safe_open

        path = self.headers[name].file
        if path not in self._open:
            # Not mapped: pages of a mapped file count as this process's memory.
            opened: Any = safe_open(str(path), framework="pt", backend="pread")
            self._open[path] = self._stack.enter_context(opened)
        return self._open[path]


class LazyTensor:
    """Stands for a stored tensor until it is indexed with `[...]`."""

    def __init__(self, tensors: StoredTensors, name: str) -> None:
        self._tensors = tensors
        self._name = name

    def __getitem__(self, _everything: Any) -> Tensor:
        return self._tensors.whole(self._name)

    def get_shape(self) -> list[int]:
        """As safetensors' own slices answer it."""
        return list(self._tensors.shape(self._name))

    def get_dtype(self) -> str:
        """As safetensors' own slices answer it."""
        return self._tensors.headers[self._name].dtype


def compute_dtype(headers: Sequence[TensorHeader]) -> str:
    """ "float64" where most numbers are stored so, else "float32"."""
    wide = sum(tensor.elements for tensor in headers if tensor.dtype == "F64")
    return "float64" if 2 * wide > sum(tensor.elements for tensor in headers) else "float32"
