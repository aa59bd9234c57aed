"""Free space where the runs live and where downloaded models are kept.

Owns the rule for the model cache's place. Must not know how much anybody needs. Sizes are bytes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from engine.hardware.machine import Disk
from engine.paths import runs_dir


def model_cache_dir() -> Path:
    """Where huggingface_hub keeps downloads: HF_HUB_CACHE, else HF_HOME/hub, else the XDG cache."""
    explicit = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "huggingface" / "hub"


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists: that is the file system it would be created on."""
    current = path.absolute()
    while not current.is_dir() and current != current.parent:
        current = current.parent
    return current


def read_disk(purpose: str, path: Path) -> Disk:
    """Free and total space for `path`, which need not exist yet. Raises OSError when the file system refuses."""
    usage = shutil.disk_usage(existing_parent(path))
    return Disk(purpose, str(path), usage.free, usage.total)


def read_disks() -> tuple[Disk, ...]:
    """The disk of the runs first, then that of the models."""
    return (read_disk("runs", runs_dir()), read_disk("models", model_cache_dir()))
