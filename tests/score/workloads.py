"""A row as the formula's `Workload`, or the reason why it cannot be one.

Owns how methods, stack, lengths and sharding of a row come together. Must not know results.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from engine.errors import EngineError
from engine.estimate.stacks import PEFT_BENCH, Stack
from engine.estimate.workload import Attention, Loss, Method, OptimizerKind, Packing4Bit, Workload
from engine.models.architecture import Architecture
from tests.score.methods import (
    NotExpressible,
    method_of,
    new_blocks_of,
    optimizer_of,
    packing_of,
    rank_of,
    refuse_unknown,
    targets_of,
    trains_embeddings,
)
from tests.score.models import UnknownModel, architecture_of
from tests.score.rows import Row
from tests.score.stack_of import beyond_window, stack_of

_HOPPER_WORKSPACES = 2 * (32 << 20)
_METAMATH_TOKENS = 736
"""The longest row of peft's MetaMathQA benchmark, to which the largest batch is padded; its limit is 768."""
_ON_HOST = 65_536
"""FSDP with CPU offload keeps no share on the card: as if divided by very many cards."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """A row with what the formula needs; `state_only` when it was read before any training."""

    row: Row
    work: Workload
    stack: Stack
    state_only: bool = False


def mapped(row: Row) -> Mapped:
    """The row's workload. Raises NotExpressible with the reason."""
    if row.use == "exclude":
        raise NotExpressible(f"marked 'exclude' in the file: {row.notes or 'not trustworthy'}")
    refuse_unknown(row)
    if re.search(r"unpacked|not reached|unknown length", row.sequence_kind):
        raise NotExpressible(f"'{row.sequence_kind}': the longest batch is not printed")
    if "not stated" in row.checkpointing and "not visible" in row.gpu:
        raise NotExpressible("neither checkpointing nor the card is printed")
    state_only = bool(re.search(r"after (model )?init|before training|after loading", f"{row.method} {row.metric}"))
    if stack_of(row).id == PEFT_BENCH.id:
        row = replace(row, sequence=min(row.sequence or _METAMATH_TOKENS, _METAMATH_TOKENS))
    if row.sequence is None and not (state_only or row.frontier):
        raise NotExpressible(_unprinted(row))
    if row.batch is None and not (state_only or row.frontier):
        raise NotExpressible(_unprinted(row))
    try:
        architecture = architecture_of(row.model, row.published_b)
    except UnknownModel as error:
        raise NotExpressible(str(error)) from error
    try:
        return Mapped(row, _workload(row, architecture), stack_of(row), state_only)
    except EngineError as error:
        raise NotExpressible(f"{error.what} {error.cause}".strip()) from error


def _unprinted(row: Row) -> str:
    missing = [name for name, value in (("batch", row.batch), ("length", row.sequence)) if value is None]
    return f"{' and '.join(missing)} not printed"


def _workload(row: Row, architecture: Architecture) -> Workload:
    stack = stack_of(row)
    method = method_of(row)
    packing = packing_of(row, stack) if method is Method.ADAPTER else Packing4Bit.NONE
    if method is not Method.ADAPTER and re.search(r"4-?bit|nf4|gptq", row.quant):
        raise NotExpressible(f"{row.method} on {row.quant} weights has no formula")
    optimizer = optimizer_of(row, method, stack)
    blocks = new_blocks_of(row) if method is Method.NEW_BLOCKS else 0
    parallel, shards = _sharded(row)
    batch = row.batch or 1
    return Workload(
        _as_stored(architecture, stack, blocks),
        method=method,
        packing=packing,
        batch=batch,
        sequence=row.sequence or 1024,
        rank=rank_of(row, stack),
        targets=targets_of(row, stack) if method is Method.ADAPTER else ("all-linear",),
        checkpointing=_checkpointing(row, stack),
        masked=_masked(row, batch) or "packed rows" in row.notes,
        attention=_attention(row, stack),
        loss=_loss(row, stack),
        trained_share=_trained_share(row),
        accumulation=_accumulation(row, stack, batch),
        optimizer=optimizer,
        foreach=_foreach(row, stack, optimizer),
        step_in_backward=bool(re.search(r"in[- ]backward|fused in|fused backward", row.optimizer)),
        optimizer_on_host="offload" in row.optimizer or ("offload" in parallel and "deepspeed" in parallel),
        trained_layers=blocks,
        compute_bytes=4 if re.search(r"fp32|float32|32-true", row.base_dtype.split("(")[0]) else 2,
        adapter_bytes=_adapter_bytes(row, stack),
        dora="dora" in row.method,
        dropout=_dropout(row, stack),
        train_embeddings=trains_embeddings(row),
        offload_activations="offload" in row.checkpointing or "unsloth" in row.framework,
        shards=shards,
        capability=9 if _HOPPER.search(row.gpu.lower()) else 0,
        workspace_bytes=_HOPPER_WORKSPACES if _HOPPER.search(row.gpu.lower())
        else 2 * 8_519_680,
        expandable_segments=row.frontier or "scaler-wizard" in row.framework or stack.id.startswith("unsloth"),
        stack=stack,
    )  # fmt: skip


