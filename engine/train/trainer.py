"""transformers' Trainer with our loss: exact token normalisation, logits only where they carry loss, host-side counts.

Owns the subclass and the arguments. Only methods that transformers documents for overriding are overridden. Must not
know journals, checkpoints folders or control files: those are the callback's (`engine.train.loop`); nor plans, methods
or windows: which rotary embedding a micro-batch is computed with is a context manager that is handed in. It is held
open until after the backward pass, since checkpointed layers are run again there and have to see the same positions.

A data set of planned steps has one item per optimizer step, the list of its micro-batches; of any other the Trainer
draws sequences by itself. Where memory runs out, the step under way is computed again in smaller pieces
(`engine.train.pieces`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from engine.errors import EngineError
from engine.evaluation.head import Wanted
from engine.evaluation.model import LoadedModel
from engine.helper_process import is_out_of_memory
from engine.jobs.spec import JobSpec, Optimizer, TrainingSection
from engine.schedule.rates import rate_curve
from engine.train.batches import Collator
from engine.train.course import Course
from engine.train.pieces import (
    RandomState,
    Split,
    StepOutOfMemory,
    out_of_memory,
    release,
    row_does_not_fit,
    rows_of,
    split,
)
from engine.train.shares import share_of
from engine.train.step_batches import ORIGINAL, PlannedSteps, only_item

if TYPE_CHECKING:
    from engine.distributed.parallel import Parallel
    from engine.train.taught_steps import TaughtSteps

OPTIMIZERS = {
    Optimizer.ADAMW: "adamw_torch_fused",
    Optimizer.ADAMW_8BIT: "adamw_bnb_8bit",
    Optimizer.PAGED_ADAMW_8BIT: "paged_adamw_8bit",
}

Rotation = Callable[[], contextlib.AbstractContextManager[Any]]
"""Opens the model's original rotary embedding."""


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
    """Loss = sum over the trained tokens of all micro-batches of a step / their number. For planned steps the arguments
    are `training_arguments(..., planned_steps=len(dataset))`."""

    loss_is_scaled_for_ga = True  # so the Trainer must not divide by the number of micro-batches again

    def __init__(
        self,
        loaded: LoadedModel,
        dataset: Dataset[Any],
        arguments: TrainingArguments,
        training: TrainingSection,
        *,
        original: Rotation = contextlib.nullcontext,
        parallel: Parallel | None = None,
    ) -> None:
        """`training`: of the stage, whose rates it follows. `parallel`: the model on several ranks, each of which
        computes its share of every planned step."""
        self.planned = dataset if isinstance(dataset, PlannedSteps) else None
        super().__init__(
            model=loaded.model,
            args=arguments,
            train_dataset=dataset,
            data_collator=Collator(loaded.pad_id) if self.planned is None else only_item,
        )
        self.remove_callback(PrinterCallback)
        self.loaded = loaded
        self.training = training
        self.loss_chunk_tokens = training.loss_chunk_tokens
        self.step_tokens = 0
        """Tokens of the current optimizer step, padding not counted."""
        self.step_trained_tokens = 0
        self.step_wait_seconds = 0.0
        """How long the current step waited for its data."""
        self.pieces = 1
        """In which every micro-batch is computed."""
        self.writing_pieces = 1
        """So many times smaller are the batches in which the student writes answers."""
        self.on_split: Callable[[Split], None] = lambda _split: None
        """Told when memory ran out and the step was computed in more pieces than before."""
        self.doing = ""
        """What is computed beside the micro-batches, in words."""
        self.first_step = 0
        """Steps done before this training began."""
        self.parallel = parallel
        self.teacher: Callable[[], TaughtSteps] | None = None
        """Gets a teacher ready, where the job has one."""
        self.taught: TaughtSteps | None = None
        """Where it is ready."""
        self._original = original
        self._computed: list[dict[str, Any]] = []
        """Micro-batches of the current step that were computed, or are being."""
        self._told_losses: list[Tensor] = []
        """What the Trainer was told of them."""
        self._random_state: RandomState | None = None
        """At the beginning of the current step."""

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Raises EngineError `train.out_of_memory` where memory ran out and smaller pieces are no help. Of several
        ranks the runner decides what follows (`engine.train.ranked`)."""
        try:
            if self.teacher is not None:
                self.doing = "loading the teacher"
                self.taught, self.doing = self.teacher(), ""
            return super().train(*arguments, **named)
        except Exception as error:
            if self.parallel is not None or isinstance(error, EngineError) or not is_out_of_memory(error):
                raise
            raise out_of_memory(self.doing, " ".join(str(error).split())[:300]) from error

    # ── the learning rate ─────────────────────────────────────────────────────────────────────────────────────────
    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """A factor per group of parameters, and what is left of it after leaps of the loss."""
        assert self.optimizer is not None
        factors = [self._after_setbacks(one) for one in self.rate_factors(num_training_steps)]
        self.lr_scheduler = LambdaLR(self.optimizer, factors)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def rate_factors(self, steps: int) -> list[Callable[[int], float]]:
        """Of each group of the optimizer, as LambdaLR wants them."""
        assert self.optimizer is not None
        curve = rate_curve(self.training, steps)
        return [curve.factor] * len(self.optimizer.param_groups)

    def _after_setbacks(self, factor: Callable[[int], float]) -> Callable[[int], float]:
        course = self.planned.course if self.planned is not None else Course()
        return lambda step: factor(step) * course.rate_factor(step) if course.setbacks else factor(step)

    def renew_rates(self) -> None:
        """Those of the next step, worked out again: a checkpoint holds what they were to be before a setback."""
        scheduler = self.lr_scheduler
        assert isinstance(scheduler, LambdaLR)
        assert self.optimizer is not None
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        rates = [base * factor(scheduler.last_epoch) for base, factor in pairs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates

    # ── a step ────────────────────────────────────────────────────────────────────────────────────────────────────
    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step, or the one item that holds them, and how many trained tokens they
        have together."""
        began = time.perf_counter()
        items = []
        for _ in range(num_batches):
            item = next(epoch_iterator, None)
            if item is None:
                break
            items.append(item)
        self.step_wait_seconds = time.perf_counter() - began
        if self.taught is not None:
            items = self._taught_items(self.taught, items)
        batches = [batch for item in items for batch in (item if isinstance(item, list) else [item])]
        self.step_tokens = sum(batch.pop("tokens") for batch in batches)
        self.step_trained_tokens = sum(batch.pop("trained_tokens") for batch in batches)
        self._computed, self._told_losses, self._random_state = [], [], None
        return items, max(self.step_trained_tokens, 1)

    def _taught_items(self, taught: TaughtSteps, items: list[Any]) -> list[Any]:
        """The step's data, or what the student wrote in their place."""
        self.doing = "answers of the student's own"
        items, split = taught.items(items, self.first_step + int(self.state.global_step) + 1, self.writing_pieces)
        self.doing = ""
        if split is not None:
            self.writing_pieces = split.pieces
            self.on_split(split)
        return items

    @property
    def on_own_answers(self) -> bool:
        """Whether the step that was computed learnt on what the student wrote."""
        return self.taught is not None and self.taught.objective.own_answers

    @property
    def loss_parts(self) -> dict[str, float]:
        """Of the step that was computed, nats per trained token, before their weights; {} without a teacher."""
        return {} if self.taught is None else self.taught.objective.parts(self.step_trained_tokens)

    def training_step(  # type: ignore[override, unused-ignore]
        self, model: Any, inputs: dict[str, Any] | list[dict[str, Any]], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of a micro-batch, or of all of a planned step; returns its part of the step's loss.
        Raises EngineError `train.row_does_not_fit`."""
        batches = inputs if isinstance(inputs, list) else [inputs]
        if self.parallel is not None:
            return self._shared_step(self.parallel, model, batches, num_items_in_batch)
        if self._random_state is None:
            self._random_state = RandomState.now()
        self._computed += batches
        loss, failure = self._tried(model, batches, num_items_in_batch)
        if loss is None:
            loss = self._again(model, num_items_in_batch, failure)
        self._told_losses.append(loss)
        return loss

    def _shared_step(self, parallel: Parallel, model: Any, batches: Sequence[dict[str, Any]], count: Any) -> Tensor:
        """This rank's share of a planned step; returns the whole step's loss. What dropout draws follows from the
        step's number and the micro-batch's, so that it is the same for any number of ranks that divide it equally."""
        company, step = parallel.company, self.first_step + int(self.state.global_step) + 1
        own = share_of(batches, company.place.rank, company.world, self.pieces)
        losses = []
        for number, batch in enumerate(own):
            company.life.doing(f"step {step}: micro-batch {number + 1} of {len(own)}", step=step, in_step=True)
            torch.manual_seed(hash((self.args.seed, step, number * company.world + company.place.rank)) % 2**63)
            original = self._original() if batch.get(ORIGINAL) else contextlib.nullcontext()
            try:
                with original, parallel.part(last=number + 1 == len(own)):
                    losses.append(super().training_step(model, batch, count))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.pieces >= max(rows_of(one) for one in batches):
                    raise row_does_not_fit(int(batch["input_ids"].shape[1]), str(error)[:300]) from error
                raise StepOutOfMemory(str(error)) from error  # another attempt computes smaller ones, on every rank
        company.life.doing(f"step {step}: update", step=step, in_step=True)
        return company.total(torch.stack(losses).sum() / company.world)

    def _tried(self, model: Any, batches: Sequence[dict[str, Any]], count: Any) -> tuple[Tensor | None, str]:
        """The loss; or None, and the library's words, where memory ran out. Returning drops the failed frames, which
        hold the activations."""
        try:
            losses = [self._loss_of(model, batch, count) for batch in batches]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None, " ".join(str(error).split())[:300] or type(error).__name__
        if not losses:
            return torch.zeros((), device=self.args.device), ""
        return (losses[0] if self.planned is None and len(losses) == 1 else torch.stack(losses).sum()), ""

    def _loss_of(self, model: Any, batch: dict[str, Any], count: Any) -> Tensor:
        """Forward and backward of one micro-batch, in as many pieces as fit, with its own rotary embedding."""
        with self._original() if batch.get(ORIGINAL) else contextlib.nullcontext():
            pieces = split(batch, self.pieces)
            losses = [super(TokenTrainer, self).training_step(model, piece, count) for piece in pieces]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _again(self, model: Any, count: Any, failure: str) -> Tensor:
        """The step from its start, in pieces that fit; what the Trainer was told of it already is taken off."""
        most_rows = max(rows_of(batch) for batch in self._computed)
        loss: Tensor | None = None
        while loss is None:
            release(model)
            if self.pieces >= most_rows:
                raise row_does_not_fit(max(int(batch["input_ids"].shape[1]) for batch in self._computed), failure)
            self.pieces *= 2
            assert self._random_state is not None
            self._random_state.restore()
            if self.taught is not None:
                self.taught.objective.begin_step()
            loss, failure_now = self._tried(model, self._computed, count)
            failure = failure_now or failure
        self.on_split(Split(self.pieces, failure))
        return loss - torch.stack(self._told_losses).sum() if self._told_losses else loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Cross-entropy of the trained tokens, or their loss with a teacher, over `num_items_in_batch`."""
        # `model` is self.loaded.model, wrapped for mixed precision where that is on; pieces of the head are not.
        parallel = self.parallel
        model = model if parallel is None else parallel.called
        if self.taught is not None:
            loss = self.taught.loss(model, inputs) / num_items_in_batch
            return (loss, None) if return_outputs else loss
        mask = inputs.get("attention_mask")
        wanted = Wanted(inputs["input_ids"], inputs["position_ids"], inputs["positions"], mask)
        with self.loaded.autocast() if self.loss_chunk_tokens else contextlib.nullcontext():
            loss = self.loaded.head.loss_at(model, wanted, inputs["targets"], self.loss_chunk_tokens)
        loss = loss / num_items_in_batch
        if parallel is not None:
            loss = loss * parallel.company.world  # gradients are averaged over ranks
        return (loss, None) if return_outputs else loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Shards are read by all ranks together, once there is an optimizer (`engine.train.ranked_loop`)."""
        if self.parallel is None or not self.parallel.company.shards:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def epochs_done(self, state: Any) -> float:
        """Passes over the data after the present step; of planned steps the Trainer's own count is of the whole job."""
        return float(state.epoch or 0.0) if self.planned is None else self.planned.passes_after(int(state.global_step))

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: walking all modules for it at every micro-batch costs more than it tells."""
        return 0
