"""The hub's address, cache and offline switch, read from the environment at call time.

Owns the variable names, which are the hub library's own. Must not import that library.
"""

from __future__ import annotations

import os
from pathlib import Path


def offline() -> bool:
    """Whether the environment asks not to use the network."""
    values = (os.environ.get("HF_HUB_OFFLINE", ""), os.environ.get("TRANSFORMERS_OFFLINE", ""))
    return any(value.upper() in ("1", "ON", "YES", "TRUE") for value in values)


def cache_dir() -> Path:
    """The hub cache, by the hub's own rules."""
    explicit = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if explicit:
        return Path(os.path.expanduser(explicit))
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(home)) / "hub"


def endpoint() -> str:
    """The hub's address."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
