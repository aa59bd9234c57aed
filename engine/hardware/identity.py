"""Which machine a measurement is true for: the device that trains, its driver, and the libraries in use.

Owns that key and when two are the same. Must not know what was measured. Versions come from package metadata.
"""

from __future__ import annotations

import hashlib

import msgspec

from engine.hardware.libraries import installed_version
from engine.hardware.machine import Machine

DECISIVE = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
"""A new version of one of these can change memory and speed: what was measured with another does not count."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The key of everything that is measured on a machine."""

    device: str
    """The card's name, or the processor and the cores this process may use."""
    driver: str = ""
    """The card's; "" on a processor."""
    versions: dict[str, str] = {}
    """Of DECISIVE; "missing" for what is not installed."""

    @property
    def digest(self) -> str:
        """A short name for files, equal for equal keys."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:12]

    @property
    def words(self) -> str:
        """ "NVIDIA H100 80GB HBM3, torch 2.13.0"."""
        return f"{self.device}, torch {self.versions.get('torch', 'missing')}"


def identity_of(machine: Machine, *, device: str = "") -> Identity:
    """The key of `machine`: its card named `device`, else the one with most free memory, else its processor."""
    cards = [gpu for gpu in machine.gpus if gpu.name == device] or list(machine.gpus)
    known = machine.libraries  # reading metadata again takes 10 ms
    versions = {name: (known[name] if name in known else installed_version(name)) or "missing" for name in DECISIVE}
    if not cards:
        return Identity(device=f"{machine.cpu.name}, {machine.cpu.cores} cores", versions=versions)
    best = max(cards, key=lambda gpu: gpu.free_vram_bytes)
    name = f"{best.name} {best.mig}".strip()
    return Identity(device=name, driver=best.driver, versions=versions)
