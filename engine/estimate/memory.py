"""Peak memory of a job in closed form: phases, their maximum, and the breakdown users read.

Owns how components add up: a step passes through phases (loss, layers, optimizer step) that do not overlap, so the
peak is the largest phase, and a component that is not alive in it counts 0. Then the process: allocator slack and
context. Must not know machines; `engine.advise` compares with what is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.estimate.activations import boundary_bytes, layer_hump_bytes, logit_hump_bytes, stored_layer_bytes
from engine.estimate.estimate import Estimate, Origin, Part
from engine.estimate.shapes import shape_of
from engine.estimate.state import (
    adapter_weight_bytes,
    dequant_buffer_bytes,
    gathered_block_bytes,
    gradient_bytes,
    optimizer_bytes,
    optimizer_transient_bytes,
    teacher_bytes,
    trainable_parameters,
    weight_bytes,
    weight_formula,
)
from engine.estimate.workload import DeviceKind, Method, OptimizerKind, Workload
from engine.units import GIB, MIB

TRACED = "traced on transformers 5.23 / torch 2.13, checked on published T4 runs"

CONTEXT_BYTES = (0.14 * GIB, 0.45 * GIB, 0.90 * GIB)
"""CUDA context: T4 with lazy loading 141 MiB; V100 with all kernels in 2022 1,343 MB; 0.45 GiB until measured."""
LIBRARY_BYTES = (0.40 * GIB, 0.60 * GIB, 1.00 * GIB)
"""Python with torch, transformers, peft, bitsandbytes on a CPU: 387 MiB after import, 0.6 to 0.9 GiB in training."""

_SLACK_PACKED = (0.05, 0.13, 0.25)
"""Reserved over allocated, NF4 on a T4: 1.06 to 1.25, mean 1.13."""
_SLACK_PLAIN = (0.03, 0.06, 0.15)
"""Reserved over allocated, unquantised on a T4: 1.04 to 1.09."""
_SLACK_EXPANDABLE = (0.01, 0.04, 0.15)
"""With `expandable_segments:True`."""
_SLACK_CPU = (0.02, 0.12, 0.45)
"""glibc arenas and oneDNN scratch; wide, because no CPU run has been published."""

PHASE_WORDS = {
    "loss": "logits and loss",
    "layers": "the layer in work during backward",
    "gradients": "all gradients at the end of backward",
    "step": "the optimizer step",
}


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes alive at the largest moment of a step, one device; `phase` is a key of PHASE_WORDS."""

    phase: str
    weights: float
    teacher: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    temporary: float

    @property
    def allocated(self) -> float:
        """What the allocator hands out at the peak."""
        return (
            self.weights
            + self.teacher
            + self.adapter
            + self.gradients
            + self.optimizer
            + self.activations
            + self.logits
            + self.temporary
        )


def peak_of(work: Workload) -> Peak:
    """Peak = state + max over phases.

    loss: kept activations + logit hump; layers: kept activations + layer hump + dequantised matrices;
    gradients: every gradient + the last layer; step: every gradient + the optimizer's transient.
    Source: own derivation from traces; on 30 published T4 rows mean error 0.2 to 0.4 %.
    """
    share = 1.0 / work.shards
    gradients = gradient_bytes(work) * share
    fixed = (work.workspace_bytes if work.device is DeviceKind.GPU else 0) + gathered_block_bytes(work)
    hump = layer_hump_bytes(work)
    if work.checkpointing:
        kept, per_layer = boundary_bytes(work), hump
    else:
        stored = stored_layer_bytes(work)
        kept, per_layer = stored * work.architecture.layers, max(hump - stored, 0.0)
    early = gradients if work.accumulation > 1 else 0.0
    during = gradients if work.method is Method.ADAPTER else min(gradients, _head_gradient_bytes(work) * share)
    phases = (
        ("loss", early, kept, logit_hump_bytes(work), fixed),
        ("layers", max(during, early), kept + per_layer, 0.0, fixed + dequant_buffer_bytes(work)),
        ("gradients", gradients, kept / max(work.architecture.layers, 1) + per_layer, 0.0, fixed),
        ("step", gradients, 0.0, 0.0, fixed + optimizer_transient_bytes(work) * share),
    )
    phase, gradients, activations, logits, temporary = max(phases, key=lambda parts: sum(parts[1:]))
    return Peak(
        phase=phase,
        weights=weight_bytes(work) * share,
        teacher=teacher_bytes(work),
        adapter=adapter_weight_bytes(work) * share,
        gradients=gradients,
        optimizer=optimizer_bytes(work) * share,
        activations=activations,
        logits=logits,
        temporary=temporary,
    )


def allocated_bytes(work: Workload) -> float:
    """What torch reports as peak allocated: state, activations, humps and workspaces, without slack and context."""
    return peak_of(work).allocated


def bounds_of(peak: Peak, work: Workload) -> tuple[float, float, float]:
    """Process memory low, likely, high: allocated · (1 + slack) + context (or libraries on a CPU)."""
    base = CONTEXT_BYTES if work.device is DeviceKind.GPU else LIBRARY_BYTES
    low, likely, high = (
        peak.allocated * (1 + slack) + constant for slack, constant in zip(_slack(work), base, strict=True)
    )
    return low, likely, high


