"""Logits only where they are wanted: the output head computes the positions that carry loss and no others.

Owns the hook on the model's head. Must not know losses, batches or training.

    hidden (B, T, D) ──► hook picks N of the B x T positions ──► head ──► logits (1, N, V)

With completion-only loss most logits of a batch are thrown away, and the head of a model with a large vocabulary is the
largest allocation of a step. Whatever a family does after its head (scaling, soft caps) is element-wise and still runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SelectiveHead:
    """Attach once per model; then call `logits_at` instead of the model."""

    def __init__(self, model: Any) -> None:
        self._positions: Tensor | None = None
        self._applied = False
        head = model.get_output_embeddings()
        if isinstance(head, nn.Module):
            head.register_forward_pre_hook(self._select)

    def _select(self, _module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._positions is None or not arguments:
            return None
        hidden = arguments[0]  # (B, T, D)
        picked = hidden.reshape(1, -1, hidden.shape[-1]).index_select(1, self._positions)  # (1, N, D)
        self._applied = True
        return (picked, *arguments[1:])

    def logits_at(self, model: Any, input_ids: Tensor, position_ids: Tensor, positions: Tensor) -> Tensor:
        """Logits (N, V) at flat `positions` of the (B, T) batch.

        Positions that restart at 0 separate rows only in a call without attention mask and without a cache.
        """
        self._positions, self._applied = positions, False
        try:
            output = model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        finally:
            self._positions = None
        logits: Tensor = output.logits
        flat = logits.reshape(-1, logits.shape[-1])  # (N, V), or (B * T, V) of a model whose head is no module
        if not self._applied:
            flat = flat.index_select(0, positions)
        assert flat.shape[0] == positions.shape[0]
        return flat


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies in nats, computed in float32: (N, V), (N,) -> scalar."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
