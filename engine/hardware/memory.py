"""System memory that this process may use: the machine's, or a container's when its limit is lower.

Owns the arithmetic of limits. Must not know what the memory is for. Sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.hardware import cgroup
from engine.hardware.machine import Ram, Source


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """The tightest memory limit of the control groups, and what is left below it."""

    limit_bytes: int
    free_bytes: int


def group_memory(root: Path = Path("/")) -> GroupMemory | None:
    """The binding limit of this process's groups; None when nothing limits it.

    Page cache that can be dropped (`inactive_file`) counts as free, as the kernel reclaims it before it kills.
    """
    limits: list[GroupMemory] = []
    for group in cgroup.directories(root, "memory"):
        second = (group / "memory.max").exists()
        limit = cgroup.read_number(group / ("memory.max" if second else "memory.limit_in_bytes"))
        if limit is None or limit >= 2**60:  # version 1 writes "no limit" as nearly 2**63
            continue
        used = cgroup.read_number(group / ("memory.current" if second else "memory.usage_in_bytes")) or 0
        statistics = cgroup.read_fields(group / "memory.stat")
        droppable = statistics.get("inactive_file" if second else "total_inactive_file", 0)
        limits.append(GroupMemory(limit, max(limit - max(used - droppable, 0), 0)))
    if not limits:
        return None
    return GroupMemory(min(entry.limit_bytes for entry in limits), min(entry.free_bytes for entry in limits))


def combine(total_bytes: int, available_bytes: int, group: GroupMemory | None) -> Ram:
    """The machine's figures, cut to the container's where that is lower."""
    if group is None or group.limit_bytes >= total_bytes:
        return Ram(total_bytes, available_bytes, Source.SYSTEM)
    return Ram(group.limit_bytes, min(available_bytes, group.free_bytes), Source.CGROUP)


def read_ram(root: Path = Path("/")) -> Ram:
    """Memory of this machine or container, now."""
    import psutil

    memory = psutil.virtual_memory()
    return combine(int(memory.total), int(memory.available), group_memory(root))
