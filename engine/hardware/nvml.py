"""NVIDIA cards through NVML: every figure asked for by itself, so that a refused one costs only itself.

Owns the NVML calls and what their errors mean. Must not know nvidia-smi, nor import pynvml (the caller hands it in).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.hardware.findings import GpuFindings
from engine.hardware.machine import Gpu, Problem, Ram, Source

Nvml = Any
"""The pynvml module; it has no types."""
Handle = Any

_DRIVER_ERRORS = {
    "NVMLError_DriverNotLoaded": (
        "The NVIDIA driver is installed but not running.",
        "Reboot; if it stays, reinstall the driver (with Secure Boot its kernel module must be signed).",
    ),
    "NVMLError_LibRmVersionMismatch": (
        "The NVIDIA driver was updated while the old one is still loaded.",
        "Reboot, then the new driver and its library match again.",
    ),
    "NVMLError_NoPermission": (
        "This user may not talk to the NVIDIA driver.",
        "Add the user to the group that owns /dev/nvidia* (often 'video'), or start the container with GPU access.",
    ),
    "NVMLError_GpuIsLost": (
        "An NVIDIA card has stopped answering.",
        "Reboot the machine; check its power supply and PCIe riser if it happens again.",
    ),
}


def read_nvml(nvml: Nvml, host_ram: Callable[[], Ram]) -> GpuFindings | None:
    """Every NVIDIA GPU and MIG slice; None when NVML cannot be used and says nothing about why (try nvidia-smi)."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        problem = explain(error)
        return GpuFindings(problems=(problem,)) if problem else None
    try:
        return _read_devices(nvml, host_ram)
    finally:
        _ask(nvml, "nvmlShutdown")


def explain(error: Exception) -> Problem | None:
    """The problem an NVML error stands for; None for those that only mean "there is nothing here"."""
    texts = _DRIVER_ERRORS.get(type(error).__name__)
    return Problem("nvidia", texts[0], texts[1]) if texts else None


def _read_devices(nvml: Nvml, host_ram: Callable[[], Ram]) -> GpuFindings:
    driver = _text(_ask(nvml, "nvmlSystemGetDriverVersion"))
    gpus: list[Gpu] = []
    problems: list[Problem] = []
    for index in range(_ask(nvml, "nvmlDeviceGetCount") or 0):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            problems.append(explain(error) or Problem("nvidia", f"GPU {index} does not answer: {error}.", "Reboot."))
            continue
        found, wrong = _read_device(nvml, handle, index, driver, host_ram)
        gpus.extend(found)
        problems.extend(wrong)
    return GpuFindings(tuple(gpus), tuple(problems), _driver_cuda(nvml))


def _read_device(
    nvml: Nvml, handle: Handle, index: int, driver: str, host_ram: Callable[[], Ram]
) -> tuple[list[Gpu], list[Problem]]:
    """One card: itself, or its MIG slices when it is split."""
    slices = _mig_handles(nvml, handle)
    if slices is None:
        gpu, problems = _read_gpu(nvml, handle, index, driver, host_ram)
        return [gpu], problems
    parent, _ = _read_gpu(nvml, handle, index, driver, host_ram, mig="enabled")
    if not slices:
        return [parent_without_slices(parent)], [no_slices_problem(index)]
    found: list[Gpu] = []
    for slice_handle in slices:
        name = _text(_ask(nvml, "nvmlDeviceGetName", slice_handle)) or parent.name
        profile = name.partition(" MIG ")[2] or "slice"
        gpu, _ = _read_gpu(nvml, slice_handle, index, driver, host_ram, mig=profile, parent=parent)
        found.append(gpu)
    return found, [slices_problem(index, len(found))] if len(found) > 1 else []


def parent_without_slices(parent: Gpu) -> Gpu:
    """A card in MIG mode that nobody has split yet: CUDA can use none of it."""
    return replace(parent, free_vram_bytes=0, mig="enabled")


