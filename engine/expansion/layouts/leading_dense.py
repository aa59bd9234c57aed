"""Mixtures of DeepSeek's shape but with plain attention: dense first layers, an expert that every token passes.

Owns their differences. Must not know what growth does to a tensor. The shared expert is so many experts wide: growing
one grows the other.
"""

from __future__ import annotations

from engine.expansion.axes import Role
from engine.expansion.layout import Layout, Rule
from engine.expansion.layouts.experts import Mixture, each_expert, feed_kinds, router, routing_limits, shared_expert
from engine.expansion.layouts.mixtures import mixture_keys, read_mixture
from engine.expansion.layouts.normed_branches import NormedBlock, every_nth_full, exaone_pattern, normed_branches
from engine.expansion.layouts.pieces import (
    EXPERT,
    HEAD_ALONG,
    HIDDEN_IN,
    LAYER,
    QUERY_OUT,
    AttentionStyle,
    MlpStyle,
    layer_list,
    sizes,
)
from engine.expansion.layouts.pre_norm import Block, pre_norm, rotary_share, uniform_bias
from engine.expansion.layouts.registry import family
from engine.models.config import ConfigReader

WIDTH_KEY = "moe_intermediate_size"
ROUTED = ("n_routed_experts", "num_local_experts")


def _deepseek_mixture(reader: ConfigReader, bias: str, dense: bool, *, renormalised: bool) -> Mixture:
    """Sigmoid router with a correction, and `n_shared_experts` experts in one."""
    shared = reader.integer("n_shared_experts", "num_shared_experts", default=1)
    rules = (
        *router("mlp.gate", bias=bias),
        *each_expert("mlp.experts"),
        *shared_expert("mlp.shared_experts", multiple=shared),
    )
    return read_mixture(
        reader,
        mixture_keys((*ROUTED, "num_experts"), WIDTH_KEY),
        rules,
        dense_width=reader.integer("intermediate_size") if dense else 0,
        renormalised=renormalised,
        unsupported=routing_limits(reader, sigmoid=True, renormalised=renormalised),
    )


def _leading_dense(reader: ConfigReader, default: int) -> bool:
    return reader.integer("first_k_dense_replace", default=default, low=0) > 0


