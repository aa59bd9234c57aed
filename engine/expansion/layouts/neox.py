"""GPT-NeoX and what was trained with its code: fused qkv head by head, LayerNorm, a plain feed-forward network.

Owns the rules of GPT-NeoX (Pythia), Persimmon and BLOOM. Must not know what growth does to a tensor.

    parallel:  x + attn(norm1(x)) + mlp(norm2(x))        pre:  x + attn(norm1(x)), then x + mlp(norm2(x))
"""

from __future__ import annotations

from typing import Any

from engine.expansion.axes import Role
from engine.expansion.layout import Layout, Rule, Traits
from engine.expansion.layouts.layernorm_pieces import (
    DERIVED,
    QKV_BY_GROUP,
    SLOPES,
    Keys,
    head_norms,
    norm,
    partial_rotary,
    plain_mlp,
    reads,
    sizes,
    writes,
)
from engine.expansion.layouts.pieces import HIDDEN_ALONG, HIDDEN_IN, LAYER, QUERY_IN, VOCAB, bias_names, ends
from engine.expansion.layouts.registry import family, trait_error
from engine.models.config import ConfigReader

MLP_NAMES = ("dense_h_to_4h", "dense_4h_to_h")

HEADS_KEYS: Keys = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "ffn": ("intermediate_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_attention_heads",),
    "vocab": ("vocab_size",),
}


def _attention(prefix: str, *, bias: bool) -> tuple[Rule, ...]:
    return (
        *reads(f"{prefix}query_key_value", QKV_BY_GROUP, bias=bias),
        *writes(f"{prefix}dense", QUERY_IN, bias=bias),
    )


def _block(layer: str, attention: str, *, bias: bool = True) -> tuple[Rule, ...]:
    return (
        *norm(f"{layer}input_layernorm"),
        *norm(f"{layer}post_attention_layernorm"),
        *_attention(f"{layer}{attention}.", bias=bias),
        *plain_mlp(f"{layer}mlp.", MLP_NAMES, bias=True),
    )


def _traits(reader: ConfigReader, *, parallel: bool = False, bias: bool = True, **more: Any) -> Traits:
    settings: dict[str, Any] = {
        "norm": "layernorm",
        "placement": "parallel" if parallel else "pre",
        "tied": reader.flag("tie_word_embeddings"),
        "biases": bias_names(qkv=bias, output=bias, mlp=True),
        "fused": ("qkv",),
        "head_dim_key": False,
        "key_value_follows": True,
    }
    return Traits(**(settings | more))


@family("gpt_neox", handles=("attention_bias", "use_parallel_residual"))
def _gpt_neox(reader: ConfigReader) -> Layout:
    """Hub files call the head embed_out and store causal masks and rotary tables, which loaders make anew."""
    bias = reader.flag("attention_bias", default=True)
    traits = _traits(
        reader,
        parallel=reader.flag("use_parallel_residual", default=True),
        bias=bias,
        heads_divide_hidden=True,
        partial_rotary=partial_rotary(reader, 0.25),
    )
    layer = "gpt_neox.layers.{i}."
    embedding = "gpt_neox.embed_in.weight"
    return Layout(
        family="gpt_neox",
        dims=sizes(reader, HEADS_KEYS),
        traits=traits,
        rules=(
            *ends(embedding=embedding),
            Rule("embed_out.weight", Role.HEAD, (VOCAB, HIDDEN_IN), alias=True),
            *_block(layer, "attention", bias=bias),
            *norm("gpt_neox.final_layer_norm", final=True),
        ),
        config_keys=HEADS_KEYS,
        epsilon_keys=("layer_norm_eps",),
        epsilon=reader.number("layer_norm_eps", default=1e-5),
        optional_prefix="gpt_neox.",
        ignored=(
            f"{layer}attention.bias",
            f"{layer}attention.masked_bias",
            f"{layer}attention.rotary_emb.inv_freq",
            "gpt_neox.rotary_emb.inv_freq",
        ),
    )


@family(
    "persimmon",
    defaults={
        "vocab_size": 262144,
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "qk_layernorm": True,
    },
    handles=("qk_layernorm",),
)
def _persimmon(reader: ConfigReader) -> Layout:
    normed = reader.flag("qk_layernorm", default=True)
    traits = _traits(
        reader,
        qk_norm="head" if normed else "none",
        qk_norm_shares_epsilon=normed,
        partial_rotary=partial_rotary(reader, 0.5),
    )
    return Layout(
        family="persimmon",
        dims=sizes(reader, HEADS_KEYS),
        traits=traits,
        rules=(
            *ends(),
            *_block(LAYER, "self_attn"),
            *(head_norms(f"{LAYER}self_attn.", bias=True) if normed else ()),
            *norm("model.final_layernorm", final=True),
        ),
        config_keys=HEADS_KEYS,
        epsilon_keys=("layer_norm_eps",),
        epsilon=reader.number("layer_norm_eps", default=1e-5),
        ignored=(f"{LAYER}self_attn.rotary_emb.inv_freq",),
    )


BLOOM_KEYS: Keys = {
    "layers": ("n_layer", "num_hidden_layers"),
    "hidden": ("hidden_size", "n_embed"),
    "heads": ("n_head", "num_attention_heads"),
    "kv_heads": ("n_head", "num_attention_heads"),
    "vocab": ("vocab_size",),
}


@family(
    "bloom",
    defaults={"vocab_size": 250880, "hidden_size": 64, "n_layer": 2, "n_head": 8, "tie_word_embeddings": True},
)
def _bloom(reader: ConfigReader) -> Layout:
    """Depth only: slopes fix the heads, heads fix hidden, and hidden fixes the feed-forward width."""
    if reader.flag("apply_residual_connection_post_layernorm"):
        raise trait_error(reader, "apply_residual_connection_post_layernorm", True)
    traits = _traits(reader, alibi=True)
    layer = "transformer.h.{i}."
    return Layout(
        family="bloom",
        dims=sizes(reader, BLOOM_KEYS),
        traits=traits,
        rules=(
            *ends(embedding="transformer.word_embeddings.weight"),
            Rule("transformer.word_embeddings_layernorm.weight", Role.INNER, (HIDDEN_ALONG,)),
            Rule("transformer.word_embeddings_layernorm.bias", Role.INNER, (HIDDEN_ALONG,)),
            *_block(layer, "self_attention"),
            *norm("transformer.ln_f", final=True),
        ),
        config_keys=BLOOM_KEYS,
        epsilon_keys=("layer_norm_epsilon",),
        epsilon=reader.number("layer_norm_epsilon", default=1e-5),
        unsupported={
            "hidden": DERIVED + SLOPES,
            "ffn": "its feed-forward width is always 4 x hidden",
            "heads": SLOPES,
            "kv_heads": SLOPES,
        },
        optional_prefix="transformer.",
    )
