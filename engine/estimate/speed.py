"""How long: matrix work per token, a roofline per step, and the hours of a whole run.

Owns the arithmetic of time. Must not know prices, nor where token counts come from.
A step takes the largest of three floors: arithmetic at the achievable share of the peak, memory traffic, launches
(on a CPU the last one adds, since nothing overlaps).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.estimate.cards import DeviceSpeed, Range
from engine.estimate.estimate import Estimate, Origin, Part
from engine.estimate.shapes import shape_of
from engine.estimate.state import gradient_bytes, optimizer_bytes, trainable_parameters, weight_bytes
from engine.estimate.workload import Method, Workload

PACKED_SPEED = Range(0.55, 0.75, 0.95)
"""4-bit weights are unpacked in every pass: QLoRA against LoRA ran at 0.57 to 0.72 on a T4, 0.78 on a 4090, 0.98 on an
A100 (both torchtune, whose 4-bit kernels are compiled)."""
FP32_SPEED = 1 / 8
"""GPUs without bfloat16 (Turing, Volta) compute in fp32, about an eighth of their tensor rate (T4: 8.1 of 65)."""
BANDWIDTH_SHARE = 0.8
CARD_SCALING = 0.85
"""Per further card with ZeRO-3/FSDP on one machine; own estimate between published 56 % (PCIe) and 95 % (NVLink)."""
DOWNLOAD_BYTES_PER_SECOND = (100e6, 30e6, 5e6)
"""Fast, likely, slow connection."""
EVALUATION_SHARE = (0.03, 0.08, 0.25)
"""Measuring before and after, held-out loss and samples, as a share of training time."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What surrounds the training steps."""

    tokens: float
    """All tokens of the run: data x epochs, after packing."""
    tokens_low: float = 0.0
    """0 means as `tokens`."""
    tokens_high: float = 0.0
    download_bytes: float = 0.0
    cards: int = 1
    start_seconds: tuple[float, float, float] = (10.0, 25.0, 90.0)
    """Imports, loading and the first measurements."""


def flops_per_token(work: Workload) -> float:
    """Full 6M (8M with checkpointing), adapters 4M + 6A (6M + 8A); attention 6·L·q·s (8·L·q·s).

    M: matrix parameters a token passes, output head included, look-up table not. Frozen blocks skip weight gradients.
    A teacher adds 2·M of its own.

    Source: counting multiplications; the causal half of attention is skipped by SDPA.
    """
    shape = shape_of(work.architecture)
    matmul = shape.layers * shape.layer_matmul + shape.head
    trained = trainable_parameters(work)
    recompute = 2.0 if work.checkpointing else 0.0
    if work.method is Method.FULL:
        flops = (6.0 + recompute) * matmul
    elif work.method is Method.ADAPTER:
        flops = (4.0 + recompute) * matmul + (6.0 + recompute) * trained
    else:
        flops = (4.0 + recompute) * matmul + 2.0 * trained
    flops += (6.0 + recompute) * shape.layers * shape.query * work.sequence
    if work.teacher is not None:
        teacher = shape_of(work.teacher)
        flops += 2.0 * (teacher.layers * (teacher.layer_matmul + teacher.query * work.sequence) + teacher.head)
    return flops


def bytes_per_micro_step(work: Workload) -> float:
    """Weights once per pass (2, 3 with checkpointing), unpacked copies written and read, optimizer state per step."""
    passes = 3.0 if work.checkpointing else 2.0
    traffic = passes * weight_bytes(work)
    if work.packed:
        traffic += passes * 2 * work.compute_bytes * shape_of(work.architecture).quantizable
    return traffic + (gradient_bytes(work) + 2 * optimizer_bytes(work)) / work.accumulation


def step_bounds(work: Workload, device: DeviceSpeed) -> tuple[float, float, float]:
    """Seconds of one micro-step on one device: fast, likely, slow."""
    fast, likely, slow = (sum(_micro_step(work, device, case)) for case in ("high", "likely", "low"))
    return fast, likely, slow


