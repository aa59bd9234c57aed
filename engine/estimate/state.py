"""Memory that does not depend on tokens: weights, adapter, gradients, optimizer.

Owns one function per component, each with its formula and source. All results are bytes on one device before
sharding. Must not know activations, allocators or machines.
"""

from __future__ import annotations

from engine.estimate.shapes import adapter_parameters, magnitude_parameters, norm_parameters, shape_of
from engine.estimate.workload import Method, OptimizerKind, Packing4Bit, TeacherHeld, Workload
from engine.models.architecture import Architecture

NF4_BYTES = 0.5 + 4 / 64
"""Half a byte per value and one fp32 scale per block of 64. Source: bitsandbytes."""
NF4_DOUBLE_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""The scales as 8-bit values with one fp32 scale per 256 of them. Source: bitsandbytes, QLoRA paper."""


GPTQ_BYTES = 0.5 + 2.5 / 128
"""Half a byte per value, and per group of 128 a 16-bit scale and a 4-bit zero. Source: auto-gptq's file format."""


def packed_model_bytes(architecture: Architecture, packing: Packing4Bit, rest_bytes: float = 4.0) -> float:
    """P·(0.5 + 4/64) or P·(0.5 + 1/64 + 4/16384), and `rest_bytes`·(N − P) for what stays unpacked.

    Source: bitsandbytes block sizes; peft's `prepare_model_for_kbit_training` turns embeddings, head and norms to fp32
    (Qwen2.5-7B on a T4: 7,702 MiB resident), this program's worker leaves them in the compute type. The fused experts
    of mixtures are no `nn.Linear` in transformers 5: they stay unpacked as well.
    """
    shape = shape_of(architecture)
    return shape.quantizable * packed_value_bytes(packing) + rest_bytes * (shape.parameters - shape.quantizable)


def packed_value_bytes(packing: Packing4Bit) -> float:
    """Bytes per packed value, scales included."""
    return {Packing4Bit.NF4: NF4_BYTES, Packing4Bit.NF4_DOUBLE: NF4_DOUBLE_BYTES, Packing4Bit.GPTQ: GPTQ_BYTES}[packing]


def rest_width(work: Workload) -> float:
    """Bytes per value of what 4-bit packing leaves alone."""
    return 4.0 if work.stack.kbit_prepared and work.packed else float(work.compute_bytes)


def key_value_cache_bytes(work: Workload) -> float:
    """2·L·kv·c·T: keys and values of every layer and position. Source: transformers' dynamic cache."""
    shape = shape_of(work.architecture)
    return 2.0 * shape.layers * shape.key_value * work.compute_bytes * work.tokens


def weight_bytes(work: Workload) -> float:
    """Packed: see `packed_model_bytes`. Else c·N with c the bytes of the compute type (2 bf16, 4 fp32).

    New blocks beside a packed base are not packed; under autocast what learns has fp32 weights, what is frozen c bytes.
    """
    learning = 0 if work.method is Method.ADAPTER else trainable_parameters(work)
    width = 4.0 if autocast_mixed(work) else float(work.compute_bytes)
    if work.packed:
        saved = 0.0
        if work.stack.packs_head:
            saved = shape_of(work.architecture).head * (rest_width(work) - packed_value_bytes(work.packing))
        if work.stack.packs_experts:
            experts = max(work.architecture.linear_parameters - shape_of(work.architecture).quantizable, 0)
            saved += experts * (rest_width(work) - packed_value_bytes(work.packing))
        unpacked = learning * (width - packed_value_bytes(work.packing))
        return packed_model_bytes(work.architecture, work.packing, rest_width(work)) - saved + unpacked
    return width * learning + float(work.compute_bytes) * (work.architecture.parameters - learning)


def autocast_mixed(work: Workload) -> bool:
    """Mixed precision as torch's autocast does it: fp32 weights, gradients and states, computed in 16 bits. Engines
    such as DeepSpeed keep 16-bit weights and gradients and an fp32 master copy; both come to 16 bytes per parameter."""
    return work.optimizer is OptimizerKind.ADAMW_MIXED and work.stack.autocast and work.method is not Method.ADAPTER


def weight_formula(work: Workload) -> str:
    """The formula of `weight_bytes` with this model's numbers."""
    shape = shape_of(work.architecture)
    if not work.packed:
        return f"{work.compute_bytes} B x N, N = {shape.parameters:,}"
    rest, width = shape.parameters - shape.quantizable, rest_width(work)
    kept = "fp32" if width == 4 else "16 bits"
    return (
        f"{packed_value_bytes(work.packing):.4f} B x {shape.quantizable:,} packed + {width:.0f} B x {rest:,} in {kept}"
    )


def teacher_bytes(work: Workload, held: TeacherHeld | None = None) -> float:
    """A frozen teacher beside the student (distillation): NF4 with double quantisation, the compute type, of a streamed
    one its embeddings and two layers (`engine.distill.streaming`), or 0 where it is the student's own base or on disk.
    `held`: in another form than the job's."""
    teacher, held = work.teacher, held or work.teacher_held
    if teacher is None or held in (TeacherHeld.CACHED, TeacherHeld.SHARED):
        return 0.0
    if held is TeacherHeld.PACKED:
        return packed_model_bytes(teacher, Packing4Bit.NF4_DOUBLE, float(work.compute_bytes))
    if held is TeacherHeld.OFFLOADED:
        block = (teacher.parameters - teacher.embedding_parameters) / max(teacher.layers, 1)
        return work.compute_bytes * (min(2, teacher.layers) * block + teacher.embedding_parameters)
    return float(work.compute_bytes * teacher.parameters)


