"""A config's rotary scaling as llama.cpp reads it: keys, and where a graph takes them tensors of divisors.

Owns what llama.cpp's loader and graphs do with each key, read in its sources (2026-10, llama-cpp-python 0.3.36), and
the refusal of what would be lost. Must not know files or weights.

llama.cpp turns pair i by θ_i / λ_i where a tensor holds λ, and multiplies cos and sin by `rope.scaling.attn_factor`.
The graph of llama reads `rope_freqs`, or two sets of factors, that of phi3 two sets only, those of qwen and gemma none.
For type "yarn" the loader computes the ramp itself, with 32 and 1 rotations whatever the file says, and multiplies cos
and sin by (0.1 ln s + 1) besides. Gemma 3's sliding layers have a base of their own and never a factor; Gemma 2's share
everything with the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from engine.context.planner import read_rotaries
from engine.context.scaling import Rotary
from engine.errors import EngineError

_BETAS = (32.0, 1.0)
_TOLERANCE = 1e-7


class Divisors(StrEnum):
    """The tensors of divisors that a graph reads."""

    NONE = "none"
    ONE_SET = "one set"
    """`rope_freqs`; two sets as well."""
    TWO_SETS = "two sets"
    """`rope_factors_long` and `rope_factors_short`, nothing else."""


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
    local_theta: float = 0.0
    """`rope.freq_base_swa`, the base of sliding layers; 0 writes none."""


def rope_for_gguf(config: Mapping[str, Any], divisors: Divisors, *, by_layer: bool = False) -> GgufRope:
    """The rotary part for the model of `config`; `divisors` says what its graph reads, `by_layer` whether sliding
    layers may have a base of their own.

    Raises EngineError `context.*` for models without rotary positions, `export.rope_by_layer`, `export.rope_dynamic`
    and `export.rope_lost` for a scaling that the file cannot carry.
    """
    rotaries = {rotary.layer_type: rotary for rotary in read_rotaries(config)}
    if len(rotaries) == 1:
        return _of_one(next(iter(rotaries.values())), config, divisors)
    local, rotary = rotaries.get("sliding_attention"), rotaries.get("full_attention")
    if not by_layer or local is None or rotary is None or len(rotaries) > 2:
        raise EngineError(
            "export.rope_by_layer",
            f"llama.cpp's graph of {config.get('model_type')} has one rotary embedding; this model has one per layer "
            f"type ({', '.join(rotaries)}).",
            next_step="Run this model with transformers or vLLM.",
        )
    if local.present is not None or local.dim != rotary.dim:
        raise EngineError(
            "export.rope_by_layer",
            "The sliding layers' rotary embedding is scaled, and llama.cpp's sliding layers never are.",
            next_step="Run this model with transformers or vLLM.",
        )
    found = _of_one(rotary, config, divisors)
    if found.attn_factor != 1:
        raise EngineError(
            "export.rope_lost",
            f"The full layers' factor on cos and sin ({rotary.present.attention_factor if rotary.present else 1:.4g}) "
            "would reach the sliding layers too.",
            cause="llama.cpp has one rope.scaling.attn_factor for all layers.",
            next_step="Extend the model without an attention factor of its own.",
        )
    return replace(found, local_theta=local.theta)


def _of_one(rotary: Rotary, config: Mapping[str, Any], divisors: Divisors) -> GgufRope:
    scaling = rotary.present
    if scaling is None:
        return GgufRope(rotary.dim, rotary.theta)
    if rotary.present_kind == "dynamic":
        raise EngineError(
            "export.rope_dynamic",
            "Dynamic NTK cannot be written to a GGUF file: llama.cpp's frequencies do not follow the length.",
            next_step="Extend the model with --method ntk or yarn instead.",
        )
    native = _native(rotary)
    if native is not None:
        return native
    if divisors is Divisors.NONE:
        raise EngineError(
            "export.rope_lost",
            f"llama.cpp's graph of {config.get('model_type')} takes no divisors per pair; this "
            f"{rotary.present_kind} scaling would be lost.",
            cause="Only a change of the base, linear, and yarn with 32 and 1 rotations reach that graph.",
            next_step="Extend the model with --method ntk, abf or yarn, then export it.",
        )
    m = scaling.attention_factor
    if scaling.switches or divisors is Divisors.TWO_SETS:
        short = scaling.short_divisors or scaling.divisors
        tensors = (("rope_factors_long", scaling.divisors), ("rope_factors_short", short))
        return GgufRope(rotary.dim, rotary.theta, "longrope", 0.0, rotary.length, m, tensors=tensors)
    return GgufRope(rotary.dim, rotary.theta, attn_factor=m, tensors=(("rope_freqs", scaling.divisors),))


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
