"""The refusal of a spec whose fields contradict each other.

Owns its shape. Must not know any field.
"""

from __future__ import annotations

from engine.errors import EngineError


def conflict(what: str, way_out: str, cause: str = "", *, key: str) -> EngineError:
    """`key` is the field to look at ("stages[2].weights"); the file's reader names its line."""
    return EngineError("spec.conflict", what, cause=cause, next_step=way_out, key=key)
