"""A step computed in smaller pieces: what is done when memory runs out in the middle of one.

Owns the splitting of a micro-batch by rows and the states that let a step be computed again from its start. Must not
know the loop. The loss of a step is a sum over its tokens divided by their number, so pieces of a micro-batch add up
to the same loss and the same gradients, but for the order of summation: the effective batch stays what it was.

    micro-batch (B, T) ──► 2 pieces (B / 2, T) ──► 4 pieces ──► ... ──► B pieces of one row
"""

from __future__ import annotations

import gc
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, ExitCode

_BY_ROW = ("input_ids", "position_ids", "attention_mask")


@dataclass(frozen=True, slots=True)
class Split:
    """Memory ran out, and the step was computed all the same."""

    pieces: int
    """In which every micro-batch is computed from here on; one of fewer rows in as many as it has rows."""
    cause: str
    """The library's words."""
    answers: bool = False
    """It ran out while the student wrote answers: `pieces` is of their batches, and micro-batches stay as they are."""


class StepOutOfMemory(MemoryError):
    """Memory ran out in a micro-batch that can be computed in smaller pieces; the library's error is the cause."""


def rows_of(batch: dict[str, Any]) -> int:
    """B of a micro-batch."""
    return int(batch["input_ids"].shape[0])


def split(batch: dict[str, Any], pieces: int) -> list[dict[str, Any]]:
    """The micro-batch in at most `pieces` parts of neighbouring rows, sizes differing by one at most."""
    rows, width = batch["input_ids"].shape
    if pieces <= 1 or rows <= 1:
        return [batch]
    borders = [rows * number // min(pieces, rows) for number in range(min(pieces, rows) + 1)]
    return [_rows(batch, first, last, width) for first, last in itertools.pairwise(borders)]


def _rows(batch: dict[str, Any], first: int, last: int, width: int) -> dict[str, Any]:
    positions: Tensor = batch["positions"]  # (N,) flat in B x T
    inside = (positions >= first * width) & (positions < last * width)
    part = {name: batch[name][first:last] for name in _BY_ROW if name in batch}
    return {**batch, **part, "positions": positions[inside] - first * width, "targets": batch["targets"][inside]}


@dataclass(frozen=True, slots=True)
class RandomState:
    """Of the generators that dropout draws from."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls) -> RandomState:
        """Costs no synchronisation: the state of a card's generator is a seed and an offset kept by the host."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return cls(torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Draw again what was drawn since."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


def release(model: torch.nn.Module) -> None:
    """Give back the gradients of a step that failed, and what the allocators kept of it."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def row_does_not_fit(width: int, cause: str) -> EngineError:
    """There is nothing smaller to compute than one row."""
    return EngineError(
        "train.row_does_not_fit",
        f"Memory ran out on a single sequence of {width:,} tokens; it cannot be split further.",
        cause=cause,
        next_step="Shorten data.max_length; set training.gradient_checkpointing = true, training.loss_chunk_tokens or "
        'training.offload_activations; or hold the model in 4 bits (task = "qlora").',
        exit_code=ExitCode.RUN_FAILED,
    )


def out_of_memory(doing: str, cause: str) -> EngineError:
    """Beside the micro-batches, where nothing is computed in pieces. `doing`: "an evaluation", or "" if unknown."""
    return EngineError(
        "train.out_of_memory",
        f"This run ran out of memory in {doing or 'training'}.",
        cause=cause,
        next_step="The last checkpoint is kept: end other programs that hold memory and resume. Else start a new run "
        'with training.optimizer = "adamw_8bit" or "paged_adamw_8bit" on an NVIDIA card, an adapter (task = "lora" or '
        '"qlora") instead of all weights, or shorter data.max_length; evaluation.every_steps = 0 evaluates only before '
        "and after the training.",
        exit_code=ExitCode.RUN_FAILED,
    )