@family(
    "dots1",
    defaults=sizes(
        152064, 4608, 10944, 62, 32, 32, moe_intermediate_size=1408, sliding_window=4096, max_window_layers=62
    ),
    handles=("attention_bias",),
)
def _dots1(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    mixture = _deepseek_mixture(
        reader,
        "mlp.gate.e_score_correction_bias",
        _leading_dense(reader, 0),
        renormalised=reader.flag("norm_topk_prob"),
    )
    first = layers if reader.raw("sliding_window") is None else reader.integer("max_window_layers", low=0)
    derived = tuple("sliding_attention" if i >= first else "full_attention" for i in range(layers))
    return pre_norm(
        reader,
        Block(
            "dots1",
            attention=uniform_bias(reader, qk_norm="head"),
            mlp=MlpStyle() if mixture.dense_width else None,
            mixture=mixture,
            per_layer={"layer_types": layer_list(reader, "layer_types", layers) or derived},
        ),
    )


@family(
    "glm4_moe",
    defaults=sizes(
        151552, 4096, 10944, 46, 96, 8, moe_intermediate_size=1408, n_routed_experts=128, num_experts_per_tok=8
    ),
    handles=(
        "attention_bias",
        "use_qk_norm",
        "num_nextn_predict_layers",
    ),
)
def _glm4_moe(reader: ConfigReader) -> Layout:
    mixture = _deepseek_mixture(
        reader,
        "mlp.gate.e_score_correction_bias",
        _leading_dense(reader, 1),
        renormalised=reader.flag("norm_topk_prob", default=True),
    )
    return pre_norm(
        reader,
        Block(
            "glm4_moe",
            attention=AttentionStyle(
                qkv_bias=reader.flag("attention_bias"), qk_norm="head" if reader.flag("use_qk_norm") else "none"
            ),
            mlp=MlpStyle() if mixture.dense_width else None,
            mixture=mixture,
            epsilon=1e-5,
            partial_rotary=rotary_share(reader, 0.5),
        ),
    )


@family(
    "solar_open",
    defaults=sizes(
        196608,
        4096,
        10240,
        48,
        64,
        8,
        head_dim=128,
        moe_intermediate_size=1280,
        n_routed_experts=128,
        num_experts_per_tok=8,
    ),
    handles=("attention_bias",),
)
def _solar_open(reader: ConfigReader) -> Layout:
    mixture = _deepseek_mixture(
        reader,
        "mlp.gate.e_score_correction_bias",
        dense=False,
        renormalised=reader.flag("norm_topk_prob", default=True),
    )
    block = Block(
        "solar_open",
        attention=AttentionStyle(qkv_bias=reader.flag("attention_bias")),
        mlp=None,
        mixture=mixture,
        epsilon=1e-5,
        partial_rotary=rotary_share(reader),
    )
    return pre_norm(reader, block)


@family(
    "exaone_moe",
    defaults=sizes(
        102400,
        4096,
        16384,
        32,
        32,
        32,
        moe_intermediate_size=1024,
        num_experts=64,
        num_experts_per_tok=8,
        sliding_window=4096,
        sliding_window_pattern=4,
    ),
)
def _exaone_moe(reader: ConfigReader) -> Layout:
    layers, pattern = reader.integer("num_hidden_layers"), exaone_pattern(reader)
    kinds = feed_kinds(reader, layers, reader.integer("first_k_dense_replace", default=1, low=0))
    mixture = _deepseek_mixture(
        reader,
        "mlp.e_score_correction_bias",
        "dense" in kinds,
        renormalised=reader.flag("norm_topk_prob", default=True),
    )
    return pre_norm(
        reader,
        Block(
            "exaone_moe",
            attention=AttentionStyle(qk_norm="head"),
            mlp=MlpStyle() if mixture.dense_width else None,
            mixture=mixture,
            epsilon=1e-5,
            per_layer=every_nth_full(reader, layers, pattern) | {"mlp_layer_types": kinds},
            layer_period=pattern,
        ),
    )


def _routed_by(reader: ConfigReader, gate: str, shared: str, dense: bool, *, closes: bool = True) -> Mixture:
    """Router `gate` with `mlp.expert_bias`, and `num_shared_experts` experts in one called `shared`."""
    count = reader.integer("num_shared_experts")
    rules = (
        *router(gate, bias="mlp.expert_bias"),
        *each_expert("mlp.experts", closes=closes),
        *shared_expert(shared, multiple=count, closes=closes),
    )
    return read_mixture(
        reader,
        mixture_keys(("num_experts", "num_local_experts"), WIDTH_KEY),
        rules,
        dense_width=reader.integer("intermediate_size") if dense else 0,
    )


@family(
    "hy_v3",
    defaults=sizes(
        120832,
        4096,
        13312,
        80,
        64,
        8,
        head_dim=128,
        num_experts=192,
        num_experts_per_tok=8,
        num_shared_experts=1,
        moe_intermediate_size=1536,
    ),
    handles=("attention_bias",),
)
def _hy_v3(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    kinds = feed_kinds(reader, layers, 1)
    mixture = _routed_by(reader, "mlp.router.gate", "mlp.shared_mlp", "dense" in kinds)
    block = Block(
        "hy_v3",
        attention=uniform_bias(reader, qk_norm="head"),
        mlp=MlpStyle() if mixture.dense_width else None,
        mixture=mixture,
        epsilon=1e-5,
        per_layer={"mlp_layer_types": kinds},
    )
    return pre_norm(reader, block)


@family(
    "afmoe",
    defaults=sizes(
        200192,
        2048,
        6144,
        32,
        16,
        head_dim=128,
        num_experts=64,
        num_experts_per_tok=6,
        num_shared_experts=2,
        moe_intermediate_size=1408,
    ),
    handles=("attention_bias",),
)
def _afmoe(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    pattern = reader.integer("global_attn_every_n_layers", default=4)
    dense = reader.integer("num_dense_layers", default=1, low=0)
    mixture = _routed_by(reader, "mlp.router.gate", "mlp.shared_experts", dense > 0, closes=False)
    gate = Rule(f"{LAYER}self_attn.gate_proj.weight", Role.READ, (QUERY_OUT, HIDDEN_IN))
    return normed_branches(
        reader,
        NormedBlock(
            "afmoe",
            "sandwich",
            pre_norms=("input_layernorm", "pre_mlp_layernorm"),
            post_norms=("post_attention_layernorm", "post_mlp_layernorm"),
            attention=uniform_bias(reader, qk_norm="head"),
            mlp=MlpStyle() if dense else None,
            mixture=mixture,
            epsilon=1e-5,
            embedding_times_root=reader.flag("mup_enabled"),
            scaling=("mup_enabled",),
            per_layer=every_nth_full(reader, layers, pattern),
            layer_period=pattern,
            extra=(gate,),
            unsupported={"depth": "its config only says how many leading layers are dense"} if dense else {},
        ),
    )


@family(
    "ernie4_5_moe",
    defaults=sizes(
        103424,
        2560,
        12288,
        28,
        20,
        4,
        tie_word_embeddings=True,
        moe_intermediate_size=1536,
        moe_k=6,
        moe_num_experts=64,
    ),
)
def _ernie4_5_moe(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    first = reader.integer("moe_layer_start_index", default=1, low=0)
    last = reader.integer("moe_layer_end_index", default=-1, low=-1)
    mixed = first > 0 or last not in (-1, layers - 1) or reader.integer("moe_layer_interval", default=1) != 1
    shared = reader.integer("moe_num_shared_experts", default=2, low=0)
    rules = (
        *router("mlp.gate"),
        Rule(f"{LAYER}mlp.moe_statics.e_score_correction_bias", Role.INNER, (HEAD_ALONG, EXPERT)),
        *each_expert("mlp.experts"),
        *(shared_expert("mlp.shared_experts", multiple=shared) if shared else ()),
    )
    mixture = read_mixture(
        reader,
        mixture_keys(("moe_num_experts", "num_experts"), WIDTH_KEY, ("moe_k", "num_experts_per_tok")),
        rules,
        dense_width=reader.integer("intermediate_size") if mixed else 0,
    )
    return pre_norm(
        reader,
        Block(
            "ernie4_5_moe",
            mlp=MlpStyle() if mixed else None,
            mixture=mixture,
            epsilon=1e-5,
            unsupported={
                "depth": "its config names the first and the last mixture layer by number",
                "experts": "its router adds a correction to shares, which would be smaller among more experts",
            },
        ),
    )
