"""A model that is larger than the room for it: its layers stay in host memory and visit the device one after another.

Owns the copies and when they are made. Must not know teachers. For passes without gradients.

    device   [embeddings, norm, head: always]   layer i computes   layer i + 1 is being copied
    host     layer 0 ... layer L - 1, pinned

On a card the copy of the next layer runs on a stream of its own beside the computation of this one; never more than two
layers are there at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Slots = list[tuple[dict[str, Any], str]]


class LayerStream:
    """Attach once to a model whose weights are all on the host; it then computes on `device`."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList, device: str) -> None:
        self._device = torch.device(device)
        self._on_card = self._device.type == "cuda"
        self._copier: Any = torch.cuda.Stream(self._device) if self._on_card else None  # type: ignore[no-untyped-call]
        self._left: Any = None
        """Event: the layer before has computed."""
        inside = {id(module) for layer in layers for module in layer.modules()}
        _to_device([module for module in model.modules() if id(module) not in inside], self._device)
        self._slots = [_slots(layer) for layer in layers]
        self._host: list[list[Tensor]] = []
        self._coming: dict[int, tuple[list[Tensor], Any]] = {}
        for number, layer in enumerate(layers):
            # One layer after another: the original of each is gone before the next is pinned.
            self._host.append([self._pinned(holder[name]) for holder, name in self._slots[number]])
            self._put(number, self._host[number])
            layer.register_forward_pre_hook(self._arrives(number))
            layer.register_forward_hook(self._leaves(number), always_call=True)

    def _pinned(self, tensor: Tensor) -> Tensor:
        plain = tensor.detach()
        return plain.pin_memory() if self._on_card else plain

    def _arrives(self, number: int) -> Any:
        def hook(_module: nn.Module, _arguments: Any) -> None:
            coming = self._coming.pop(number, None)
            self._coming.clear()  # what a pass left that failed outside of the layers
            tensors, copied = coming if coming is not None else self._fetch(number)
            if copied is not None:
                now = torch.cuda.current_stream(self._device)
                now.wait_event(copied)
                for tensor in tensors:
                    tensor.record_stream(now)  # its memory belongs to the copier's stream, and is used on this one
            self._put(number, tensors)
            if self._left is not None:
                self._left.synchronize()  # else the host would run ahead, and copy layer upon layer
            if number + 1 < len(self._slots):
                self._coming[number + 1] = self._fetch(number + 1)

        return hook

    def _leaves(self, number: int) -> Any:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            self._put(number, self._host[number])
            if output is None:  # the layer has failed: the next one will not compute
                self._coming.clear()
            if self._on_card:
                self._left = torch.cuda.current_stream(self._device).record_event()

        return hook

    def _fetch(self, number: int) -> tuple[list[Tensor], Any]:
        """Copies on their way, and the event after which they are there."""
        if self._copier is None:
            return [tensor.to(self._device, copy=True) for tensor in self._host[number]], None
        with torch.cuda.stream(self._copier):
            tensors = [tensor.to(self._device, non_blocking=True) for tensor in self._host[number]]
        return tensors, self._copier.record_event()

    def _put(self, number: int, tensors: list[Tensor]) -> None:
        for (holder, name), tensor in zip(self._slots[number], tensors, strict=True):
            was = holder[name]
            holder[name] = nn.Parameter(tensor, requires_grad=False) if isinstance(was, nn.Parameter) else tensor


def _slots(layer: nn.Module) -> Slots:
    """Every place of a weight or buffer in a layer."""
    return [
        (holder, name)
        for module in layer.modules()
        for holder in (module._parameters, module._buffers)
        for name, tensor in holder.items()
        if tensor is not None
    ]


def _to_device(modules: list[nn.Module], device: torch.device) -> None:
    """Their own weights; one that two of them share stays shared."""
    moved: dict[int, Any] = {}
    for module in modules:
        for holder in (module._parameters, module._buffers):
            for name, tensor in holder.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    there = tensor.detach().to(device)
                    kept = isinstance(tensor, nn.Parameter)
                    moved[id(tensor)] = (tensor, nn.Parameter(there, requires_grad=False) if kept else there)
                holder[name] = moved[id(tensor)][1]
