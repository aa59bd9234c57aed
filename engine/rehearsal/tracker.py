"""Follows storages from birth to death and remembers the largest moment of each stretch of a step.

Owns counting. Must not know models or recipes. A dispatch mode sees every operator's results; a storage counts from its
first appearance until Python and autograd let go of it. Sizes are rounded to 512 bytes, as the CUDA allocator does.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROUNDING_BYTES = 512


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Use as a context manager around everything; set `stretch` and `kind` as the step goes on."""

    def __init__(self, vocabulary: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stretch = "start"
        self.kind = "activations"
        """What storages born from now on are."""
        self.current = 0
        self.by_kind: dict[str, int] = defaultdict(int)
        self.peaks: dict[str, tuple[int, dict[str, int]]] = {}
        self.detail: dict[str, list[tuple[int, str, tuple[int, ...]]]] | None = None
        """Set to {} to remember what is alive at each peak: (bytes, operator, shape)."""
        self._vocabulary = vocabulary
        self._live: dict[int, tuple[int, str, str, tuple[int, ...]]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the wrapper that says so is entered for every operator

    def adopt(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Count tensors that exist already."""
        for tensor in tensors:
            self._add(tensor, kind, "given")

    def rename(self, tensor: torch.Tensor, kind: str) -> None:
        """A storage turns out to be of another kind (a result that became a gradient)."""
        key = tensor.untyped_storage()._cdata
        if key in self._live:
            size, old, born, shape = self._live[key]
            self.by_kind[old] -= size
            self.by_kind[kind] += size
            self._live[key] = (size, kind, born, shape)

    def _add(self, tensor: torch.Tensor, kind: str, born: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        size = -(-storage.nbytes() // ROUNDING_BYTES) * ROUNDING_BYTES
        if self._vocabulary and kind in ("activations", "temporary buffers") and self._vocabulary in tensor.shape:
            kind = "logits and loss"
        self._live[key] = (size, kind, born, tuple(tensor.shape))
        self.current += size
        self.by_kind[kind] += size
        weakref.finalize(storage, self._drop, key)
        if self.current > self.peaks.get(self.stretch, (0, {}))[0]:
            self.peaks[self.stretch] = (self.current, dict(self.by_kind))
            if self.detail is not None:
                self.detail[self.stretch] = [(s, f"{k}: {b}", shape) for s, k, b, shape in self._live.values()]

    def _drop(self, key: int) -> None:
        size, kind, _, _ = self._live.pop(key, (0, "activations", "", ()))
        self.current -= size
        self.by_kind[kind] -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.add.Tensor and self._is_gradient_sum(args, kwargs):
            args[0].add_(args[1])
            return args[0]
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf, self.kind, str(func))
        return result

    def _is_gradient_sum(self, args: Any, kwargs: Any) -> bool:
        """Whether autograd adds two gradients of one tensor: in place where nobody else holds the first.

        It does so for plain tensors only, and fake ones are a subclass; a sum inside a backward formula has grad mode
        off as well, but never two results of one shape that nobody else holds.
        """
        if torch.is_grad_enabled() or self.kind != "temporary buffers" or kwargs:
            return False
        first, second = args[0], args[1]
        if not (isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)):
            return False
        if first.shape != second.shape or first.dtype != second.dtype or first is second:
            return False
        return int(torch._C._storage_Use_Count(first.untyped_storage()._cdata)) <= HELD_ONCE


HELD_ONCE = 2
"""Uses of a storage that one tensor and this look at it make."""
