"""What flows between a model's layers, picked where it is compared.

Owns the hooks and which of the teacher's layers stands beside which of the student's. Must not know losses.

A layer's output is the stream after it, before the final norm. Hooks stay attached and hear only while asked to: with
checkpointed activations a layer is run again in the backward pass, and what it says then is heard already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError, ExitCode


def decoder_layers(base: Any) -> nn.ModuleList:
    """The list of decoder layers of a causal model, or of one inside an adapter. Raises EngineError
    `distill.no_layers`."""
    config = base.config.get_text_config() if hasattr(base.config, "get_text_config") else base.config
    count = int(config.num_hidden_layers)
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise EngineError(
        "distill.no_layers",
        f"{type(base).__name__} has no list of {count} layers.",
        next_step="Set distillation.hidden_weight = 0, and a teacher that is not offloaded.",
        exit_code=ExitCode.RUN_FAILED,
    )


def width_of(model: Any) -> int:
    """D."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return int(config.hidden_size)


def compared_layers(asked: Sequence[int], layers: int, teacher_layers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """From 1: the student's and the teacher's at the same depth, round(l x Lt / Ls) and at least 1. [] is the last
    layer. Raises EngineError `distill.no_such_layer`."""
    own = tuple(asked) or (layers,)
    if beyond := [layer for layer in own if not 1 <= layer <= layers]:
        raise EngineError(
            "distill.no_such_layer",
            f"distillation.hidden_layers names layer {beyond[0]}; the student's go from 1 to {layers}.",
            next_step="Name some of these, or [] for the last.",
            exit_code=ExitCode.BAD_INPUT,
        )
    return own, tuple(max(1, round(layer * teacher_layers / layers)) for layer in own)


class LayerEar:
    """Attach once per model; what the layers say is kept while `listening`."""

    def __init__(self, base: Any, layers: Sequence[int]) -> None:
        """`layers`: from 1, in the order in which they are given back; () hears nothing and hooks nothing."""
        self._layers = tuple(layers)
        self._positions: Tensor | None = None
        self._heard: dict[int, Tensor] = {}
        if layers:
            found = decoder_layers(base)
            for number in sorted(set(layers)):
                found[number - 1].register_forward_hook(self._hook(number))

    def _hook(self, number: int) -> Any:
        def hear(_module: nn.Module, _arguments: Any, output: Any) -> None:
            if self._positions is None:
                return
            stream: Tensor = output[0] if isinstance(output, tuple) else output  # (B, T, D)
            # Not picked here with gradients: what a checkpointed layer computes it has to compute again.
            self._heard[number] = stream if torch.is_grad_enabled() else _at(stream, self._positions)

        return hear

    @contextmanager
    def listening(self, positions: Tensor) -> Iterator[None]:
        """At these flat positions of the batch that goes through now."""
        self._positions, self._heard = positions, {}
        try:
            yield
            if torch.is_grad_enabled():
                self._heard = {number: _at(stream, positions) for number, stream in self._heard.items()}
        finally:
            self._positions = None

    def taken(self) -> tuple[Tensor, ...]:
        """(N, D) of each layer; they are let go of here."""
        heard, self._heard = self._heard, {}
        return tuple(heard[number] for number in self._layers)


def _at(stream: Tensor, positions: Tensor) -> Tensor:
    """(B, T, D), (N,) -> (N, D)."""
    return stream.reshape(-1, stream.shape[-1]).index_select(0, positions)
