"""llama.cpp's graphs of the families that are exported: what each computes, and what it takes for granted.

Owns these facts, read in llama.cpp's sources (2026-10, llama-cpp-python 0.3.36). Must not know files or weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.context.gguf_rope import Divisors
from engine.models.shape import Shape

NO_CAP = 1e5
"""Of Gemma 2's soft caps, which its graph always applies: c·tanh(x/c) is x to float32's last digit for |x| below 50."""
LARGEST_LAYER_COUNT = 512
"""LLAMA_MAX_LAYERS."""
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True)
class Graph:
    """One of llama.cpp's graphs."""

    name: str
    """`general.architecture`."""
    divisors: Divisors
    interleaved: bool = False
    """Rotates neighbouring dimensions, so that rows of query and key are put in that order."""
    whole_heads: bool = True
    """Asserts that all of a head is rotated."""
    activation: str = "silu"
    pattern: int = 0
    """Every so manieth layer is a full one where the file lists none, the others slide; 0: no layer ever slides."""
    own_local_base: bool = False
    """Sliding layers have a rotary base of their own."""
    norm_offset: float = 0.0
    """Hugging Face's norms multiply by 1 + w, llama.cpp's by what is stored."""
    soft_caps: bool = False
    query_norm: bool = False
    """Queries are normalised per head after their projection."""
    tied_only: bool = False
    """Has no output matrix of its own."""
    biases: tuple[str, ...] = ("attn_q", "attn_k", "attn_v")
    """Projections whose bias it reads."""
    fused: bool = False
    """One matrix for query, key and value, one for gate and up."""


_LLAMA = Graph(
    "llama",
    Divisors.ONE_SET,
    interleaved=True,
    biases=("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
)
GRAPHS = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Graph("qwen2", Divisors.NONE),
    "qwen3": Graph("qwen3", Divisors.NONE, query_norm=True),
    "gemma2": Graph(
        "gemma2", Divisors.NONE, whole_heads=False, activation="gelu_pytorch_tanh", pattern=2, norm_offset=1.0,
        soft_caps=True, tied_only=True,
    ),
    "gemma3_text": Graph(
        "gemma3", Divisors.NONE, whole_heads=False, activation="gelu_pytorch_tanh", pattern=6, own_local_base=True,
        norm_offset=1.0, query_norm=True,
    ),
    "phi3": Graph("phi3", Divisors.TWO_SETS, whole_heads=False, biases=(), fused=True),
}  # fmt: skip
"""model_type of the language model -> its graph."""
GRAPHS["gemma3"] = GRAPHS["gemma3_text"]
_LARGE_GEMMA = {"gemma2": 46, "gemma3": 62}
"""At so many layers the loader takes the model for the 27B and divides by the width per head."""


def query_factor(graph: Graph, shape: Shape, config: Mapping[str, Any]) -> float:
    """What queries must be multiplied by so that llama.cpp's scale of the attention's logits is the model's.

    Gemma scales by 1 / sqrt(query_pre_attn_scalar). llama.cpp has no key for it: it takes 1 / sqrt(head dimension), in
    models of the 27B's depth 1 / sqrt(width // heads). Both are linear in the queries, so the quotient goes into their
    weights. 1 for every other family.
    """
    if not graph.norm_offset:
        return 1.0
    theirs = shape.hidden // shape.heads if shape.layers == _LARGE_GEMMA[graph.name] else shape.head_dim
    ours = float(config.get("query_pre_attn_scalar") or 256)
    return math.sqrt(theirs / ours)


def sliding_layers(graph: Graph, shape: Shape, config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers attend within the window; empty where none does, or the graph has no window."""
    if not graph.pattern or not config.get("sliding_window"):
        return ()
    listed = config.get("layer_types")
    if listed:
        found = tuple(kind == SLIDING for kind in listed)
        return found if any(found) else ()
    pattern = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or graph.pattern)
    return tuple((layer + 1) % pattern != 0 for layer in range(shape.layers))


def is_default_pattern(graph: Graph, sliding: tuple[bool, ...]) -> bool:
    """Whether the loader assumes these sliding layers by itself."""
    return sliding == tuple((layer + 1) % graph.pattern != 0 for layer in range(len(sliding)))
