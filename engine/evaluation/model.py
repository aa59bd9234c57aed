"""A model ready to be asked: weights, tokenizer, device and number type in one value.

Owns how a forward pass is called (precision, evaluation mode, adapter on or off). Must not know how the model was
loaded, trained or saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.data.tokenizer import ChatTokenizer
from engine.evaluation.head import SelectiveHead, Wanted


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model, with or without an adapter around it."""

    model: Any
    """transformers' PreTrainedModel, or peft's PeftModel around one."""
    head: SelectiveHead
    tokenizer: ChatTokenizer
    device: str
    compute_dtype: torch.dtype

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def context_length(self) -> int:
        """Tokens that the config promises; 0 when it does not say."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 0)

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_id

    def logits_at(self, input_ids: Tensor, position_ids: Tensor, positions: Tensor, cache: Any = None) -> Tensor:
        """Logits (N, V) at flat positions of a batch of rows, after what `cache` holds."""
        with self.autocast():
            return self.head.logits_at(self.model, input_ids, position_ids, positions, cache)

    def logit_pieces(self, wanted: Wanted, chunk_tokens: int) -> Iterator[Tensor]:
        """The same, at most `chunk_tokens` positions at a time, (C, V) each: what long rows need."""
        pieces = self.head.pieces(self.model, wanted, chunk_tokens)
        while True:
            with self.autocast():  # never while the caller has the word
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision that training uses: bfloat16 where the compute type says so, else as stored."""
        if self.compute_dtype == torch.bfloat16:
            return torch.autocast(self.device.partition(":")[0], torch.bfloat16)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, no dropout; the mode before is restored. Draws nothing from any random generator."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

    def base_only(self) -> contextlib.AbstractContextManager[Any]:
        """The same model without its adapter."""
        disable = getattr(self.model, "disable_adapter", None)
        return contextlib.nullcontext() if disable is None else disable()