def teacher_formula(work: Workload) -> str:
    """The same in words."""
    if work.teacher is None or work.teacher_held is TeacherHeld.SHARED:
        return "none of its own: the base, with the adapter switched off"
    return f"{work.teacher.parameters:,} parameters, {work.teacher_held.value}"


def trainable_parameters(work: Workload) -> int:
    """A for adapters (with DoRA's magnitudes, embeddings and norms where they learn), N for full training, N·new/L
    (blocks only) when old blocks are frozen."""
    architecture = work.architecture
    if work.method is Method.ADAPTER:
        return adapter_count(work) + copied_parameters(work)
    if work.method is Method.FULL:
        return architecture.parameters
    blocks = architecture.parameters - architecture.embedding_parameters
    return blocks * min(work.trained_layers, architecture.layers) // max(architecture.layers, 1)


def adapter_count(work: Workload) -> int:
    """A: the adapter's own parameters."""
    count = adapter_parameters(work.architecture, work.targets, work.rank)
    if work.dora:
        count += magnitude_parameters(work.architecture, work.targets)
    return count


def copied_parameters(work: Workload) -> int:
    """Embeddings and norms that learn whole beside an adapter: peft trains copies of them (`modules_to_save`)."""
    if work.method is not Method.ADAPTER:
        return 0
    embeddings = work.architecture.embedding_parameters if work.train_embeddings else 0
    return embeddings + (norm_parameters(work.architecture) if work.train_norms else 0)


def copy_width(work: Workload) -> float:
    """Bytes per value of such a copy: this program's worker holds them in fp32, as it does adapters."""
    return 4.0 if work.stack.fp32_copies else rest_width(work)


def _copied_bytes(work: Workload) -> float:
    return copy_width(work) * copied_parameters(work)


def adapter_weight_bytes(work: Workload) -> float:
    """4·A: PEFT keeps adapters in fp32 (`autocast_adapter_dtype`). Copies of embeddings and norms where they learn
    (`modules_to_save`). Source: peft."""
    if work.method is not Method.ADAPTER:
        return 0.0
    return float(work.adapter_bytes * adapter_count(work)) + _copied_bytes(work)


def gradient_bytes(work: Workload) -> float:
    """One copy in the parameter's own type: 4·A for adapters, c·N for full training. Source: torch autograd."""
    if work.optimizer_on_host:
        return largest_gradient_bytes(work)
    if work.method is Method.ADAPTER:
        return float(work.adapter_bytes * adapter_count(work)) + _copied_bytes(work)
    width = 4 if autocast_mixed(work) else work.compute_bytes
    return float(width * trainable_parameters(work))


def largest_gradient_bytes(work: Workload) -> float:
    """The largest single gradient: what is alive when every gradient leaves at once for the host."""
    a = work.architecture
    largest = max(a.vocab_size * a.hidden_size if work.method is Method.FULL else 0, shape_of(a).largest_linear)
    return float(work.compute_bytes * largest)


def optimizer_bytes(work: Workload) -> float:
    """AdamW keeps two copies: 8·A for fp32 adapters, 4·N pure bf16, 12·N mixed (fp32 master and states), 2.03·N 8-bit.

    Source: torch AdamW; bitsandbytes 8-bit blocks of 256; DeepSpeed's 16 bytes per parameter for mixed precision.
    Paged states are in unified memory: they leave the card when it is full, and neither the allocator nor NVML counts
    them to the process (seen on an H200), so they count 0 here.
    """
    if work.optimizer in (OptimizerKind.SGD, OptimizerKind.PAGED_ADAMW_8BIT) or work.optimizer_on_host:
        return 0.0
    count = trainable_parameters(work)
    beside = work.stack.state_bytes_per_parameter * count
    if work.optimizer is OptimizerKind.ADAMW_8BIT:
        return 2 * (1 + 4 / 256) * count + beside
    if work.optimizer is OptimizerKind.ADAMW_MIXED:
        return (8.0 if autocast_mixed(work) else 12.0) * count + beside
    if work.method is not Method.ADAPTER:
        return 2.0 * work.compute_bytes * count + beside
    return 2.0 * (work.adapter_bytes * adapter_count(work) + _copied_bytes(work)) + beside


_TORCH_LOOPS = (OptimizerKind.ADAMW, OptimizerKind.ADAMW_MIXED)


def optimizer_transient_bytes(work: Workload) -> float:
    """One more copy of the trained parameters during the step with torch's `foreach` loop; none when fused.

    Source: traced, 10.00 against 8.00 bytes per parameter in pure bf16.
    """
    return work.stack.foreach_copies * gradient_bytes(work) if work.foreach and work.optimizer in _TORCH_LOOPS else 0.0


def bucket_bytes(work: Workload) -> float:
    """Data parallel: gradients are copied into buckets that are reduced while backward goes on, one more copy of them.
    Source: torch's DistributedDataParallel with `gradient_as_bucket_view=False`, its default."""
    return gradient_bytes(work) if work.replicas > 1 else 0.0


def gathered_block_bytes(work: Workload) -> float:
    """ZeRO-3/FSDP holds two whole blocks beside its share: 2 · c · (largest block). Source: FSDP prefetching."""
    if work.shards == 1:
        return work.stack.buffer_bytes
    architecture = work.architecture
    block = max(
        (architecture.parameters - architecture.embedding_parameters) / max(architecture.layers, 1),
        architecture.embedding_parameters / 2,
    )
    return 2.0 * work.compute_bytes * block + work.stack.buffer_bytes
