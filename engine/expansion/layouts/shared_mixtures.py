"""More mixtures: with an expert that every token passes, of a width of its own, or with dense layers among them.

Owns their differences. Must not know what growth does to a tensor.
"""

from __future__ import annotations

from engine.expansion.axes import Role
from engine.expansion.layout import Layout, Rule, Traits
from engine.expansion.layouts.experts import (
    MIXTRAL_NAMES,
    each_expert,
    feed_kinds,
    router,
    routing_limits,
    shared_expert,
)
from engine.expansion.layouts.layernorm_pieces import head_bias, norm
from engine.expansion.layouts.mixtures import mixture_keys, read_mixture
from engine.expansion.layouts.normed_branches import NormedBlock, every_nth_full, normed_branches
from engine.expansion.layouts.pieces import (
    EXPERT,
    LAYER,
    SINKS,
    AttentionStyle,
    MlpStyle,
    attention,
    bias_names,
    ends,
    layer_list,
    read_dims,
    sizes,
)
from engine.expansion.layouts.pre_norm import ROTARY_TABLES, Block, pre_norm, uniform_bias
from engine.expansion.layouts.registry import family
from engine.models.config import ConfigReader

WIDTH_KEY = "moe_intermediate_size"


@family(
    "hunyuan_v1_moe",
    defaults=sizes(290943, 4096, 11008, 32, 32, num_experts=1, moe_topk=1),
    handles=("attention_bias",),
)
def _hunyuan_v1_moe(reader: ConfigReader) -> Layout:
    bias = reader.flag("attention_bias")
    rules = (
        *router("mlp.gate.wg"),
        *each_expert("mlp.experts"),
        *shared_expert("mlp.shared_mlp", multiple=1),
    )
    keys = mixture_keys(("num_experts", "num_local_experts"), per_token=("moe_topk", "num_experts_per_tok"))
    style = AttentionStyle(
        qkv_bias=bias, output_bias=bias, qk_norm="head", norm_names=("query_layernorm", "key_layernorm")
    )
    mixture = read_mixture(reader, keys, rules)
    return pre_norm(reader, Block("hunyuan_v1_moe", attention=style, mlp=None, mixture=mixture, epsilon=1e-5))


