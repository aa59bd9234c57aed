"""What a GPU probe found, and the rule that hides cards an environment variable has hidden from CUDA or ROCm.

Owns the shape shared by the vendor probes. Must not know any vendor's tool.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.hardware.machine import Gpu, Problem


@dataclass(frozen=True, slots=True)
class GpuFindings:
    """GPUs of one vendor and what is wrong with them. No GPUs and no problems is the normal state of most machines."""

    gpus: tuple[Gpu, ...] = ()
    problems: tuple[Problem, ...] = ()
    driver_cuda: tuple[int, int] | None = None
    """The newest CUDA version the NVIDIA driver supports."""


def only_visible(gpus: tuple[Gpu, ...], variable: str, value: str | None) -> GpuFindings:
    """Keep the GPUs that `variable` (CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES) leaves visible.

    Lists of numbers are understood, up to the first one that names no card, as CUDA reads them; lists of UUIDs are
    left alone. Numbers are taken in the order of the tools (CUDA_DEVICE_ORDER=PCI_BUS_ID).
    """
    if value is None or not gpus:
        return GpuFindings(gpus)
    words = [word.strip() for word in value.split(",") if word.strip()]
    if any(not word.lstrip("-").isdigit() for word in words):
        return GpuFindings(gpus)
    indices = {gpu.index for gpu in gpus}
    kept: list[int] = []
    for word in words:
        if int(word) not in indices:
            break
        kept.append(int(word))
    visible = tuple(gpu for gpu in gpus if gpu.index in kept)
    if len(visible) == len(gpus):
        return GpuFindings(gpus)
    hidden = len(gpus) - len(visible)
    problem = Problem(
        where=gpus[0].vendor,
        what=f"{variable}={value} hides {hidden} of {len(gpus)} GPUs from training.",
        next_step=f"Unset {variable} if you want to use them all.",
    )
    return GpuFindings(visible, (problem,))
