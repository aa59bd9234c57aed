"""Decoders from fairseq: OPT, BioGPT, XGLM; LayerNorm whose epsilon is a constant of the code, plain feed-forward.

Owns the rules of those families. Must not know what growth does to a tensor.
"""

from __future__ import annotations

from typing import Any

from engine.expansion.layout import Layout, Rule, Traits
from engine.expansion.layouts.layernorm_pieces import (
    Keys,
    norm,
    plain_mlp,
    positions,
    separate_attention,
    sizes,
)
from engine.expansion.layouts.pieces import bias_names, ends
from engine.expansion.layouts.registry import family, trait_error
from engine.models.config import ConfigReader


def _traits(reader: ConfigReader, *, bias: bool = True, **more: Any) -> Traits:
    settings: dict[str, Any] = {
        "norm": "layernorm",
        "placement": "pre",
        "tied": reader.flag("tie_word_embeddings", default=True),
        "fixed_epsilon": True,
        "biases": bias_names(qkv=bias, output=bias, mlp=bias),
        "head_dim_key": False,
        "key_value_follows": True,
    }
    return Traits(**(settings | more))


def _block(layer: str, *, bias: bool = True) -> tuple[Rule, ...]:
    return (
        *norm(f"{layer}self_attn_layer_norm"),
        *separate_attention(f"{layer}self_attn.", bias=bias, output="out_proj", output_bias=bias),
        *norm(f"{layer}final_layer_norm"),
        *plain_mlp(layer, ("fc1", "fc2"), bias=bias),
    )


OPT_KEYS: Keys = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size", "word_embed_proj_dim"),
    "ffn": ("ffn_dim",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_attention_heads",),
    "vocab": ("vocab_size",),
}


@family(
    "opt",
    defaults={
        "vocab_size": 50272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "ffn_dim": 3072,
        "num_attention_heads": 12,
        "tie_word_embeddings": True,
    },
)
def _opt(reader: ConfigReader) -> Layout:
    """Post-norm variants (350m), narrower embeddings and missing final norms are refused by their key."""
    for key, wanted in (
        ("do_layer_norm_before", True),
        ("_remove_final_layer_norm", False),
        ("layer_norm_elementwise_affine", True),
    ):
        if reader.flag(key, default=wanted) is not wanted:
            raise trait_error(reader, key, not wanted)
    dims = sizes(reader, OPT_KEYS)
    width = reader.integer("word_embed_proj_dim", default=dims.hidden)
    if width != dims.hidden:
        raise trait_error(reader, "word_embed_proj_dim", width)
    bias = reader.flag("enable_bias", default=True)
    traits = _traits(reader, bias=bias, learned_positions=True)
    prefix = "model.decoder."
    return Layout(
        family="opt",
        dims=dims,
        traits=traits,
        rules=(
            *ends(embedding=f"{prefix}embed_tokens.weight"),
            positions(f"{prefix}embed_positions.weight"),
            *_block(f"{prefix}layers.{{i}}.", bias=bias),
            *norm(f"{prefix}final_layer_norm", final=True),
        ),
        config_keys=OPT_KEYS,
        epsilon_keys=(),
        epsilon=1e-5,
        optional_prefix="model.",
    )


BIOGPT_KEYS: Keys = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "ffn": ("intermediate_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_attention_heads",),
    "vocab": ("vocab_size",),
}


@family(
    "biogpt",
    defaults={
        "vocab_size": 42384,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "tie_word_embeddings": True,
    },
)
def _biogpt(reader: ConfigReader) -> Layout:
    """Tokens are multiplied by sqrt(hidden) before the learned positions are added."""
    traits = _traits(reader, learned_positions=True, embedding_times_root=reader.flag("scale_embedding", default=True))
    return Layout(
        family="biogpt",
        dims=sizes(reader, BIOGPT_KEYS),
        traits=traits,
        rules=(
            *ends(embedding="biogpt.embed_tokens.weight", head="output_projection.weight"),
            positions("biogpt.embed_positions.weight"),
            *_block("biogpt.layers.{i}."),
            *norm("biogpt.layer_norm", final=True),
        ),
        config_keys=BIOGPT_KEYS,
        epsilon_keys=(),
        epsilon=1e-5,
        optional_prefix="biogpt.",
    )


XGLM_KEYS: Keys = {
    "layers": ("num_layers", "num_hidden_layers"),
    "hidden": ("d_model", "hidden_size"),
    "ffn": ("ffn_dim",),
    "heads": ("attention_heads", "num_attention_heads"),
    "kv_heads": ("attention_heads", "num_attention_heads"),
    "vocab": ("vocab_size",),
}


@family(
    "xglm",
    defaults={
        "vocab_size": 256008,
        "d_model": 1024,
        "ffn_dim": 4096,
        "num_layers": 24,
        "attention_heads": 16,
        "tie_word_embeddings": True,
    },
)
def _xglm(reader: ConfigReader) -> Layout:
    """Its positions are sines over all hidden coordinates, computed, not stored: hidden cannot grow, nor can heads."""
    if reader.flag("add_cross_attention"):
        raise trait_error(reader, "add_cross_attention", True)
    traits = _traits(reader, embedding_times_root=reader.flag("scale_embedding", default=True))
    sines = "its positions are sines whose frequencies depend on the hidden size, and no weight can undo that"
    derived = "its head size is always hidden / heads, and hidden cannot grow: " + sines
    return Layout(
        family="xglm",
        dims=sizes(reader, XGLM_KEYS),
        traits=traits,
        rules=(
            *ends(embedding="model.embed_tokens.weight"),
            *_block("model.layers.{i}."),
            *norm("model.layer_norm", final=True),
        ),
        config_keys=XGLM_KEYS,
        epsilon_keys=(),
        epsilon=1e-5,
        unsupported={"hidden": sines, "heads": derived, "kv_heads": derived},
        optional_prefix="model.",
        ignored=("model.embed_positions.weights",),
    )