@family(
    "mellum",
    defaults=sizes(
        98304, 2304, 7168, 28, 32, 4, head_dim=128, num_experts=64, num_experts_per_tok=8, moe_intermediate_size=896
    ),
    handles=("attention_bias",),
)
def _mellum(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    kinds = feed_kinds(reader, layers, 0)
    mixture = read_mixture(
        reader,
        mixture_keys(width=WIDTH_KEY),
        (*router("mlp.gate"), *each_expert("mlp.experts")),
        dense_width=reader.integer("intermediate_size") if "dense" in kinds else 0,
        renormalised=reader.flag("norm_topk_prob", default=True),
    )
    attends = layer_list(reader, "layer_types", layers) or ("full_attention",) * layers
    return pre_norm(
        reader,
        Block(
            "mellum",
            attention=uniform_bias(reader, qk_norm="head"),
            mlp=MlpStyle() if mixture.dense_width else None,
            mixture=mixture,
            per_layer={"layer_types": attends, "mlp_layer_types": kinds},
        ),
    )


@family(
    "flint",
    defaults=sizes(
        150144,
        2048,
        6144,
        49,
        32,
        4,
        head_dim=128,
        num_experts=256,
        num_experts_per_tok=6,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=1024,
        mlp_only_layers=[0, 1],
    ),
    handles=("attention_bias",),
)
def _flint(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    renormalised = reader.flag("norm_topk_prob", default=True)
    dense = reader.integer("decoder_sparse_step", default=1, low=0) != 1 or bool(reader.items("mlp_only_layers"))
    mixture = read_mixture(
        reader,
        mixture_keys(("num_experts", "num_local_experts"), WIDTH_KEY, shared="shared_expert_intermediate_size"),
        (*router("mlp.gate"), *each_expert("mlp.experts"), *shared_expert("mlp.shared_expert")),
        dense_width=reader.integer("intermediate_size") if dense else 0,
        renormalised=renormalised,
        unsupported=routing_limits(reader, sigmoid=True, renormalised=renormalised),
    )
    full = tuple(i < 2 or i % 4 == 1 or i == layers - 1 for i in range(layers))
    derived = tuple("full_attention" if whole else "sliding_attention" for whole in full)
    return pre_norm(
        reader,
        Block(
            "flint",
            attention=uniform_bias(reader, qk_norm="head"),
            mlp=MlpStyle() if dense else None,
            mixture=mixture,
            per_layer={"layer_types": layer_list(reader, "layer_types", layers) or derived},
            layer_period=4,
            extra=(Rule(f"{LAYER}self_attn.softmax_offset", Role.INNER, (SINKS,)),),
        ),
    )


@family(
    "kolibri1",
    defaults=sizes(
        128000,
        2560,
        0,
        50,
        48,
        4,
        head_dim=128,
        num_experts=384,
        num_experts_per_tok=6,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
    ),
)
def _kolibri1(reader: ConfigReader) -> Layout:
    layers, renormalised = reader.integer("num_hidden_layers"), reader.flag("norm_topk_prob")
    bias = Rule(f"{LAYER}moe.router.expert_bias", Role.INNER, (EXPERT,))
    mixture = read_mixture(
        reader,
        mixture_keys(width=WIDTH_KEY, shared="shared_expert_intermediate_size"),
        (
            *router("mlp.gate"),
            bias,
            *each_expert("mlp.experts", closes=False),
            *shared_expert("mlp.shared_experts", closes=False),
        ),
        renormalised=renormalised,
        unsupported=routing_limits(reader, sigmoid=True, renormalised=renormalised),
    )
    return normed_branches(
        reader,
        NormedBlock(
            "kolibri1",
            "sandwich",
            pre_norms=("input_layernorm", "post_attention_layernorm"),
            post_norms=("post_attn_norm", "post_ffn_norm"),
            attention=AttentionStyle(qk_norm="head"),
            mlp=None,
            mixture=mixture,
            per_layer=every_nth_full(reader, layers, 5),
            layer_period=5,
        ),
    )


@family(
    "phimoe",
    defaults=sizes(32064, 4096, 6400, 32, 32, 8, num_local_experts=16, num_experts_per_tok=2),
    handles=("attention_bias", "lm_head_bias"),
)
def _phimoe(reader: ConfigReader) -> Layout:
    """Phi-3.5-MoE: LayerNorm with biases, and a router that takes the best and the second best in turn."""
    moe, tied, head = "block_sparse_moe", reader.flag("tie_word_embeddings"), reader.flag("lm_head_bias")
    style = uniform_bias(reader)
    mixture = read_mixture(
        reader,
        mixture_keys(),
        (*router(f"{moe}.gate"), *each_expert(f"{moe}.experts", MIXTRAL_NAMES)),
        renormalised=False,
        unsupported={"experts": "its router compares the best expert with the second best, not with all"},
    )
    traits = Traits(
        norm="layernorm",
        placement="pre",
        tied=tied,
        biases=bias_names(qkv=style.qkv_bias, output=style.output_bias, head=head),
        **mixture.traits,
    )
    rules = (
        *ends(),
        *(rule for name in BLOCK_NORMS for rule in norm(f"{LAYER}{name}")),
        *attention(style),
        *mixture.rules,
        *norm("model.norm", final=True),
        *((head_bias(),) if head else ()),
    )
    return Layout(
        family="phimoe",
        dims=read_dims(reader, mixture.sizes),
        traits=traits,
        rules=rules,
        config_keys=mixture.keys,
        epsilon=reader.number("rms_norm_eps", default=1e-5),
        unsupported=mixture.unsupported,
        ignored=ROTARY_TABLES,
        optional_prefix="model.",
    )


BLOCK_NORMS = ("input_layernorm", "post_attention_layernorm")
