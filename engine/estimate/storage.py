"""Host memory beside a GPU, and disk: what a job needs besides the device that trains.

Owns those two estimates and what is written as whole models. Must not know what is free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.estimate.estimate import Estimate, Origin, Part
from engine.estimate.state import adapter_weight_bytes, optimizer_bytes, trainable_parameters
from engine.estimate.surroundings import CACHED_LOGITS, cached_token_bytes
from engine.estimate.walks import layer_walk
from engine.estimate.workload import Method, OptimizerKind, Purpose, TeacherHeld, Workload
from engine.models.architecture import Architecture
from engine.units import GIB

LARGEST_SHARD_BYTES = 5_000_000_000
"""Checkpoints on the hub are cut into files of at most 5 GB."""
CHECKPOINTS_KEPT = 2
LIBRARY_BYTES = (1.5 * GIB, 2.5 * GIB, 4.0 * GIB)
"""Python with CUDA libraries per process. Source: general experience, hence the width."""
GGUF_TYPES = {"Q4_K_M": 0.604, "Q8_0": 1.0625}
"""Bytes per parameter. Q4_K_M: 4.83 bits, from llama.cpp's own table for Llama-2-7B (3.80 GiB of 6.74e9); Q8_0: 34
bytes per 32 (ggml's block)."""


def estimate_host_ram(work: Workload, *, processes: int = 1) -> Estimate:
    """RAM beside the GPU: libraries and one shard while loading, per process, and whatever is offloaded to it.

    Offloaded optimizer: a copy of the parameters, their gradients and the states (torchao's CPU offload). Offloaded
    activations: what the layers keep. Offloaded teacher: N in the compute type. A paged optimizer may spill all
    of its state. Source: safetensors maps one shard at a time; torchao and torch documentation.
    """
    stored = work.architecture.weight_bytes or 2 * work.architecture.parameters
    shard = float(min(stored, LARGEST_SHARD_BYTES))
    libraries = LIBRARY_BYTES[1] * processes
    parts = [
        Part("Python and CUDA libraries", libraries, f"2.5 GiB x {processes} process(es)", "general experience"),
        Part("loading weights", 0.5 * shard * processes, "half of the largest checkpoint file", "safetensors"),
    ]
    parts += [part for part in _offloaded(work) if part.amount > 0]
    likely = sum(part.amount for part in parts)
    beside = likely - parts[0].amount - parts[1].amount
    spill = _state_bytes(work) if work.optimizer is OptimizerKind.PAGED_ADAMW_8BIT else 0.0
    low = LIBRARY_BYTES[0] * processes + beside
    high = (LIBRARY_BYTES[2] + shard) * processes + 1.15 * beside + spill
    return Estimate(low, likely, high, "bytes", Origin.FORMULA, tuple(parts))


def _offloaded(work: Workload) -> tuple[Part, ...]:
    trains = work.purpose is Purpose.TRAIN
    count = trainable_parameters(work) if trains and work.optimizer_on_host else 0
    width = work.adapter_bytes if work.method is Method.ADAPTER else work.compute_bytes
    state = _state_bytes(work) if count else 0.0
    activations = _kept_bytes(work) if trains and work.offload_activations else 0.0
    teacher = 0.0
    if trains and work.teacher is not None and work.teacher_held is TeacherHeld.OFFLOADED:
        teacher = float(work.compute_bytes * work.teacher.parameters)
    return (
        Part("optimizer on the host", state, f"states of {count:,} trained parameters", "torch, bitsandbytes"),
        Part("parameters and gradients", 2.0 * width * count, f"2 x {width} B x {count:,}", "torchao's CPU offload"),
        Part("activations on the host", activations, f"what the layers keep of {work.tokens:,} tokens", "traced"),
        Part("teacher on the host", teacher, f"{work.compute_bytes} B x N of the teacher", "streamed layer by layer"),
    )


def _kept_bytes(work: Workload) -> float:
    """What all layers keep between forward and backward: their input when checkpointing, else everything saved."""
    walk = layer_walk(work, learns=work.method is not Method.ADAPTER)
    one = (
        walk.boundary_bytes * work.tokens
        if work.checkpointing
        else walk.kept.total(float(work.tokens), float(work.sequence))
    )
    return float(work.architecture.layers * one)


def _state_bytes(work: Workload) -> float:
    """The optimizer's states of all cards together, wherever they are."""
    paged = work.optimizer is OptimizerKind.PAGED_ADAMW_8BIT
    if not (paged or work.optimizer_on_host):
        return optimizer_bytes(work)
    kind = OptimizerKind.ADAMW_8BIT if paged else work.optimizer
    return optimizer_bytes(replace(work, optimizer_on_host=False, optimizer=kind))


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """What a job writes and downloads."""

    base: Architecture
    base_on_disk: bool
    """The base is a local folder or the embedded demo: nothing is downloaded."""
    writes_grown_model: bool = False
    """Expansion writes a second, larger model before training."""
    merged: bool = False
    """A merged model is written at the end."""
    gguf: bool = False
    """A GGUF file is written at the end."""
    gguf_type: str = "Q4_K_M"
    """One of `GGUF_TYPES`."""
    checkpoints_kept: int = CHECKPOINTS_KEPT
    teacher_on_disk: bool = True
    """False: a distillation teacher is downloaded beside the base."""
    epoch_tokens: float = 0.0
    """Tokens of one pass over the data that are trained: what a cached teacher's logits are kept for."""


def estimate_disk(work: Workload, plan: DiskPlan) -> Estimate:
    """Downloads, models written before training, kept checkpoints, results; the parts sum to `likely`.

    Base and teacher 2·N, grown model 2·N of the final size, logit cache 6·k + 48 B per trained token, checkpoints
    kept x (trained weights + states), merged 2·N, GGUF 0.6·N. While one checkpoint is written, one more exists.
    """
    architecture = work.architecture
    parts = [
        Part("base model", _download(plan.base, plan.base_on_disk), _here_or(plan.base_on_disk), "checkpoint size"),
        Part("checkpoints", plan.checkpoints_kept * checkpoint_bytes(work), _checkpoint_text(plan), "spec: keep"),
        Part("result", _result_bytes(work), _result_text(work), "what is written at the end"),
    ]
    if work.teacher is not None and work.teacher_held is not TeacherHeld.SHARED:
        amount = _download(work.teacher, plan.teacher_on_disk)
        parts.append(Part("teacher model", amount, _here_or(plan.teacher_on_disk), "checkpoint size"))
        if work.teacher_held is TeacherHeld.CACHED:
            kept = work.teacher_top_k or CACHED_LOGITS
            cache = cached_token_bytes(kept) * plan.epoch_tokens
            text = f"{cached_token_bytes(kept)} B ({kept} logits) x {plan.epoch_tokens:,.0f} trained tokens"
            parts.append(Part("teacher's logits", cache, text, "top logits of every token, kept for all epochs"))
    if plan.writes_grown_model:
        grown = 2.0 * architecture.parameters
        parts.append(Part("grown model", grown, "2 B x final N, whole before training", "one file set, as the base"))
    if plan.merged and work.method is Method.ADAPTER:
        parts.append(Part("merged model", 2.0 * architecture.parameters, "2 B x N", "asked for in the answers"))
    if plan.gguf:
        rate = GGUF_TYPES[plan.gguf_type]
        text = f"{rate:.4g} B x N ({plan.gguf_type})"
        parts.append(Part("GGUF file", rate * architecture.parameters, text, "llama.cpp"))
    likely = sum(part.amount for part in parts)
    return Estimate(likely, likely, likely + _in_passing(work, plan), "bytes", Origin.FORMULA, tuple(parts))


def checkpoint_bytes(work: Workload) -> float:
    """One checkpoint: the trained model or adapter in its own type, and the optimizer's states."""
    return _result_bytes(work) + _state_bytes(work)


def written_bytes(work: Workload, plan: DiskPlan) -> float:
    """Whole models written beside checkpoints: grown, merged, GGUF. They take time as well as room."""
    architecture = work.architecture
    merged = 2.0 * architecture.parameters if plan.merged and work.method is Method.ADAPTER else 0.0
    grown = 2.0 * architecture.parameters if plan.writes_grown_model else 0.0
    return merged + grown + (GGUF_TYPES[plan.gguf_type] * architecture.parameters if plan.gguf else 0.0)


def _in_passing(work: Workload, plan: DiskPlan) -> float:
    """What exists for a while, or is asked for later: a checkpoint being written, a merge, a 16-bit GGUF."""
    later = 2.0 * work.architecture.parameters
    if work.method is not Method.ADAPTER:
        later = GGUF_TYPES[plan.gguf_type] * work.architecture.parameters
    elif plan.merged and not plan.gguf:
        later = 0.0
    return checkpoint_bytes(work) + later


def _result_bytes(work: Workload) -> float:
    if work.method is Method.ADAPTER:
        return adapter_weight_bytes(work)
    return float(work.compute_bytes * work.architecture.parameters)


def _result_text(work: Workload) -> str:
    return "adapter, fp32" if work.method is Method.ADAPTER else f"trained model, {work.compute_bytes} B x N"


def _checkpoint_text(plan: DiskPlan) -> str:
    return f"{plan.checkpoints_kept} x (trained weights + optimizer state)"


def _download(architecture: Architecture, on_disk: bool) -> float:
    return 0.0 if on_disk else float(architecture.weight_bytes or 2 * architecture.parameters)


def _here_or(on_disk: bool) -> str:
    return "already on this disk" if on_disk else "2 B x N"
