"""transformers' Trainer with our loss: exact token normalisation, logits only where they carry loss, host-side counts.

Owns the subclass and the arguments. Only methods that transformers documents for overriding are overridden. Must not
know journals, checkpoints folders or control files: those are the callback's (`engine.train.loop`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from engine.evaluation.head import Wanted
from engine.evaluation.model import LoadedModel
from engine.jobs.spec import JobSpec, Optimizer
from engine.train.batches import Collator

OPTIMIZERS = {
    Optimizer.ADAMW: "adamw_torch_fused",
    Optimizer.ADAMW_8BIT: "adamw_bnb_8bit",
    Optimizer.PAGED_ADAMW_8BIT: "paged_adamw_8bit",
}


def training_arguments(
    spec: JobSpec, output_dir: Path, loaded: LoadedModel, *, planned_steps: int = 0
) -> TrainingArguments:
    """Everything that logs, evaluates or saves by itself is off: the callback decides.

    `planned_steps`: the data set has one item per optimizer step, taken in order; else sequences are drawn by the spec.
    """
    training = spec.training
    on_cuda = loaded.device.startswith("cuda")
    return TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=1 if planned_steps else training.epochs,
        max_steps=planned_steps or training.max_steps or -1,
        per_device_train_batch_size=1 if planned_steps else training.batch_size,
        gradient_accumulation_steps=1 if planned_steps else training.gradient_accumulation,
        train_sampling_strategy="sequential" if planned_steps else "random",
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule.value
        if training.schedule.value != "constant" or not training.warmup_ratio
        else "constant_with_warmup",
        warmup_steps=training.warmup_ratio,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=OPTIMIZERS[training.optimizer],
        bf16=loaded.compute_dtype == torch.bfloat16,
        use_cpu=loaded.device == "cpu",
        seed=training.seed,
        data_seed=training.seed,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=on_cuda,
        average_tokens_across_devices=False,
        log_level="warning",
    )


class TokenTrainer(Trainer):
    """Loss = sum over the trained tokens of all micro-batches of a step / their number."""

    loss_is_scaled_for_ga = True  # so the Trainer must not divide by the number of micro-batches again

    def __init__(
        self,
        loaded: LoadedModel,
        dataset: Dataset[Any],
        arguments: TrainingArguments,
        *,
        loss_chunk_tokens: int = 0,
        collator: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(
            model=loaded.model,
            args=arguments,
            train_dataset=dataset,
            data_collator=collator or Collator(loaded.pad_id),
        )
        self.remove_callback(PrinterCallback)
        self.loaded = loaded
        self.loss_chunk_tokens = loss_chunk_tokens
        self.step_tokens = 0
        """Tokens of the current optimizer step, padding not counted."""
        self.step_trained_tokens = 0

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step, and how many trained tokens they hold."""
        batches = []
        for _ in range(num_batches):
            batch = next(epoch_iterator, None)
            if batch is None:
                break
            batches.append(batch)
        self.step_tokens = sum(batch.pop("tokens") for batch in batches)
        self.step_trained_tokens = sum(batch.pop("trained_tokens") for batch in batches)
        return batches, max(self.step_trained_tokens, 1)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Cross-entropy of the trained tokens over `num_items_in_batch`."""
        # `model` is self.loaded.model, wrapped for mixed precision where that is on; pieces of the head are not.
        mask = inputs.get("attention_mask")
        wanted = Wanted(inputs["input_ids"], inputs["position_ids"], inputs["positions"], mask)
        with self.loaded.autocast() if self.loss_chunk_tokens else contextlib.nullcontext():
            loss = self.loaded.head.loss_at(model, wanted, inputs["targets"], self.loss_chunk_tokens)
        loss = loss / num_items_in_batch
        return (loss, None) if return_outputs else loss

    def epochs_done(self, state: Any) -> float:
        """Passes over the data after the present step."""
        return float(state.epoch or 0.0)

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """Not counted: walking all modules for it at every micro-batch costs more than it tells."""
        return 0