def memory_bounds(work: Workload) -> tuple[float, float, float]:
    """Process memory low, likely, high in bytes, without a breakdown; for searches."""
    return bounds_of(peak_of(work), work)


def estimate_memory(work: Workload) -> Estimate:
    """Process memory on the device that trains, with its breakdown; the parts sum to `likely`."""
    peak = peak_of(work)
    low, likely, high = bounds_of(peak, work)
    parts = (*_state_parts(peak, work), *_token_parts(peak, work), *_process_parts(peak, work))
    return Estimate(low, likely, high, "bytes", Origin.FORMULA, parts)


def limiting_words(work: Workload) -> str:
    """The largest term in words: "logits and loss: 128,256-word vocabulary x 2,048 tokens"."""
    peak = peak_of(work)
    shape = shape_of(work.architecture)
    terms = {
        f"weights: {shape.parameters:,} parameters": peak.weights,
        f"logits and loss: {shape.vocabulary:,}-word vocabulary x {work.tokens:,} tokens": peak.logits,
        f"activations: {shape.layers} layers x {work.tokens:,} tokens": peak.activations,
        f"optimizer: {trainable_parameters(work):,} trained parameters": peak.optimizer + peak.gradients,
    }
    return max(terms, key=lambda words: terms[words])


def _slack(work: Workload) -> tuple[float, float, float]:
    if work.device is DeviceKind.CPU:
        return _SLACK_CPU
    if work.expandable_segments:
        return _SLACK_EXPANDABLE
    return _SLACK_PACKED if work.packed else _SLACK_PLAIN


def _head_gradient_bytes(work: Workload) -> float:
    return float(work.compute_bytes * shape_of(work.architecture).head) if work.method is Method.FULL else 0.0


def _state_parts(peak: Peak, work: Workload) -> tuple[Part, ...]:
    count = trainable_parameters(work)
    over = f" / {work.shards} cards" if work.shards > 1 else ""
    parts = [Part("weights", peak.weights, weight_formula(work) + over, "bitsandbytes, peft, torch")]
    if work.teacher is not None:
        parts.append(Part("teacher", peak.teacher, f"{work.teacher.parameters:,} parameters as NF4", "bitsandbytes"))
    if work.method is Method.ADAPTER:
        text = f"{work.adapter_bytes} B x {count:,} (rank {work.rank})"
        parts.append(Part("adapter", peak.adapter, text + over, "peft: adapters stay in fp32"))
    gradients = f"one copy of {count:,} trained parameters{over}" if peak.gradients else "not alive at the peak"
    parts.append(Part("gradients", peak.gradients, gradients, "torch autograd"))
    kind = {
        OptimizerKind.ADAMW: "AdamW: two copies",
        OptimizerKind.ADAMW_8BIT: "8-bit AdamW: 2.03 B",
        OptimizerKind.ADAMW_MIXED: "mixed precision: master copy and two states in fp32, 12 B",
    }[work.optimizer]
    parts.append(
        Part("optimizer", peak.optimizer, f"{kind} x {count:,} trained parameters{over}", "torch, bitsandbytes")
    )
    return tuple(parts)


def _token_parts(peak: Peak, work: Workload) -> tuple[Part, ...]:
    shape = shape_of(work.architecture)
    tokens = f"{work.batch} x {work.sequence:,} tokens"
    if not peak.activations:
        activations = "not alive at the peak"
    elif work.checkpointing:
        hump = " + the recomputed layer" if peak.logits == 0 else ""
        activations = f"checkpoints of {shape.layers} layers x {tokens}{hump}"
    else:
        activations = f"everything {shape.layers} layers keep x {tokens}"
    per_logit = 16 if work.packed or work.compute_bytes == 4 else 14
    logits = f"{per_logit} B x {shape.vocabulary:,} words x {tokens}" if peak.logits else "not alive at the peak"
    return (
        Part("activations", peak.activations, activations, TRACED),
        Part("logits and loss", peak.logits, logits, TRACED),
        Part("temporary buffers", peak.temporary, "cuBLAS workspaces, unpacked matrices", "torch, bitsandbytes"),
    )


def _process_parts(peak: Peak, work: Workload) -> tuple[Part, ...]:
    low, likely, high = _slack(work)
    slack = Part(
        "allocator slack",
        peak.allocated * likely,
        f"{likely:.0%} of what is allocated ({low:.0%} to {high:.0%})",
        "published T4 runs" if work.device is DeviceKind.GPU else "own estimate, not measured elsewhere",
    )
    if work.device is DeviceKind.CPU:
        text = f"{LIBRARY_BYTES[0] / MIB:,.0f} to {LIBRARY_BYTES[2] / MIB:,.0f} MiB"
        return Part("Python and libraries", LIBRARY_BYTES[1], text, "measured on a 2-core Linux machine"), slack
    text = f"{CONTEXT_BYTES[0] / MIB:,.0f} to {CONTEXT_BYTES[2] / MIB:,.0f} MiB until measured on this card"
    return Part("CUDA context", CONTEXT_BYTES[1], text, "T4 and V100, published"), slack
