"""Small models of several families, jittered, saved, grown by the real surgery, and ready to be proven.

Owns which families and growths the proof is tried on. Sizes are the smallest at which heads and groups can be told
apart; windows are shorter than the text.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers

from engine.expansion.checks import Wish, plan_for
from engine.expansion.layouts import layout_for
from engine.surgery.expand import ExpandRequest, expand

transformers.utils.logging.disable_progress_bar()

VOCABULARY = 96
USUAL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 8}
FOUR_LAYERS = {
    "num_hidden_layers": 4,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", USUAL),
    "llama-tied": ("llama", USUAL | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", USUAL | HEADS),
    "gemma3": ("gemma3_text", USUAL | HEADS | FOUR_LAYERS),
    "olmo2": ("olmo2", USUAL),
    "gpt_neox": ("gpt_neox", {key: value for key, value in USUAL.items() if key != "num_key_value_heads"}),
    "phi3": ("phi3", USUAL | {"sliding_window": 8}),
    "mixtral": ("mixtral", USUAL | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        USUAL | HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "gpt2": (
        "gpt2",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 128}
        | {"bos_token_id": 1, "eos_token_id": 2},
    ),
}


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The net with every parameter drawn and jittered, as save_pretrained writes it."""
    model_type, options = NETS[name]
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **options))
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * (0.25 if parameter.dim() > 1 else 0.3))
    model.to(dtype).save_pretrained(folder)
    return folder


def grown(source: Path, out: Path, wish: Wish) -> Path:
    """The larger model and its certificate, without a proof yet."""
    config = json.loads((source / "config.json").read_text())
    plan = plan_for(layout_for(config, source.name), wish, config).plan
    expand(ExpandRequest(source, out, plan, proof=False), lambda _: None)
    return out
