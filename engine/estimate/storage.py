"""Host memory beside a GPU, and disk: what a job needs besides the device that trains.

Owns those two estimates. Must not know what is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.estimate.estimate import Estimate, Origin, Part
from engine.estimate.state import optimizer_bytes, trainable_parameters, weight_bytes
from engine.estimate.workload import Method, Workload
from engine.models.architecture import Architecture
from engine.units import GIB

LARGEST_SHARD_BYTES = 5_000_000_000
"""Checkpoints on the hub are cut into files of at most 5 GB."""
CHECKPOINTS_KEPT = 2


def estimate_host_ram(work: Workload, *, processes: int = 1) -> Estimate:
    """RAM beside the GPU: (2 to 4 GiB of Python and CUDA libraries + one shard while loading) per process.

    Source: safetensors maps one shard at a time; library figure from general experience, hence the width.
    """
    shard = float(min(2 * work.architecture.parameters, LARGEST_SHARD_BYTES))
    libraries = 2.5 * GIB * processes
    loading = 0.5 * shard * processes
    parts = (
        Part("Python and CUDA libraries", libraries, f"2.5 GiB x {processes} process(es)", "general experience"),
        Part("loading weights", loading, "half of the largest checkpoint file", "safetensors"),
    )
    low, high = 1.5 * GIB * processes, (4.0 * GIB + shard) * processes
    return Estimate(low, libraries + loading, high, "bytes", Origin.FORMULA, parts)


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


def estimate_disk(work: Workload, plan: DiskPlan) -> Estimate:
    """Base 2N, two kept checkpoints (trained weights + optimizer state), result, and a grown model if any."""
    base = 0.0 if plan.base_on_disk else float(plan.base.weight_bytes or 2 * plan.base.parameters)
    adapter = work.method is Method.ADAPTER
    count = trainable_parameters(work)
    weights = 4.0 * count if adapter else weight_bytes(work)
    checkpoints = CHECKPOINTS_KEPT * (weights + optimizer_bytes(work))
    merged = 2.0 * work.architecture.parameters if plan.merged and adapter else 0.0
    grown = 2.0 * work.architecture.parameters if plan.writes_grown_model else 0.0
    parts = [
        Part("base model", base, "already on this disk" if plan.base_on_disk else "2 B x N", "checkpoint size"),
        Part("checkpoints", checkpoints, f"{CHECKPOINTS_KEPT} x (trained weights + optimizer state)", "spec: keep 2"),
        Part("result", weights, "adapter, fp32" if adapter else "trained model", "what is written at the end"),
    ]
    if plan.writes_grown_model:
        parts.append(Part("grown model", grown, "written whole before training", "2 B x final N"))
    if merged:
        parts.append(Part("merged model", merged, "2 B x N", "asked for in the answers"))
    likely = sum(part.amount for part in parts)
    optional = 0.0 if merged else 2.0 * work.architecture.parameters
    high = likely + (weights + optimizer_bytes(work)) + (optional if adapter else 0.6 * work.architecture.parameters)
    return Estimate(likely, likely, high, "bytes", Origin.FORMULA, tuple(parts))
