"""An adapter's folder, and the base model that it names.

Owns finding the base on this machine. Must not know what is done with either; nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path

from engine.errors import EngineError
from engine.models.config import read_json_object
from engine.models.resolve import resolve_model

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter in peft's form."""
    return (folder / ADAPTER_CONFIG).is_file()


def base_of_adapter(folder: Path) -> Path:
    """The base's folder. Raises EngineError `adapter.no_base` where it is not on this machine."""
    config = read_json_object(folder / ADAPTER_CONFIG, code="adapter.config", what="an adapter's config")
    named = str(config.get("base_model_name_or_path") or "")
    try:
        found = resolve_model(named, revision=str(config.get("revision") or ""), offline=True) if named else None
    except EngineError:
        found = None
    if found is None or found.path is None or not found.has_weights:
        raise EngineError(
            "adapter.no_base",
            f"The base of the adapter {folder} is not here.",
            cause=f"It names '{named}'." if named else "It names none.",
            next_step="Give its folder with --base.",
        )
    return found.path