def _as_stored(architecture: Architecture, stack: Stack, blocks: int) -> Architecture:
    """litgpt keeps embedding and head apart even where they are tied; LLaMA-Pro adds blocks."""
    if stack.id.startswith("lit") and architecture.tied_embeddings and architecture.family not in ("gemma", "gemma2"):
        head = architecture.vocab_size * architecture.hidden_size
        architecture = replace(architecture, tied_embeddings=False, parameters=architecture.parameters + head)
    if blocks:
        block = (architecture.parameters - architecture.embedding_parameters) // architecture.layers
        grown = architecture.parameters + blocks * block
        architecture = replace(architecture, layers=architecture.layers + blocks, parameters=grown)
    return architecture


def _sharded(row: Row) -> tuple[str, int]:
    """FSDP and ZeRO divide the state over cards; DDP does not; tensor and pipeline parallel runs have no formula."""
    words = f"{row.parallel} {row.optimizer}"
    if re.search(r"fsdp.*offload|zero-?3.*offload", words):
        return words, _ON_HOST
    if row.gpus == 1:
        return words, 1
    if re.search(r"\bddp\b|data parallel|zero-?2", words) and not re.search(r"fsdp|zero-?3", words):
        return words, 1
    if re.search(r"fsdp|zero|deepspeed|hsdp", words):
        return words, row.gpus
    raise NotExpressible(f"{row.gpus} cards, '{row.parallel or 'parallelism not named'}': no formula")


def _checkpointing(row: Row, stack: Stack) -> bool:
    """As written; where it is not, as the framework does by default. Full litgpt and peft runs do without."""
    words = row.checkpointing
    if words.startswith("yes") or "default yes" in words:
        return True
    if re.match(r"no\b(?!t stated)", words):
        return False
    if re.search(
        r"checkpointing (probably )?off|no checkpointing|without checkpointing", f"{row.optimizer} {row.notes}"
    ):
        return False
    return not stack.id.startswith(("lit", "peft"))


def _masked(row: Row, batch: int) -> bool:
    """Rows padded to a batch's longest bring a mask to attention; one row, or equal rows, do not."""
    return (
        batch > 1
        and bool(re.search(r"padded|longest|varied|max(imum)? (of|in)", row.sequence_kind))
        and ("packed exact" not in row.sequence_kind)
    )


def _attention(row: Row, stack: Stack) -> Attention:
    words = row.attention
    if stack.id.startswith("ms-swift") and beyond_window(row):
        return Attention.EAGER
    if "flash" in words or re.search(r"\bfa-?2\b|fa2", words):
        return Attention.FLASH
    if "eager" in words and "sdpa" not in words:
        return Attention.EAGER
    return Attention.SDPA


_HOPPER = re.compile(r"\b(h100|h200|gh200|h800|h20)\b")


def _trained_share(row: Row) -> float:
    """Our own rows say for which share of the positions logits were computed."""
    share = re.search(r"trained positions \(share ([0-9.]+)\)", row.loss)
    return float(share[1]) if share else 1.0


def _loss(row: Row, stack: Stack) -> Loss:
    if stack.id.startswith("unsloth") or re.search(r"cut cross|fused|liger|cce", row.loss):
        return Loss.FUSED
    if "chunk" in row.loss and not stack.id.startswith("lit"):
        return Loss.CHUNKED
    return Loss.FULL


def _accumulation(row: Row, stack: Stack, batch: int) -> int:
    if re.search(r"no (gradient )?accumulation", row.notes):
        return 1
    found = re.search(r"accumulation(?: steps)?(?: of)?[ =:]*(\d+)", row.notes)
    if found:
        return max(int(found[1]), 1)
    return max(16 // batch, 1) if stack.id.startswith("ms-swift") else 1


def _foreach(row: Row, stack: Stack, optimizer: OptimizerKind) -> bool:
    """torch's AdamW on CUDA unless fused; DeepSpeed, torchtune and bitsandbytes bring their own kernels."""
    own = optimizer in (OptimizerKind.ADAMW_8BIT, OptimizerKind.PAGED_ADAMW_8BIT, OptimizerKind.ADAMW_MIXED)
    return not (own or "fused" in row.optimizer or stack.id.startswith("torchtune") or "deepspeed" in stack.id)


def _adapter_bytes(row: Row, stack: Stack) -> int:
    if re.search(r"bf16|fp16|16-bit|half", row.adapter_dtype):
        return 2
    if re.search(r"fp32|32", row.adapter_dtype):
        return 4
    return 2 if stack.id.startswith(("lit", "torchtune", "fsdp", "qwen-2023-deepspeed")) else 4


def _dropout(row: Row, stack: Stack) -> bool:
    """As the notes say, else by the framework's default: litgpt's recipes and Qwen's script drop 5 %."""
    words = f"{row.method} {row.notes}"
    if re.search(r"dropout[ =]*0(?![.\d]*[1-9])|no dropout", words):
        return False
    if re.search(r"dropout[ =]*0?\.\d", words):
        return True
    return stack.id.startswith(("lit", "qwen", "ms-swift"))
