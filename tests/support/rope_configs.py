"""Configs of the families' rotary shapes, small or as published, as their config.json has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_type": "default", **more}


def small(model_type: str, theta: float = 1e4, **more: Any) -> dict[str, Any]:
    """A config of a few thousand parameters."""
    return {"model_type": model_type, **SIZES, "rope_parameters": rope(theta), **more}


_LAYERS = ["sliding_attention"] * 5 + ["full_attention"]
GEMMA3 = small(
    "gemma3_text",
    head_dim=32,
    layer_types=_LAYERS,
    sliding_window=64,
    rope_parameters={"full_attention": rope(1e6), "sliding_attention": rope(1e4)},
)
OLMO3 = small(
    "olmo3",
    layer_types=_LAYERS,
    sliding_window=64,
    rope_parameters={"full_attention": rope(5e5), "sliding_attention": rope(5e5)},
)
SHAPES: Mapping[str, dict[str, Any]] = {
    "demo": small("llama", hidden_size=192, num_attention_heads=6, head_dim=32),
    "llama-3": small("llama", 5e5, hidden_size=512, head_dim=128, max_position_embeddings=8192),
    "qwen3": small("qwen3", 1e6, head_dim=128, max_position_embeddings=32768),
    "gemma-3": GEMMA3 | {"head_dim": 256, "max_position_embeddings": 32768},
    "olmo-3": OLMO3,
    "phi-3": small(
        "phi3",
        hidden_size=384,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        partial_rotary_factor=0.75,
        rope_parameters=rope(1e4, partial_rotary_factor=0.75),
    ),
    "stablelm": small(
        "stablelm", hidden_size=256, partial_rotary_factor=0.25, rope_parameters=rope(1e4, partial_rotary_factor=0.25)
    ),
    "gpt-neox": small(
        "gpt_neox",
        hidden_size=256,
        rotary_pct=0.25,
        rotary_emb_base=1e4,
        rope_parameters=rope(1e4, partial_rotary_factor=0.25),
    ),
    "glm4": small("glm4", head_dim=32, partial_rotary_factor=0.5, rope_parameters=rope(1e4, partial_rotary_factor=0.5)),
    "mixtral": small("mixtral", num_local_experts=2, num_experts_per_tok=1),
    "smollm3": small("smollm3", no_rope_layers=[1, 1, 1, 0, 1, 1], no_rope_layer_interval=4),
}
"""By what is particular about each: head_dim written out, by layer type, a rotated share, no head_dim, NoPE layers."""
