"""Rotary position settings from every form configs have had.

Owns the forms: `rope_theta` beside `rope_scaling` (transformers 4), `rope_parameters` (5), and the latter nested by
layer type. Must not know which model it reads for, beyond the family's defaults.
"""

from __future__ import annotations

from typing import Any

from engine.models.architecture import Rope
from engine.models.config import ConfigReader
from engine.models.families import Family

KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_RENAMED = {"su": "longrope", "mrope": "default", "proportional": "default", "ntk": "default"}
_LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention", "linear_attention")


def read_rope(reader: ConfigReader, family: Family, context_length: int) -> tuple[Rope, tuple[str, ...]]:
    """The rotary settings and what had to be assumed. Raises EngineError for values that cannot be."""
    if reader.flag("alibi"):
        return Rope("none", 0.0, context_length, partial_factor=0.0), ("Positions are ALiBi biases, not rotary.",)
    key = "rope_scaling" if reader.table("rope_scaling") else "rope_parameters"
    settings, local = _split_layers(reader, key)
    inner = ConfigReader(settings, reader.name, prefix=f"{key}.")
    theta = inner.number(
        "rope_theta", default=reader.number("rope_theta", "rotary_emb_base", default=family.rope_theta)
    )
    kind, notes = _kind(inner, family)
    partial = inner.number(
        "partial_rotary_factor",
        default=reader.number("partial_rotary_factor", "rotary_pct", default=family.partial_rotary),
    )
    if partial > 1:
        raise reader.wrong("partial_rotary_factor", partial, "at most 1")
    original, factor, more = _lengths(reader, inner, kind, context_length, family.unscaled_length)
    rope = Rope(kind, theta, original, factor, partial, _local_theta(reader, family, local))
    return rope, (*notes, *more)


def _split_layers(reader: ConfigReader, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the full-attention layers, and those of the sliding ones where they are separate."""
    written = reader.table(key)
    nested = {kind: value for kind, value in written.items() if kind in _LAYER_TYPES}
    if not nested:
        return written, {}
    for kind, value in nested.items():
        if value is not None and not isinstance(value, dict):
            raise reader.wrong(f"{key}.{kind}", value, "an object")
    sliding = nested.get("sliding_attention") or {}
    full = nested.get("full_attention") or sliding or next((value for value in nested.values() if value), {})
    return full, sliding


def _kind(inner: ConfigReader, family: Family) -> tuple[str, tuple[str, ...]]:
    kind = inner.text("rope_type", "type", default="default")
    if family.name == "phi3" and kind == "yarn":
        kind = "longrope"
    renamed = _RENAMED.get(kind, kind)
    if renamed not in KINDS:
        return renamed, (f"The rotary type '{kind[:40]}' is unknown; nothing is assumed about its scaling.",)
    return renamed, ()


def _lengths(
    reader: ConfigReader, inner: ConfigReader, kind: str, context_length: int, unscaled_length: int
) -> tuple[int, float, tuple[str, ...]]:
    """Context length before scaling, and the factor."""
    if kind not in KINDS or kind == "default":
        return context_length, 1.0, ()
    key = "original_max_position_embeddings"
    written = inner.has(key) or reader.raw(key) is not None
    source = reader if reader.raw(key) is not None else inner
    original = source.integer(key) if written else context_length
    if kind == "longrope":
        return original, inner.number("factor", default=max(context_length / original, 1.0)), ()
    factor = inner.number("factor")
    if written:
        return original, factor, ()
    if kind == "linear" and factor >= 1 and unscaled_length:
        return min(unscaled_length, context_length), factor, ()
    if kind == "linear" and factor >= 1:
        note = f"The length before linear scaling by {factor:g} is not written; taken as the context divided by it."
        return max(int(context_length / factor), 1), factor, (note,)
    if kind in ("yarn", "llama3"):
        note = f"The config scales rotary positions ({kind}) without '{key}'; loaders take the full {context_length:,}."
        return original, factor, (note,)
    return original, factor, ()


def _local_theta(reader: ConfigReader, family: Family, local: dict[str, Any]) -> float | None:
    if local:
        inner = ConfigReader(local, reader.name, prefix="rope_parameters.sliding_attention.")
        return inner.number("rope_theta", default=family.local_rope_theta or family.rope_theta)
    if family.local_rope_theta is None:
        return None
    return reader.number("rope_local_base_freq", default=family.local_rope_theta)
