"""Logits only where they are wanted, and only as many at once as there is room for.

Owns the hook on the model's head. Must not know batches or training.

    hidden (B, T, D) ──► hook picks N of the B x T positions ──► head ──► logits (1, N, V)

With completion-only loss most logits of a batch are thrown away, and the head of a model with a large vocabulary is the
largest allocation of a step. Whatever a family does after its head (scaling, soft caps) is element-wise and still runs.

At long sequences even the wanted logits are too many. In pieces, the model runs once with a head that is shown a single
position, and head and loss then run on a few of the N hidden states at a time, again in the backward pass:

    hidden (N, D) ──► [piece ──► head ──► logits (C, V) ──► loss] x N / C        (C, V) is the most there ever is

What a family does after its head is then done here, by its config; the first call compares with the model's own logits
and refuses a family that does something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.errors import EngineError, ExitCode

CHECKED_POSITIONS = 2
TOLERANCE = 1e-4
"""Relative to the largest logit: rounding, and no other function."""
SHORT_TOLERANCE = 1e-2
"""The same in 16 bits."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the model is shown, and where its logits are wanted."""

    input_ids: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    positions: Tensor  # (N,) flat
    attention_mask: Tensor | None = None  # (B, T)
    """Positions that restart at 0 separate rows only in a call without a mask and without a cache. A mask is for rows
    whose positions skip: with one, every token sees all before it in its row."""
    cache: Any = None
    """transformers' cache of what came before these tokens; it has them too afterwards."""

    def arguments(self) -> dict[str, Any]:
        """Of the model's forward."""
        masked = {} if self.attention_mask is None else {"attention_mask": self.attention_mask}
        kept = {"use_cache": False} if self.cache is None else {"use_cache": True, "past_key_values": self.cache}
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, **kept, **masked}