def estimate_step(work: Workload, device: DeviceSpeed) -> Estimate:
    """Seconds of one micro-step, with the floor that decides it."""
    fast, likely, slow = step_bounds(work, device)
    compute, traffic, launch = _micro_step(work, device, "likely")
    unit = "GFLOP/s per core" if device.is_cpu else "of the 16-bit peak"
    share = f"{device.utilisation.likely:.0f}" if device.is_cpu else f"{device.utilisation.likely:.0%}"
    parts = (
        Part(
            "arithmetic",
            compute,
            f"{flops_per_token(work):.3g} FLOP x {work.tokens:,} tokens at {share} {unit}",
            device.source,
        ),
        Part(
            "memory traffic",
            traffic,
            f"{bytes_per_micro_step(work):.3g} B at {BANDWIDTH_SHARE:.0%} bandwidth",
            device.source,
        ),
        Part("launches", launch, f"{work.architecture.layers} layers", "published short-sequence runs"),
    )
    return Estimate(fast, likely, slow, "seconds", Origin.FORMULA, parts)


def estimate_tokens_per_second(work: Workload, device: DeviceSpeed, *, cards: int = 1) -> Estimate:
    """Tokens per second over all cards."""
    fast, likely, slow = step_bounds(work, device)
    tokens = work.tokens * _scaling(cards)
    return Estimate(tokens / slow, tokens / likely, tokens / fast, "tokens/s", Origin.FORMULA)


def estimate_hours(work: Workload, device: DeviceSpeed, plan: RunPlan) -> Estimate:
    """Hours of the whole run: training + start + download + evaluation; the parts sum to `likely`."""
    fast, likely, slow = step_bounds(work, device)
    per_token = work.tokens * _scaling(plan.cards)
    train = (
        (plan.tokens_low or plan.tokens) * fast / per_token,
        plan.tokens * likely / per_token,
        (plan.tokens_high or plan.tokens) * slow / per_token,
    )
    download = tuple(plan.download_bytes / rate for rate in DOWNLOAD_BYTES_PER_SECOND)
    low, middle, high = (
        (train[i] * (1 + EVALUATION_SHARE[i]) + plan.start_seconds[i] + download[i]) / 3600 for i in range(3)
    )
    over = f" on {plan.cards} cards" if plan.cards > 1 else ""
    rate = per_token / likely
    parts = (
        Part(
            "training",
            train[1] / 3600,
            f"{plan.tokens:,.0f} tokens / {rate:,.0f} tokens per second{over}",
            device.source,
        ),
        Part(
            "evaluation",
            train[1] * EVALUATION_SHARE[1] / 3600,
            f"{EVALUATION_SHARE[1]:.0%} of training",
            "own estimate",
        ),
        Part("start", plan.start_seconds[1] / 3600, "imports, loading", "own estimate"),
        Part("download", download[1] / 3600, f"{plan.download_bytes / 1e9:.1f} GB at 30 MB/s", "own estimate"),
    )
    return Estimate(low, middle, high, "hours", Origin.FORMULA, parts)


def _scaling(cards: int) -> float:
    return 1.0 if cards <= 1 else cards * CARD_SCALING


def _micro_step(
    work: Workload, device: DeviceSpeed, case: Literal["low", "likely", "high"]
) -> tuple[float, float, float]:
    """Seconds as (arithmetic, traffic, launches) at low, likely or high speed; floors that do not decide count 0.

    On a CPU all three add up.
    """
    share: float = getattr(device.utilisation, case)
    if work.packed:
        share *= getattr(PACKED_SPEED, case)
    if work.compute_bytes == 4 and not device.is_cpu:
        share *= FP32_SPEED
    launches = device.launch_seconds_per_layer
    launch_per_layer = {"low": launches.high, "likely": launches.likely, "high": launches.low}[case]
    compute = flops_per_token(work) * work.tokens / (device.flops_per_second * share)
    traffic = bytes_per_micro_step(work) / work.shards / (device.bytes_per_second * BANDWIDTH_SHARE)
    launch = launch_per_layer * work.architecture.layers * (1.35 if work.checkpointing else 1.0)
    if device.is_cpu:
        return compute, traffic, launch
    largest = max(compute, traffic, launch)
    return (
        compute if largest == compute else 0.0,
        traffic if largest == traffic and largest != compute else 0.0,
        launch if largest == launch and largest not in (compute, traffic) else 0.0,
    )
