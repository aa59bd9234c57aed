"""Seconds of one micro-step on one device: the counts of `engine.estimate.flops` over the rates of a card.

Owns how the parts add up. Must not know prices, token counts or whole runs.
GPU: multiplications, bandwidth-bound kernels, transfers and the optimizer follow one another; the host launches ahead
of them, so a step lasts as long as the slower of the two. CPU: everything adds up, since nothing overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.estimate.cards import BANDWIDTH_SHARE, LINK_BYTES_PER_SECOND, DeviceSpeed
from engine.estimate.estimate import Range
from engine.estimate.flops import StepWork, step_work
from engine.estimate.workload import Workload

Case = Literal["low", "likely", "high"]
"""Of the speed: "low" is slow."""

HALF_FULL_TOKENS = 96.0
"""Tokens of a micro-step at which multiplications reach half of their rate: tiles and waves are not full.
Qwen-7B lost a tenth of its rate from 2,048 to 512 tokens."""
COMPILED_TRAFFIC = Range(0.65, 0.45, 0.35)
"""torch.compile fuses elementwise kernels: what is left of their traffic. torchtune's 3B gained 27 %."""
COMPILED_LAUNCHES = 0.4
ELEMENTWISE = Range(1.5, 1.0, 0.8)
"""Kernels read and write more than counted (copies, casts) or less (fused)."""
OFFLOAD_EXPOSED = Range(1.0, 0.5, 0.0)
"""Share of the transfers between host and card that computing does not hide; torchtune hid all of them."""
PEER_EXPOSED = Range(1.0, 0.5, 0.1)
"""Share of the exchange between cards that shows although enough is computed to hide it. 7B FSDP: a tenth on two 4090
with 12,288 tokens each, most of it on two 3090; with few tokens the exchange itself is the step."""
NETWORK_BYTES_PER_SECOND = Range(0.1e9, 1.1e9, 20e9)
"""Between machines, per card: 1 and 10 Gb/s Ethernet, 200 Gb/s InfiniBand. Line rates less a tenth; not measured."""
HOST_BYTES_PER_SECOND = Range(8e9, 20e9, 60e9)
"""Memory traffic of an optimizer step on the host."""
CPU_BANDWIDTH_SHARE = 0.8
CPU_CHECKPOINT_OVERHEAD = 1.35


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """One micro-step in parts; their sum is its length."""

    arithmetic: float
    attention: float
    traffic: float
    """Elementwise kernels, unpacking, cache reads."""
    optimizer: float
    transfers: float
    """Between host and card, and between cards."""
    waiting: float
    """The device waits for launches."""

    @property
    def total(self) -> float:
        return self.arithmetic + self.attention + self.traffic + self.optimizer + self.transfers + self.waiting


def step_seconds(
    work: Workload, device: DeviceSpeed, case: Case, *, counts: StepWork | None = None, compiled: bool = False
) -> StepSeconds:
    """One micro-step on one of `work.cards` cards; `counts` saves working them out again."""
    counts = counts or step_work(work)
    return _cpu_step(work, counts, device, case) if device.is_cpu else _gpu_step(work, counts, device, case, compiled)


def _gpu_step(work: Workload, counts: StepWork, device: DeviceSpeed, case: Case, compiled: bool) -> StepSeconds:
    peak, kind = device.flops_per_second, device.kind
    bandwidth = device.bytes_per_second * _at(BANDWIDTH_SHARE, case)
    share = _at(kind.matmul_share, case)
    fp32 = peak * kind.fp32_share * share / kind.matmul_share.likely
    rate = fp32 if work.compute_bytes == 4 else peak * share
    full = counts.tokens / (counts.tokens + HALF_FULL_TOKENS)
    arithmetic = max(counts.matmul_flops / (rate * full), counts.weight_read_bytes / bandwidth)
    arithmetic += counts.fp32_flops / fp32
    attention = counts.attention_flops / (rate * kind.attention_share)
    attention += counts.fp32_attention_flops / (fp32 * min(1.25 * kind.attention_share, 1.0))
    fused = _at(COMPILED_TRAFFIC, case) if compiled else 1.0
    elementwise = counts.elementwise_bytes * _at(ELEMENTWISE, case) * fused
    traffic = (elementwise + counts.unpack_bytes * (0.5 if compiled else 1.0) + counts.cache_bytes) / bandwidth
    if work.optimizer_on_host:
        optimizer = counts.optimizer_bytes / _at(HOST_BYTES_PER_SECOND, case)
    else:
        optimizer = counts.optimizer_bytes / bandwidth
    transfers = counts.link_bytes / _at(LINK_BYTES_PER_SECOND, case) * _at(OFFLOAD_EXPOSED, case)
    busy = arithmetic + attention + traffic + optimizer + transfers
    between = NETWORK_BYTES_PER_SECOND if work.nodes > 1 else kind.peer_bytes_per_second
    exchange = counts.peer_bytes / _at(between, case)
    exposed = max(exchange - busy, exchange * _at(PEER_EXPOSED, case))
    transfers, busy = transfers + exposed, busy + exposed
    launches = counts.kernels * _at(device.kernel_seconds, _opposite(case)) * (COMPILED_LAUNCHES if compiled else 1.0)
    return StepSeconds(arithmetic, attention, traffic, optimizer, transfers, max(launches - busy, 0.0))


def _cpu_step(work: Workload, counts: StepWork, device: DeviceSpeed, case: Case) -> StepSeconds:
    """FLOPs at GFLOP/s per core (elementwise work is in that figure), weights once per pass, overhead per layer."""
    rate = device.flops_per_second * _at(device.kind.matmul_share, case)
    bandwidth = device.bytes_per_second * CPU_BANDWIDTH_SHARE
    flops = counts.matmul_flops + counts.fp32_flops
    layers = work.architecture.layers * (CPU_CHECKPOINT_OVERHEAD if work.checkpointing else 1.0)
    return StepSeconds(
        arithmetic=flops / rate,
        attention=(counts.attention_flops + counts.fp32_attention_flops) / rate,
        traffic=(counts.weight_read_bytes + counts.unpack_bytes + counts.cache_bytes) / bandwidth,
        optimizer=counts.optimizer_bytes / bandwidth,
        transfers=0.0,
        waiting=layers * _at(device.kernel_seconds, _opposite(case)),
    )


def _at(values: Range, case: Case) -> float:
    return values.low if case == "low" else values.high if case == "high" else values.likely


def _opposite(case: Case) -> Case:
    return "high" if case == "low" else "low" if case == "high" else "likely"
