"""NVIDIA cards through nvidia-smi, for machines where NVML itself cannot be loaded (containers, WSL2).

Owns the tool's query, its CSV, and what its complaints mean. Parsing is pure; `read` runs the tool.
"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable
from dataclasses import replace

from engine.hardware.external import ToolOutput, find_tool, run_tool
from engine.hardware.findings import GpuFindings
from engine.hardware.machine import Gpu, Problem, Ram, Source
from engine.hardware.nvml import no_slices_problem, parent_without_slices, slices_problem
from engine.units import MIB

WSL_PATH = "/usr/lib/wsl/lib/nvidia-smi"
FIELDS = (
    "index", "name", "memory.total", "memory.free", "driver_version", "compute_cap", "power.limit", "display_active",
    "mig.mode.current", "pcie.link.width.current",
)  # fmt: skip
OLD_FIELDS = ("index", "name", "memory.total", "memory.free", "driver_version", "power.limit")
"""What drivers before 510 know; an unknown field makes them refuse the whole query."""

_COMPLAINTS = (
    (
        "couldn't communicate with the NVIDIA driver",
        "The NVIDIA driver is installed but not running.",
        "Reboot; if it stays, reinstall the driver (with Secure Boot its kernel module must be signed).",
    ),
    (
        "Driver/library version mismatch",
        "The NVIDIA driver was updated while the old one is still loaded.",
        "Reboot, then the new driver and its library match again.",
    ),
    (
        "GPU access blocked by the operating system",
        "Windows does not let this WSL2 system use the GPU.",
        "Update the NVIDIA driver on Windows, then run 'wsl --shutdown' there and start again.",
    ),
    (
        "Unable to determine the device handle",
        "An NVIDIA card has stopped answering.",
        "Reboot the machine; check its power supply and PCIe riser if it happens again.",
    ),
    (
        "Insufficient Permissions",
        "This user may not talk to the NVIDIA driver.",
        "Add the user to the group that owns /dev/nvidia*, or start the container with GPU access.",
    ),
)

_CUDA_OF_DRIVER = ((580, (13, 0)), (570, (12, 8)), (560, (12, 6)), (550, (12, 4)), (535, (12, 2)), (525, (12, 0)))
_CUDA_OF_OLD_DRIVER = ((520, (11, 8)), (510, (11, 6)), (470, (11, 4)), (450, (11, 0)), (418, (10, 1)))
_SLICE_NAME = re.compile(r"^\s+MIG\s+(\S+)\s+Device\s+(\d+):")
_SLICE_ROW = re.compile(r"^\|\s+(\d+)\s+\d+\s+\d+\s+(\d+)\s+\|\s+(\d+)MiB\s*/\s*(\d+)MiB")
_CARD_LINE = re.compile(r"^GPU\s+(\d+):")


def read(limit_seconds: float, host_ram: Callable[[], Ram]) -> GpuFindings | None:
    """Every card nvidia-smi knows; None when there is no nvidia-smi."""
    tool = find_tool("nvidia-smi", WSL_PATH)
    if tool is None:
        return None
    deadline = time.monotonic() + limit_seconds
    fields: tuple[str, ...] = FIELDS
    output = _query(tool, fields, deadline)
    if "not a valid field to query" in output.text:
        fields = OLD_FIELDS
        output = _query(tool, fields, deadline)
    if output.timed_out:
        return GpuFindings(problems=(slow_problem(limit_seconds),))
    if output.exit_code != 0:
        return GpuFindings(problems=explain(output.text))
    gpus = parse(output.stdout, fields, host_ram)
    findings = GpuFindings(gpus, driver_cuda=driver_cuda(gpus[0].driver) if gpus else None)
    if not any(gpu.mig for gpu in gpus):
        return findings
    names = run_tool([tool, "-L"], deadline - time.monotonic()).stdout
    table = run_tool([tool], deadline - time.monotonic()).stdout
    return with_slices(findings, names, table)


def _query(tool: str, fields: tuple[str, ...], deadline: float) -> ToolOutput:
    query = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    return run_tool(query, deadline - time.monotonic())


def slow_problem(limit_seconds: float) -> Problem:
    """nvidia-smi hung; that is a state of the driver, not of this program."""
    return Problem(
        "nvidia",
        f"nvidia-smi did not answer within {limit_seconds:.0f} s, so NVIDIA cards are unknown.",
        "Run nvidia-smi by hand; when it hangs there too, reboot. Persistence mode (nvidia-smi -pm 1) makes it faster.",
    )


def explain(text: str) -> tuple[Problem, ...]:
    """What a failed nvidia-smi means. "No devices were found" is a normal state and no problem."""
    if not text.strip() or "No devices were found" in text:
        return ()
    for fragment, what, next_step in _COMPLAINTS:
        if fragment.lower() in text.lower():
            return (Problem("nvidia", what, next_step),)
    first_line = text.strip().splitlines()[0][:160]
    return (Problem("nvidia", f"nvidia-smi failed: {first_line}", "Run nvidia-smi by hand and repair the driver."),)


def parse(text: str, fields: tuple[str, ...], host_ram: Callable[[], Ram]) -> tuple[Gpu, ...]:
    """The answer to `--query-gpu=fields --format=csv,noheader,nounits` -> cards; lines of other shape are skipped."""
    gpus: list[Gpu] = []
    for values in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(values) != len(fields):
            continue
        row = {field: _known(value) for field, value in zip(fields, values, strict=True)}
        name = row.get("name")
        if name:
            gpus.append(_parse_row(row, name, len(gpus), host_ram))
    return tuple(gpus)


def _parse_row(row: dict[str, str | None], name: str, position: int, host_ram: Callable[[], Ram]) -> Gpu:
    total_mib, free_mib = _number(row.get("memory.total")), _number(row.get("memory.free"))
    mig = (row.get("mig.mode.current") or "") == "Enabled"
    unified = total_mib is None and not mig
    if total_mib is None:
        ram = host_ram()
        total_bytes, free_bytes = (ram.total_bytes, ram.available_bytes) if unified else (0, 0)
    else:
        total_bytes = round(total_mib * MIB)
        free_bytes = total_bytes if free_mib is None and not mig else round((free_mib or 0) * MIB)
    width = _number(row.get("pcie.link.width.current"))
    display = row.get("display_active")
    return Gpu(
        index=int(_number(row.get("index")) or position),
        name=name,
        vendor="nvidia",
        vram_bytes=total_bytes,
        free_vram_bytes=free_bytes,
        source=Source.NVIDIA_SMI,
        compute_capability=_capability(row.get("compute_cap")),
        driver=row.get("driver_version") or "",
        power_limit_watts=_number(row.get("power.limit")),
        display_active=None if display is None else display == "Enabled",
        mig="enabled" if mig else "",
        pcie_width=int(width) if width else None,
        unified_memory=unified,
    )


def with_slices(findings: GpuFindings, names: str, table: str) -> GpuFindings:
    """Replace each card in MIG mode by its slices: profiles from `nvidia-smi -L`, memory from the plain table."""
    profiles: dict[tuple[int, int], str] = {}
    card = 0
    for line in names.splitlines():
        if match := _CARD_LINE.match(line):
            card = int(match.group(1))
        elif match := _SLICE_NAME.match(line):
            profiles[card, int(match.group(2))] = match.group(1)
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for line in table.splitlines():
        if match := _SLICE_ROW.match(line):
            card_index, device, used_mib, total_mib = map(int, match.groups())
            sizes[card_index, device] = (used_mib, total_mib)
    gpus: list[Gpu] = []
    problems = list(findings.problems)
    for gpu in findings.gpus:
        found = _slices_of(gpu, profiles, sizes) if gpu.mig else [gpu]
        if not found:
            problems.append(no_slices_problem(gpu.index))
            found = [parent_without_slices(gpu)]
        elif gpu.mig and len(found) > 1:
            problems.append(slices_problem(gpu.index, len(found)))
        gpus.extend(found)
    return GpuFindings(tuple(gpus), tuple(problems), findings.driver_cuda)


def _slices_of(
    parent: Gpu, profiles: dict[tuple[int, int], str], sizes: dict[tuple[int, int], tuple[int, int]]
) -> list[Gpu]:
    found: list[Gpu] = []
    for (card, device), profile in sorted(profiles.items()):
        if card != parent.index:
            continue
        used_mib, total_mib = sizes.get((card, device), (0, 0))
        name = f"{parent.name} MIG {profile}"
        free_bytes = (total_mib - used_mib) * MIB
        found.append(
            replace(parent, name=name, mig=profile, vram_bytes=total_mib * MIB, free_vram_bytes=free_bytes,
                    power_limit_watts=None, display_active=None)
        )  # fmt: skip
    return found


def driver_cuda(driver: str) -> tuple[int, int] | None:
    """The newest CUDA a driver version supports, by NVIDIA's release table; None for an unreadable version."""
    major = driver.partition(".")[0]
    if not major.isdigit():
        return None
    for lowest, cuda in (*_CUDA_OF_DRIVER, *_CUDA_OF_OLD_DRIVER):
        if int(major) >= lowest:
            return cuda
    return (9, 0)


def _known(value: str) -> str | None:
    """The tool writes [N/A], [Not Supported], [Insufficient Permissions], [Unknown Error] for what it cannot tell."""
    text = value.strip()
    return None if not text or text.startswith("[") or text in ("N/A", "Unknown") else text


def _number(value: str | None) -> float | None:
    try:
        return float(value) if value else None
    except ValueError:
        return None


def _capability(value: str | None) -> tuple[int, int] | None:
    major, separator, minor = (value or "").partition(".")
    return (int(major), int(minor)) if separator and major.isdigit() and minor.isdigit() else None
