"""What-if machines: this one with other graphics cards, or a rented one with a price.

Owns the grammar of `--gpu` ("RTX 4090", "2x24G", "4x a100-80"). Must not know what will be planned on it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from engine.errors import EngineError
from engine.hardware.apple import working_set_bytes
from engine.hardware.gpu_profiles import GpuProfile, load_gpu_profiles, matching_profiles, near_names
from engine.hardware.label import machine_label
from engine.hardware.machine import Gpu, Machine, Problem, Ram, Source
from engine.units import GIB, format_bytes, parse_bytes

MOST_GPUS = 64
"""More than eight nodes of eight is no machine that this wizard plans for."""
SMALLEST_VRAM_BYTES = GIB
LARGEST_VRAM_BYTES = 512 * GIB
_NO_GPU = frozenset({"none", "cpu", "no gpu", "nogpu"})
_COUNT = re.compile(r"^\s*(\d+)\s*[x×*]\s*(?=\S)", re.IGNORECASE)
_SIZE = re.compile(r"^\d*\.?\d+\s*[gmt](i?b)?$", re.IGNORECASE)
_EXAMPLES = 'Write a card, a memory size, or several: "RTX 4090", "24G", "2x RTX 3090", "2x24G".'


@dataclass(frozen=True, slots=True)
class PriceRange:
    """What a machine costs to rent, all its GPUs together."""

    low_usd_per_hour: float
    typical_usd_per_hour: float
    high_usd_per_hour: float


def simulate(text: str, base: Machine) -> Machine:
    """`base` with the GPUs that `text` names, marked as simulated.

    Processor, memory, disks and libraries stay those of `base`; its problems do not, they were about other hardware.
    Raises EngineError `gpu.unknown`, `gpu.count`, `gpu.size`.
    """
    if text.strip().lower() in _NO_GPU:
        return _machine(base, (), base.ram, ())
    gpus: list[Gpu] = []
    notes: list[Problem] = []
    ram = base.ram
    for part in re.split(r"\s\+\s", text):
        count, rest = _split_count(part, text)
        card, note = _card(rest, text)
        if card.unified_memory:
            system_bytes = _system_bytes(card, rest)
            ram = Ram(system_bytes, system_bytes, Source.USER)
        first = len(gpus)
        gpus.extend(replace(card, index=first + number) for number in range(count))
        notes.extend(note)
    if len(gpus) > MOST_GPUS:
        raise _count_error(len(gpus))
    return _machine(base, tuple(gpus), ram, tuple(notes))


def rent(machine: Machine, profile: GpuProfile) -> Machine:
    """`machine` at the typical price of `profile` for each of its GPUs. Raises EngineError `gpu.no_price`."""
    typical = profile.rent_typical_usd_per_hour
    if typical is None:
        raise EngineError(
            "gpu.no_price",
            f"No rental price is known for the {profile.name}.",
            next_step="Type the price per hour that your provider asks.",
        )
    return replace(machine, price_usd_per_hour=typical * max(len(machine.gpus), 1))


def price_range(machine: Machine) -> PriceRange | None:
    """Low, typical and high rental price of the machine's cards; None when any card's price is unknown."""
    profiles = {profile.id: profile for profile in load_gpu_profiles()}
    low = typical = high = 0.0
    for gpu in machine.gpus:
        profile = profiles.get(gpu.profile)
        middle = profile.rent_typical_usd_per_hour if profile else None
        if profile is None or middle is None:
            return None
        low += profile.rent_low_usd_per_hour or middle
        typical += middle
        high += profile.rent_high_usd_per_hour or middle
    return PriceRange(low, typical, high) if machine.gpus else None


def gpu_from_profile(profile: GpuProfile, vram_bytes: int | None = None) -> Gpu:
    """An idle card as its profile describes it: all visible memory is free. `vram_bytes` where the machine decides."""
    visible_bytes = vram_bytes or profile.visible_bytes
    return Gpu(
        index=0,
        name=profile.name,
        vendor=profile.vendor,
        vram_bytes=visible_bytes,
        free_vram_bytes=visible_bytes,
        source=Source.PROFILE,
        profile=profile.id,
        compute_capability=profile.compute_capability,
        power_limit_watts=profile.tdp_watts,
        unified_memory=profile.unified_memory,
    )


def _machine(base: Machine, gpus: tuple[Gpu, ...], ram: Ram, notes: tuple[Problem, ...]) -> Machine:
    label = machine_label(gpus, base.cpu)
    return replace(base, gpus=gpus, ram=ram, problems=notes, simulated=True, label=label, price_usd_per_hour=None)


def _split_count(part: str, text: str) -> tuple[int, str]:
    match = _COUNT.match(part)
    if match is None:
        return 1, part.strip()
    digits = match.group(1)
    count = int(digits) if len(digits) < 6 else 10**6
    if not 1 <= count <= MOST_GPUS:
        raise _count_error(count, text)
    return count, part[match.end() :].strip()


def _count_error(count: int, text: str = "") -> EngineError:
    where = f" in '{text.strip()}'" if text else ""
    return EngineError(
        "gpu.count", f"{count} GPUs{where} is not a machine: 1 to {MOST_GPUS} can be planned for.", next_step=_EXAMPLES
    )


def _card(name: str, text: str) -> tuple[Gpu, tuple[Problem, ...]]:
    """One card for a name or a size, with a note when the name left something open."""
    if _SIZE.match(name):
        return _anonymous(parse_bytes(name)), ()
    profiles = matching_profiles(name)
    if not profiles:
        near = ", ".join(near_names(name))
        raise EngineError(
            "gpu.unknown",
            f"'{text.strip()}' names no known graphics card.",
            cause=f"Nearest: {near}.",
            next_step=_EXAMPLES,
        )
    profile = min(profiles, key=lambda candidate: candidate.visible_bytes)
    if profile.unified_memory:
        return _unified(profile, name), ()
    if len(profiles) == 1:
        return gpu_from_profile(profile), ()
    others = " or ".join(f"'{other.name}'" for other in profiles if other is not profile)
    note = Problem("simulation", f"'{name}' is sold with several memory sizes; {profile.name} is assumed.",
                   f"Write {others} for the other.")  # fmt: skip
    return gpu_from_profile(profile), (note,)


def _anonymous(vram_bytes: int) -> Gpu:
    """A card of which only the memory is known: it can be planned for, but its speed cannot be told."""
    if not SMALLEST_VRAM_BYTES <= vram_bytes <= LARGEST_VRAM_BYTES:
        limits = f"{format_bytes(SMALLEST_VRAM_BYTES)} to {format_bytes(LARGEST_VRAM_BYTES)}"
        raise EngineError(
            "gpu.size",
            f"{format_bytes(vram_bytes)} is not the memory of a graphics card.",
            cause=f"{limits} per card can be planned for.",
            next_step=_EXAMPLES,
        )
    name = f"{vram_bytes / GIB:g} GB GPU"
    return Gpu(0, name, "nvidia", vram_bytes, vram_bytes, Source.USER)


def _unified(profile: GpuProfile, name: str) -> Gpu:
    """A GPU that shares the system's memory: how much of it there is must be said, unless all are sold alike."""
    system_bytes = _named_size(name) or profile.vram_bytes
    if not system_bytes:
        raise EngineError(
            "gpu.size",
            f"The {profile.name} is sold with several memory sizes.",
            next_step=f'Say which, for example "{profile.name} 64G".',
        )
    if not SMALLEST_VRAM_BYTES <= system_bytes <= LARGEST_VRAM_BYTES:
        _anonymous(system_bytes)
    if profile.vendor == "apple":
        return gpu_from_profile(profile, working_set_bytes(system_bytes))
    share_bytes = system_bytes * 3 // 4 if profile.vendor == "amd" else system_bytes
    return gpu_from_profile(profile, share_bytes)


def _system_bytes(card: Gpu, name: str) -> int:
    return _named_size(name) or card.vram_bytes


def _named_size(name: str) -> int:
    match = re.search(r"(\d+)\s*g(?:i?b)?\b", name, re.IGNORECASE)
    return int(match.group(1)) * GIB if match else 0
