"""The PCI bus as Linux lists it, to notice cards whose driver is missing.

Owns the sysfs layout of PCI devices. Must not know what a card can do.
"""

from __future__ import annotations

from pathlib import Path

DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380")
"""VGA controllers, 3D controllers (cards without outputs), other display controllers."""


def has_display_controller(vendor: str, root: Path = Path("/")) -> bool:
    """True when a graphics card of the PCI `vendor` ("0x10de") is on the bus; False where there is no bus to read."""
    for device in (root / "sys/bus/pci/devices").glob("*"):
        if _word(device / "vendor") == vendor and _word(device / "class").startswith(DISPLAY_CLASSES):
            return True
    return False


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
