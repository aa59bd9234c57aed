"""Falcon in its three generations: 7B (multi-query), 40B and later (grouped, two norms), RW (ALiBi, sequential).

Owns the rules of that family. Must not know what growth does to a tensor.

    7B    x + attn(norm(x)) + mlp(norm(x))             qkv: q0 .. qn k v
    40B   x + attn(ln_attn(x)) + mlp(ln_mlp(x))        qkv: for every key/value head its queries, k, v
    RW    x + attn(norm1(x)), then x + mlp(norm2(x))   qkv: q k v of every head
"""

from __future__ import annotations

from engine.expansion.layout import Layout, Traits
from engine.expansion.layouts.layernorm_pieces import (
    DERIVED,
    QKV_BY_GROUP,
    SLOPES,
    norm,
    plain_mlp,
    reads,
    sizes,
    writes,
)
from engine.expansion.layouts.pieces import QUERY_IN, bias_names, ends
from engine.expansion.layouts.registry import family, trait_error
from engine.models.config import ConfigReader

LAYER = "transformer.h.{i}."
ONE_KEY = "multi-query attention has one key/value head, and its config no key for another number"


@family("falcon", handles=("parallel_attn", "alibi"))
def _falcon(reader: ConfigReader) -> Layout:
    modern, alibi = reader.flag("new_decoder_architecture"), reader.flag("alibi")
    multi_query = not modern and reader.flag("multi_query", default=True)
    parallel = reader.flag("parallel_attn", default=True)
    if modern and not parallel:
        raise trait_error(reader, "parallel_attn", False)
    bias = reader.flag("bias")
    keys = _keys(modern, multi_query)
    traits = Traits(
        norm="layernorm",
        placement="parallel" if parallel else "pre",
        tied=reader.flag("tie_word_embeddings", default=True),
        biases=bias_names(qkv=bias, output=bias, mlp=bias),
        fused=("qkv",),
        head_dim_key=False,
        key_value_follows=not modern and not multi_query,
        alibi=alibi,
    )
    unsupported = {"kv_heads": ONE_KEY} if multi_query else {}
    if alibi:
        unsupported = {"hidden": DERIVED + SLOPES, "heads": SLOPES, "kv_heads": SLOPES}
    return Layout(
        family="falcon",
        dims=sizes(reader, keys, kv_heads=1 if multi_query else 0),
        traits=traits,
        rules=(
            *ends(embedding="transformer.word_embeddings.weight"),
            *(rule for name in _norm_names(reader, modern, parallel) for rule in norm(f"{LAYER}{name}")),
            *reads(f"{LAYER}self_attention.query_key_value", QKV_BY_GROUP, bias=bias),
            *writes(f"{LAYER}self_attention.dense", QUERY_IN, bias=bias),
            *plain_mlp(f"{LAYER}mlp.", ("dense_h_to_4h", "dense_4h_to_h"), bias=bias),
            *norm("transformer.ln_f", final=True),
        ),
        config_keys=keys,
        epsilon_keys=("layer_norm_epsilon",),
        epsilon=reader.number("layer_norm_epsilon", default=1e-5),
        unsupported=unsupported,
        optional_prefix="transformer.",
        ignored=(f"{LAYER}self_attention.rotary_emb.inv_freq", f"{LAYER}self_attention.maybe_rotary.inv_freq"),
    )


def _keys(modern: bool, multi_query: bool) -> dict[str, tuple[str, ...]]:
    """Where sizes are written. Only the new architecture has key/value heads of its own number; the key is in the
    config of the others too, with the number of query heads."""
    heads = ("num_attention_heads", "n_head")
    keys = {
        "layers": ("num_hidden_layers", "n_layer"),
        "hidden": ("hidden_size", "n_embed"),
        "ffn": ("ffn_hidden_size",),
        "heads": heads if modern else (*heads, "num_kv_heads"),
        "vocab": ("vocab_size",),
    }
    if not multi_query:
        keys["kv_heads"] = ("num_kv_heads", "n_head_kv") if modern else heads
    return keys


def _norm_names(reader: ConfigReader, modern: bool, parallel: bool) -> tuple[str, ...]:
    if not parallel:
        return ("input_layernorm", "post_attention_layernorm")
    two = reader.integer("num_ln_in_parallel_attn", default=2 if modern else 1, high=2) == 2
    return ("ln_attn", "ln_mlp") if two else ("input_layernorm",)
