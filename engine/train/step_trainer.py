"""The Trainer for planned steps: one item is one optimizer step of several micro-batches.

Owns going through them. Must not know plans, methods or windows: which rotary embedding a micro-batch is computed with
is a context manager that is handed in. It is held open until after the backward pass, since checkpointed layers are run
again there and have to see the same positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from engine.evaluation.model import LoadedModel
from engine.train.step_batches import ORIGINAL, StepDataset, only_item
from engine.train.trainer import TokenTrainer

Rotation = Callable[[], contextlib.AbstractContextManager[Any]]
"""Opens the model's original rotary embedding."""


class StepTrainer(TokenTrainer):
    """Loss of a step = sum over the trained tokens of all its micro-batches / their number, as ever. Its arguments are
    `training_arguments(..., planned_steps=len(dataset))`."""

    def __init__(
        self,
        loaded: LoadedModel,
        dataset: StepDataset,
        arguments: TrainingArguments,
        *,
        loss_chunk_tokens: int = 0,
        original: Rotation = contextlib.nullcontext,
    ) -> None:
        super().__init__(
            loaded,
            dataset,
            arguments,
            loss_chunk_tokens=loss_chunk_tokens,
            collator=only_item,
        )
        self._original = original
        self._passes = dataset.lessons.passes

    def epochs_done(self, state: Any) -> float:
        """Passes over the data after the present step; the Trainer's own count is of the whole job."""
        return self._passes[int(state.global_step) - 1]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """One item, the whole step, and how many trained tokens it holds."""
        step = next(epoch_iterator, None)
        if step is None:
            return [], 1
        self.step_tokens = sum(batch.pop("tokens") for batch in step)
        self.step_trained_tokens = sum(batch.pop("trained_tokens") for batch in step)
        return [step], max(self.step_trained_tokens, 1)

    def training_step(  # type: ignore[override, unused-ignore]
        self, model: Any, inputs: list[dict[str, Any]], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of every micro-batch, each with its own rotary embedding; returns the step's loss."""
        losses = []
        for batch in inputs:
            with self._original() if batch.pop(ORIGINAL) else contextlib.nullcontext():
                losses.append(super().training_step(model, batch, num_items_in_batch))
        return torch.stack(losses).sum()
