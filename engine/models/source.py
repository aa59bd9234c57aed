"""Where a model comes from, resolved: the demo, a folder, a hub repository, or a known shape without files.

Owns only this vocabulary. Must not know how any of them is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class ModelKind(StrEnum):
    """The kinds of source."""

    DEMO = "demo"
    FOLDER = "folder"
    HUB = "hub"
    PROFILE = "profile"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model that was found, checked as far as its files allow without reading weights."""

    kind: ModelKind
    name: str
    """How the user called it."""
    path: Path | None
    """The local folder with config.json; None for a profile that is not in the cache."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The parsed config.json, or the profile's copy of it."""
    repo_id: str = ""
    """The hub repository; "" for the demo and local folders."""
    revision: str = ""
    """Branch, tag or commit asked for; "" is the default branch."""
    commit: str = ""
    """The commit the files are of; "" when unknown."""
    has_weights: bool = False
    """Whether all safetensors files are in `path`."""
    published_parameters: int = 0
    """Parameters as the hub's listing states them; 0 when it does not."""
    notes: tuple[str, ...] = ()

    @property
    def config_name(self) -> str:
        """How messages call the config."""
        if self.kind is ModelKind.PROFILE:
            return f"profiles/models.toml, {self.name}"
        return f"{self.repo_id}/config.json" if self.repo_id or self.path is None else str(self.path / "config.json")

    @property
    def needs_download(self) -> bool:
        """Whether the weights must be fetched before a run can start."""
        return bool(self.repo_id) and not self.has_weights
