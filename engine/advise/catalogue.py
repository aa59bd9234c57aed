"""Known models as architectures, read once.

Owns that cache. Must not know what they are wanted for.
"""

from __future__ import annotations

from functools import lru_cache

from engine.models.analyze import analyze
from engine.models.architecture import Architecture


@lru_cache(maxsize=256)
def known_architecture(model_id: str) -> Architecture:
    """The shape of an entry of `profiles/models.toml`. Raises EngineError `model.*`."""
    return analyze(model_id)
