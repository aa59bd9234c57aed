"""A config's rotary scaling as llama.cpp reads it: keys, and where a graph takes them one tensor of divisors.

Owns what llama.cpp's loader and graphs do with each key, read in its sources (2026-10, llama-cpp-python 0.3.36), and
the refusal of what would be lost. Must not know files or weights.

llama.cpp turns pair i by θ_i / λ_i where a tensor `rope_freqs` holds λ, and multiplies cos and sin by
`rope.scaling.attn_factor`; the graphs of qwen2 and qwen3 pass no tensor. For type "yarn" the loader computes the ramp
itself, with 32 and 1 rotations whatever the file says, and multiplies cos and sin by (0.1 ln s + 1) besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.context.planner import read_rotaries
from engine.context.scaling import Rotary
from engine.errors import EngineError

_BETAS = (32.0, 1.0)
_TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True)
class GgufRope:
    """The rotary part of a GGUF file."""

    dim: int
    theta: float
    kind: str = ""
    """`rope.scaling.type`: "linear", "yarn", "longrope"; "" writes none."""
    factor: float = 0.0
    """`rope.scaling.factor`; 0 writes none."""
    original: int = 0
    """`rope.scaling.original_context_length`; 0 writes none."""
    attn_factor: float = 1.0
    """`rope.scaling.attn_factor`, on cos and sin."""
    tensors: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """Name and divisors of every tensor, one divisor per pair."""


def rope_for_gguf(config: Mapping[str, Any], *, takes_divisors: bool) -> GgufRope:
    """The rotary part for the model of `config`; `takes_divisors` says whether its graph reads a tensor of them.

    Raises EngineError `context.*` for models without rotary positions, `export.rope_by_layer`, `export.rope_dynamic`
    and `export.rope_lost` for a scaling that the file cannot carry.
    """
    rotaries = read_rotaries(config)
    if len(rotaries) > 1:
        raise EngineError(
            "export.rope_by_layer",
            "This model has a rotary embedding per layer type, which is not exported here.",
            next_step="Use llama.cpp's own convert_hf_to_gguf.py.",
        )
    rotary = rotaries[0]
    scaling = rotary.present
    plain = GgufRope(rotary.dim, rotary.theta)
    if scaling is None:
        return plain
    if rotary.present_kind == "dynamic":
        raise EngineError(
            "export.rope_dynamic",
            "Dynamic NTK cannot be written to a GGUF file: llama.cpp's frequencies do not follow the length.",
            next_step="Extend the model with --method ntk or yarn instead.",
        )
    native = _native(rotary)
    if native is not None:
        return native
    if not takes_divisors:
        raise EngineError(
            "export.rope_lost",
            f"llama.cpp's graph of {config.get('model_type')} takes no divisors per pair; this "
            f"{rotary.present_kind} scaling would be lost.",
            cause="Only a change of the base, linear, and yarn with 32 and 1 rotations reach that graph.",
            next_step="Extend the model with --method ntk, abf or yarn, then export it.",
        )
    if scaling.switches:
        tensors = (("rope_factors_long", scaling.divisors), ("rope_factors_short", scaling.short_divisors))
        return GgufRope(
            rotary.dim, rotary.theta, "longrope", 0.0, rotary.length, scaling.attention_factor, tensors=tensors
        )
    return GgufRope(
        rotary.dim,
        rotary.theta,
        attn_factor=scaling.attention_factor,
        tensors=(("rope_freqs", scaling.divisors),),
    )


def _native(rotary: Rotary) -> GgufRope | None:
    """The scaling in llama.cpp's own types, None where they cannot say it."""
    scaling, settings = rotary.present, dict(rotary.present_settings)
    assert scaling is not None
    factor = float(settings["factor"])
    if rotary.present_kind == "linear":
        return GgufRope(rotary.dim, rotary.theta, "linear", factor)
    betas = (float(settings.get("beta_fast", 32.0)), float(settings.get("beta_slow", 1.0)))
    if rotary.present_kind == "yarn" and settings.get("truncate", True) and betas == _BETAS:
        given = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        own = scaling.attention_factor / given
        own = 1.0 if abs(own - 1) < _TOLERANCE else own
        return GgufRope(rotary.dim, rotary.theta, "yarn", factor, rotary.length, own)
    return None
