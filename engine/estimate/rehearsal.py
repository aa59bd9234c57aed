"""What a rehearsal is asked for and answers: a job's model and recipe, small enough to travel between processes.

Owns the two messages. `engine.rehearsal` (torch) carries them out on fake tensors or on the real device; callers above
the line only read the answer. Must not know how either is done.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.estimate.workload import Attention, Loss, Method, OptimizerKind, Packing4Bit, Purpose, Workload


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """One training step to be tried: the very model, adapter, loss and optimizer of a job."""

    config: dict[str, Any]
    """The model's `config.json` (of its text part)."""
    method: str = "adapter"
    """ "adapter", "full" or "new blocks"."""
    quantization: str = "none"
    """ "none", "nf4" or "fp4"."""
    double_quantization: bool = True
    rank: int = 16
    targets: tuple[str, ...] = ("all-linear",)
    dropout: float = 0.0
    dora: bool = False
    adapter_bytes: int = 4
    train_embeddings: bool = False
    train_norms: bool = False
    fp32_copies: bool = False
    """Embeddings and norms learn as the worker has them learn: fp32 copies; else in the type of the rest."""
    loss_chunk_tokens: int = 0
    """Head and loss in pieces of so many tokens, as the worker computes them; 0 all at once."""
    offload_activations: bool = False
    new_layers: int = 0
    compute_bytes: int = 2
    autocast: bool = True
    kbit_prepared: bool = False
    selective_head: bool = True
    holds_output: bool = False
    """The caller keeps the model's output, and with it the logits, until backward is done."""
    batch: int = 1
    sequence: int = 1024
    trained_share: float = 1.0
    masked: bool = False
    checkpointing: bool = True
    attention: str = "sdpa"
    optimizer: str = "adamw"
    foreach: bool = False
    accumulation: int = 1
    evaluate: bool = False
    """Forward passes without gradients instead of a training step."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes alive at the largest moment of one stretch of a step, by kind."""

    stretch: str
    """ "forward", "loss", "top layer", "layers", "end of backward", "step"."""
    total: float
    kinds: dict[str, float]


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a dry run, allocated bytes without workspaces, slack and context."""

    total: float
    stretch: str
    kinds: dict[str, float]
    """ "weights", "adapter", "gradients", "optimizer", "activations", "logits and loss", "temporary buffers"."""
    moments: tuple[Moment, ...] = ()
    depths: tuple[int, ...] = ()
    """Layers of the models that were tried; the answer for the real depth is their straight line."""
    seconds: float = 0.0
    versions: dict[str, str] = {}


def rehearsal_of(work: Workload, config: dict[str, Any]) -> Rehearsal:
    """The rehearsal of `work` on the model that `config` describes. Chunked losses of other stacks than the worker's
    are tried as one chunk."""
    in_pieces = work.loss is Loss.CHUNKED and work.stack.checkpointed_chunks
    return Rehearsal(
        config=config,
        method=work.method.value,
        quantization="none" if work.packing is Packing4Bit.NONE else "nf4",
        double_quantization=work.packing is Packing4Bit.NF4_DOUBLE,
        rank=work.rank,
        targets=work.targets,
        dropout=0.05 if work.dropout else 0.0,
        dora=work.dora,
        adapter_bytes=work.adapter_bytes,
        train_embeddings=work.train_embeddings,
        train_norms=work.train_norms,
        fp32_copies=work.stack.fp32_copies,
        loss_chunk_tokens=work.stack.loss_chunk_tokens if in_pieces else 0,
        offload_activations=work.offload_activations,
        new_layers=work.trained_layers if work.method is Method.NEW_BLOCKS else 0,
        compute_bytes=work.compute_bytes,
        autocast=work.stack.autocast and work.compute_bytes == 2,
        kbit_prepared=work.stack.kbit_prepared and work.packed,
        selective_head=work.stack.selective_head or work.loss is not Loss.FULL,
        holds_output=work.stack.holds_output,
        batch=work.batch,
        sequence=work.sequence,
        trained_share=work.trained_share
        if work.loss is Loss.FULL or in_pieces
        else min(work.trained_share, work.stack.loss_chunk_tokens / work.tokens),
        masked=work.masked,
        checkpointing=work.checkpointing,
        attention="eager" if work.attention is Attention.EAGER else "sdpa",
        optimizer={
            OptimizerKind.ADAMW: "adamw",
            OptimizerKind.SGD: "sgd",
            OptimizerKind.ADAMW_MIXED: "adamw mixed",
        }.get(work.optimizer, "adamw 8-bit"),
        foreach=work.foreach,
        accumulation=min(work.accumulation, 2),
        evaluate=work.purpose is Purpose.EVALUATE,
    )