def no_slices_problem(index: int) -> Problem:
    """What to do about a card in MIG mode without slices."""
    return Problem(
        "nvidia",
        f"GPU {index} is in MIG mode but has no slices, so nothing can run on it.",
        f"Make one (sudo nvidia-smi mig -i {index} -cgi 0 -C) or turn MIG off (sudo nvidia-smi -i {index} -mig 0).",
    )


def slices_problem(index: int, count: int) -> Problem:
    """A process sees one slice at a time, whatever the card has."""
    return Problem(
        "nvidia",
        f"GPU {index} is split into {count} MIG slices; a run can use only one of them.",
        "Choose one with CUDA_VISIBLE_DEVICES=MIG-... (nvidia-smi -L lists them).",
    )


def _read_gpu(
    nvml: Nvml,
    handle: Handle,
    index: int,
    driver: str,
    host_ram: Callable[[], Ram],
    mig: str = "",
    parent: Gpu | None = None,
) -> tuple[Gpu, list[Problem]]:
    total_bytes, free_bytes, unified, problems = _memory(nvml, handle, index, host_ram)
    milliwatts = None if parent else _ask(nvml, "nvmlDeviceGetPowerManagementLimit", handle)
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    display = None if parent else _ask(nvml, "nvmlDeviceGetDisplayActive", handle)
    gpu = Gpu(
        index=index,
        name=_text(_ask(nvml, "nvmlDeviceGetName", handle)) or "NVIDIA GPU",
        vendor="nvidia",
        vram_bytes=total_bytes,
        free_vram_bytes=free_bytes,
        source=Source.NVML,
        compute_capability=(int(capability[0]), int(capability[1])) if capability else _capability_of(parent),
        driver=driver,
        power_limit_watts=milliwatts / 1000 if milliwatts else None,
        display_active=None if display is None else bool(display),
        mig=mig,
        pcie_width=(_ask(nvml, "nvmlDeviceGetCurrPcieLinkWidth", handle) or None) if not parent else parent.pcie_width,
        unified_memory=unified,
    )
    return gpu, problems


def _memory(
    nvml: Nvml, handle: Handle, index: int, host_ram: Callable[[], Ram]
) -> tuple[int, int, bool, list[Problem]]:
    """(total, free, shares the system's memory, problems). GB10 answers "not supported": the host's RAM is its own."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return int(memory.total), int(memory.free), False, []
    except nvml.NVMLError as error:
        if type(error).__name__ == "NVMLError_NotSupported":
            ram = host_ram()
            return ram.total_bytes, ram.available_bytes, True, []
        what = f"The memory of GPU {index} cannot be read: {error}."
        return 0, 0, False, [Problem("nvidia", what, "Check the permissions of this user or container.")]


def _mig_handles(nvml: Nvml, handle: Handle) -> list[Handle] | None:
    """The slices of a card in MIG mode; None for a card that is not."""
    mode = _ask(nvml, "nvmlDeviceGetMigMode", handle)
    if not mode or not mode[0]:
        return None
    found: list[Handle] = []
    for number in range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        slice_handle = _ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
        if slice_handle is not None:
            found.append(slice_handle)
    return found


def _driver_cuda(nvml: Nvml) -> tuple[int, int] | None:
    version = _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2") or _ask(nvml, "nvmlSystemGetCudaDriverVersion")
    return (version // 1000, version % 1000 // 10) if version else None


def _capability_of(parent: Gpu | None) -> tuple[int, int] | None:
    return parent.compute_capability if parent else None


def _ask(nvml: Nvml, function: str, *arguments: Any) -> Any:
    """One NVML call; None when this card, driver or binding does not know it."""
    try:
        return getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, AttributeError, ValueError, TypeError):
        return None


def _text(value: Any) -> str:
    """NVML strings are str or bytes, depending on the binding's age."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if value is not None else ""
