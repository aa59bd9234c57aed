"""The rotary side of published config.json files in the forms they came in; sizes cut where they are free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LLAMA31 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_SMALL = {"vocab_size": 96, "intermediate_size": 64, "num_hidden_layers": 6}
_THREE_TO_ONE = ["sliding_attention", "sliding_attention", "full_attention"] * 2


def _sized(hidden: int, heads: int, key_values: int, window: int, **more: Any) -> dict[str, Any]:
    return _SMALL | {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values,
        "max_position_embeddings": window,
        **more,
    }


PUBLISHED: Mapping[str, dict[str, Any]] = {
    "llama-3.1": {
        "model_type": "llama",
        **_sized(512, 4, 2, 131072),
        "rope_scaling": _LLAMA31,
        "rope_theta": 500000.0,
    },
    "llama-3.2": {
        "model_type": "llama",
        **_sized(512, 8, 2, 131072),
        "rope_scaling": _LLAMA31 | {"factor": 32.0},
        "rope_theta": 500000.0,
    },
    "qwen2.5-yarn": {
        "model_type": "qwen2",
        **_sized(512, 4, 2, 32768, max_window_layers=6, sliding_window=131072, use_sliding_window=False),
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
        "rope_theta": 1000000.0,
    },
    "qwen3": {
        "model_type": "qwen3",
        **_sized(256, 4, 2, 40960, head_dim=128, max_window_layers=6, sliding_window=None, use_sliding_window=False),
        "rope_scaling": None,
        "rope_theta": 1000000,
    },
    "gemma-3-4b": {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 6,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    },
    "olmo-3": {
        "model_type": "olmo3",
        **_sized(512, 4, 4, 65536, sliding_window=4096, layer_types=_THREE_TO_ONE),
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
        "rope_theta": 500000,
    },
    "smollm3": {
        "model_type": "smollm3",
        **_sized(512, 4, 2, 65536, no_rope_layers=[1, 1, 1, 0, 1, 1], no_rope_layer_interval=4, sliding_window=None),
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "use_sliding_window": False,
    },
    "phi-3-mini-4k": {
        "model_type": "phi3",
        **_sized(384, 4, 4, 4096, original_max_position_embeddings=4096, sliding_window=2047),
        "rope_scaling": None,
        "rope_theta": 10000.0,
    },
    "stablelm-2": {
        "model_type": "stablelm",
        **_sized(256, 4, 4, 4096, partial_rotary_factor=0.25),
        "rope_theta": 10000,
    },
    "pythia": {
        "model_type": "gpt_neox",
        **_SMALL,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
    },
    "phi-2": {
        "model_type": "phi",
        **_sized(320, 4, 4, 2048, partial_rotary_factor=0.4),
        "rope_scaling": None,
        "rope_theta": 10000.0,
    },
    "mistral-v0.1": {
        "model_type": "mistral",
        **_sized(512, 4, 2, 32768, sliding_window=4096),
        "rope_theta": 10000.0,
    },
    "mixtral": {
        "model_type": "mixtral",
        **_sized(512, 4, 2, 32768, sliding_window=None, num_local_experts=2, num_experts_per_tok=1),
        "rope_theta": 1000000.0,
    },
    "gpt-oss": {
        "model_type": "gpt_oss",
        **_sized(256, 4, 2, 131072, head_dim=64, num_local_experts=2, num_experts_per_tok=1, sliding_window=128),
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
    },
}
