"""Memory that does not depend on tokens: weights, adapter, gradients, optimizer.

Owns one function per component, each with its formula and source. All results are bytes on one device before
sharding. Must not know activations, allocators or machines.
"""

from __future__ import annotations

from engine.estimate.shapes import adapter_parameters, shape_of
from engine.estimate.workload import Method, OptimizerKind, Packing4Bit, Workload
from engine.models.architecture import Architecture

NF4_BYTES = 0.5 + 4 / 64
"""Half a byte per value and one fp32 scale per block of 64. Source: bitsandbytes."""
NF4_DOUBLE_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""The scales as 8-bit values with one fp32 scale per 256 of them. Source: bitsandbytes, QLoRA paper."""


def packed_model_bytes(architecture: Architecture, packing: Packing4Bit) -> float:
    """P·(0.5 + 4/64) or P·(0.5 + 1/64 + 4/16384), and 4·(N − P) for what stays unpacked.

    Source: bitsandbytes block sizes; peft's `prepare_model_for_kbit_training` turns embeddings, head and norms to fp32
    (Qwen2.5-7B on a T4: 7,702 MiB resident). The fused experts of mixtures are no `nn.Linear` in transformers 5:
    they stay unpacked and become fp32 as well.
    """
    shape = shape_of(architecture)
    per_value = NF4_DOUBLE_BYTES if packing is Packing4Bit.NF4_DOUBLE else NF4_BYTES
    return shape.quantizable * per_value + 4.0 * (shape.parameters - shape.quantizable)


def weight_bytes(work: Workload) -> float:
    """Packed: see `packed_model_bytes`. Else c·N with c the bytes of the compute type (2 bf16, 4 fp32)."""
    if work.packed:
        return packed_model_bytes(work.architecture, work.packing)
    return float(work.compute_bytes * work.architecture.parameters)


def weight_formula(work: Workload) -> str:
    """The formula of `weight_bytes` with this model's numbers."""
    shape = shape_of(work.architecture)
    if not work.packed:
        return f"{work.compute_bytes} B x N, N = {shape.parameters:,}"
    per_value = NF4_DOUBLE_BYTES if work.packing is Packing4Bit.NF4_DOUBLE else NF4_BYTES
    rest = shape.parameters - shape.quantizable
    return f"{per_value:.4f} B x {shape.quantizable:,} packed + 4 B x {rest:,} kept in fp32"


def teacher_bytes(work: Workload) -> float:
    """A frozen NF4 teacher beside the student (distillation): `packed_model_bytes` with double quantisation."""
    return 0.0 if work.teacher is None else packed_model_bytes(work.teacher, Packing4Bit.NF4_DOUBLE)


def trainable_parameters(work: Workload) -> int:
    """A for adapters, N for full training, N·new/L (blocks only) when old blocks are frozen."""
    if work.method is Method.ADAPTER:
        return adapter_parameters(work.architecture, work.targets, work.rank)
    if work.method is Method.FULL:
        return work.architecture.parameters
    architecture = work.architecture
    blocks = architecture.parameters - architecture.embedding_parameters
    return blocks * min(work.trained_layers, architecture.layers) // max(architecture.layers, 1)


def adapter_weight_bytes(work: Workload) -> float:
    """4·A: PEFT keeps adapters in fp32 (`autocast_adapter_dtype`). Source: peft."""
    return float(work.adapter_bytes * trainable_parameters(work)) if work.method is Method.ADAPTER else 0.0


def gradient_bytes(work: Workload) -> float:
    """One copy in the parameter's own type: 4·A for adapters, c·N for full training. Source: torch autograd."""
    per_value = work.adapter_bytes if work.method is Method.ADAPTER else work.compute_bytes
    return float(per_value * trainable_parameters(work))


def optimizer_bytes(work: Workload) -> float:
    """AdamW keeps two copies: 8·A for fp32 adapters, 4·N pure bf16, 12·N mixed (fp32 master and states), 2.03·N 8-bit.

    Source: torch AdamW; bitsandbytes 8-bit blocks of 256; DeepSpeed's 16 bytes per parameter for mixed precision.
    """
    count = trainable_parameters(work)
    if work.optimizer is OptimizerKind.ADAMW_8BIT:
        return 2 * (1 + 4 / 256) * count
    if work.optimizer is OptimizerKind.ADAMW_MIXED:
        return 12.0 * count
    per_value = work.adapter_bytes if work.method is Method.ADAPTER else work.compute_bytes
    return 2.0 * per_value * count


def optimizer_transient_bytes(work: Workload) -> float:
    """One more copy of the trained parameters during the step with torch's `foreach` loop; none when fused.

    Source: traced, 10.00 against 8.00 bytes per parameter in pure bf16.
    """
    return gradient_bytes(work) if work.foreach else 0.0


def dequant_buffer_bytes(work: Workload) -> float:
    """Two copies of the largest packed matrix in the compute type: forward and backward. Source: bitsandbytes."""
    return 2.0 * work.compute_bytes * shape_of(work.architecture).largest_linear if work.packed else 0.0


def gathered_block_bytes(work: Workload) -> float:
    """ZeRO-3/FSDP holds two whole blocks beside its share: 2 · c · (largest block). Source: FSDP prefetching."""
    if work.shards == 1:
        return 0.0
    architecture = work.architecture
    block = max(
        (architecture.parameters - architecture.embedding_parameters) / max(architecture.layers, 1),
        architecture.embedding_parameters / 2,
    )
    return 2.0 * work.compute_bytes * block
