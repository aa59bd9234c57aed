"""The verdict on a job and its reason: memory first, then time, then host RAM and disk.

Owns the rule and its words. Upper bounds are held against what is free now, desktop and other processes counted.
Must not compute an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.advise.devices import Devices, free_words
from engine.estimate.estimate import Estimate, Verdict
from engine.hardware.machine import Disk, Machine
from engine.units import format_bytes, format_hours

TIGHT_HOURS = 90 * 24.0
"""A job that likely takes over 90 days is at best tight, however well it fits in memory."""
NO_HOURS = 365 * 24.0
"""A job that likely takes over a year is no."""
RULE = (
    "fits: the upper bound is free; tight: the low end is (RAM, disk: the likely figure); no: neither. "
    "Over 90 days is tight, over a year no"
)
_WORST_FIRST = (Verdict.NO, Verdict.TIGHT, Verdict.FITS)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with the one sentence that explains it."""

    verdict: Verdict
    reason: str
    memory: Verdict
    """What memory alone says."""


def judge(
    devices: Devices, machine: Machine, memory: Estimate, ram: Estimate, disk: Estimate, hours: Estimate
) -> Judgement:
    """The worst of memory, time, RAM and disk, and the sentence of the first that is so bad."""
    alone = devices.verdict(memory.low, memory.likely, memory.high)
    found = (
        (alone, _memory_words(devices, memory, alone)),
        _time(devices, hours),
        _ram(devices, machine, ram),
        _disk(machine, disk),
    )
    for verdict in _WORST_FIRST:
        for candidate, reason in found:
            if candidate is verdict:
                return Judgement(verdict, reason, alone)
    raise AssertionError("every part has a verdict")


def _memory_words(devices: Devices, memory: Estimate, verdict: Verdict) -> str:
    likely, high = format_bytes(memory.likely), format_bytes(memory.high)
    if verdict is Verdict.NO:
        return f"needs about {likely} (up to {high}); {free_words(devices)}"
    if verdict is Verdict.TIGHT and memory.likely > devices.free_bytes:
        low = format_bytes(memory.low)
        return f"runs in {low} at the least, would take {likely} (up to {high}); {free_words(devices)}"
    if verdict is Verdict.TIGHT:
        return f"likely {likely}, but could need {high}; {free_words(devices)}"
    return f"at most {high}; {free_words(devices)}"


def _time(devices: Devices, hours: Estimate) -> tuple[Verdict, str]:
    if hours.likely <= TIGHT_HOURS:
        return Verdict.FITS, ""
    on = "this CPU" if devices.on_cpu else "these cards" if len(devices.gpus) > 1 else "this card"
    sentence = f"fits in memory, but takes about {format_hours(hours.likely)} on {on}"
    return (Verdict.NO if hours.likely > NO_HOURS else Verdict.TIGHT), sentence


def _ram(devices: Devices, machine: Machine, ram: Estimate) -> tuple[Verdict, str]:
    """RAM beside a GPU; on a CPU it was judged as the memory."""
    if devices.on_cpu:
        return Verdict.FITS, ""
    free = machine.ram.available_bytes
    return _beside(ram, free, machine), f"{_needs(ram, free)} RAM; {format_bytes(free)} of it is available"


def _disk(machine: Machine, disk: Estimate) -> tuple[Verdict, str]:
    tightest = smallest_disk(machine)
    if tightest is None:
        return Verdict.FITS, ""
    free = tightest.free_bytes
    return _beside(disk, free, machine), f"{_needs(disk, free)} disk; {format_bytes(free)} is free at {tightest.path}"


def smallest_disk(machine: Machine) -> Disk | None:
    """The disk with the least room among those a job writes to."""
    return min(machine.disks, key=lambda disk: disk.free_bytes, default=None)


def _needs(estimate: Estimate, free_bytes: float) -> str:
    likely, high = format_bytes(estimate.likely), format_bytes(estimate.high)
    if estimate.likely > free_bytes:
        return f"needs about {likely}"
    return f"likely {likely}, but could need {high}"


def _beside(estimate: Estimate, free_bytes: float, machine: Machine) -> Verdict:
    """RAM and disk of a what-if machine are guessed from this one: there they make a job at most tight."""
    if estimate.likely > free_bytes:
        return Verdict.TIGHT if machine.simulated else Verdict.NO
    return Verdict.TIGHT if estimate.high > free_bytes and not machine.simulated else Verdict.FITS