class SelectiveHead:
    """Attach once per model; then call `logits_at`, `loss_at` or `pieces` instead of the model."""

    def __init__(self, model: Any, *, compares: bool = True) -> None:
        """`compares`: the first loss in pieces is preceded by a look at whether they give the model's own logits."""
        self._positions: Tensor | None = None
        self._shown = 0
        """How many of the picked hidden states the head is shown; 0 for all."""
        self._picked: Tensor | None = None
        self._checked = not compares
        self._after = _after_head(model)
        self._head = model.get_output_embeddings()
        if isinstance(self._head, nn.Module):
            self._head.register_forward_pre_hook(self._select)

    def _select(self, _module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._positions is None or not arguments:
            return None
        hidden = arguments[0]  # (B, T, D)
        self._picked = hidden.reshape(1, -1, hidden.shape[-1]).index_select(1, self._positions)  # (1, N, D)
        return (self._picked[:, : self._shown] if self._shown else self._picked, *arguments[1:])

    def logits_at(
        self, model: Any, input_ids: Tensor, position_ids: Tensor, positions: Tensor, cache: Any = None
    ) -> Tensor:
        """Logits (N, V) at flat `positions` of the (B, T) batch; N may be 0.

        Positions that restart at 0 separate rows only in a call without attention mask and without a cache.
        """
        return self.logits_of(model, Wanted(input_ids, position_ids, positions, cache=cache))

    def logits_of(self, model: Any, wanted: Wanted) -> Tensor:
        """Logits (N, V) where they are wanted."""
        logits, picked = self._run(model, wanted)
        flat = logits.reshape(-1, logits.shape[-1])  # (N, V), or (B * T, V) of a model whose head is no module
        if picked is None:
            flat = flat.index_select(0, wanted.positions)
        assert flat.shape[0] == wanted.positions.shape[0]
        return flat

    def _run(self, model: Any, wanted: Wanted) -> tuple[Tensor, Tensor | None]:
        """The model's logits, and the hidden states (1, N, D) that were picked; None where no head was hooked."""
        self._positions, self._picked = wanted.positions, None
        try:
            logits: Tensor = model(**wanted.arguments()).logits
            return logits, self._picked
        finally:
            self._positions = self._picked = None

    # ── in pieces ─────────────────────────────────────────────────────────────────────────────────────────────────
    def loss_at(self, model: Any, wanted: Wanted, targets: Tensor, chunk_tokens: int) -> Tensor:
        """Summed cross-entropy, nats, of the wanted positions; (N,) targets. 0 `chunk_tokens`: all at once.

        At most `chunk_tokens` rows of logits exist at any time, forward and backward. Equal to `summed_loss` of all
        logits but for the order of summation. Raises EngineError `train.head_not_in_pieces`.
        """
        if not 0 < chunk_tokens < targets.shape[0]:
            return summed_loss(self.logits_of(model, wanted), targets)
        hidden = self.hidden_at(model, wanted)
        pairs = zip(torch.split(hidden, chunk_tokens), torch.split(targets, chunk_tokens), strict=True)
        return torch.stack([checkpoint(self._chunk_loss, *pair, use_reentrant=False) for pair in pairs]).sum()

    def _chunk_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return summed_loss(self.logits_of_hidden(hidden), targets)

    def pieces(self, model: Any, wanted: Wanted, chunk_tokens: int) -> Iterator[Tensor]:
        """Logits of `chunk_tokens` positions at a time, (C, V) each; for scoring without gradients."""
        if wanted.positions.shape[0] <= chunk_tokens or not isinstance(self._head, nn.Module):
            yield self.logits_of(model, wanted)
            return
        for hidden in torch.split(self.hidden_at(model, wanted), chunk_tokens):
            yield self.logits_of_hidden(hidden)

    def hidden_at(self, model: Any, wanted: Wanted) -> Tensor:
        """(N, D): what the head would have been shown; N may be 0. Raises EngineError `train.head_not_in_pieces`."""
        self._shown = CHECKED_POSITIONS
        try:
            logits, picked = self._run(model, wanted)
        finally:
            self._shown = 0
        if picked is None:
            raise _not_in_pieces("Its output head is no module of its own.")
        if not self._checked and picked.shape[1]:
            self._compare(picked[0, :CHECKED_POSITIONS], logits[0])
            self._checked = True
        return picked[0]

    @torch.no_grad()
    def _compare(self, hidden: Tensor, expected: Tensor) -> None:
        """Once: what is done after the head here is what the model does. Raises EngineError."""
        found = self.logits_of_hidden(hidden)
        tolerance = TOLERANCE if found.dtype is torch.float32 else SHORT_TOLERANCE
        largest = float(expected.float().abs().max())
        if float((found.float() - expected.float()).abs().max()) > tolerance * max(largest, 1e-6):
            raise _not_in_pieces("It changes its logits after the head in a way that is not known here.")

    def logits_of_hidden(self, hidden: Tensor) -> Tensor:
        """(C, D) -> (C, V), with all that the family does after its head."""
        logits: Tensor = self._after(self._head(hidden[None]))[0]  # (C, V)
        return logits


def _not_in_pieces(cause: str) -> EngineError:
    return EngineError(
        "train.head_not_in_pieces",
        "This model's head cannot be computed in pieces.",
        cause=cause,
        next_step="Set training.loss_chunk_tokens = 0.",
        exit_code=ExitCode.RUN_FAILED,
    )


def _after_head(model: Any) -> Callable[[Tensor], Tensor]:
    """What a family does to its logits, read from its config: Cohere multiplies, Granite divides, Gemma caps."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    times = float(getattr(config, "logit_scale", None) or 1.0) * float(getattr(config, "lm_head_multiplier", None) or 1)
    times /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def after(logits: Tensor) -> Tensor:
        if times != 1.0:
            logits = logits * times
        return torch.tanh(logits / cap) * cap if cap else logits

    return after


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies in nats, computed in float32: (N, V), (N,) -> scalar."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
