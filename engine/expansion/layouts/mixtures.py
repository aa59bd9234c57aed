"""The RMSNorm mixtures of experts.

Owns their differences from the dense families. Must not know what growth does to a tensor. Names are those on disk:
loaders stack experts in memory, files have an entry each (GPT-OSS and Granite stack them on disk too).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.expansion.axes import Dim, Fused, Role
from engine.expansion.layout import Layout, Rule
from engine.expansion.layouts.experts import (
    EXPERT_IN,
    MIXTRAL_NAMES,
    WIDTH,
    WIDTH_IN,
    Mixture,
    each_expert,
    router,
    shared_expert,
    stacked_experts,
)
from engine.expansion.layouts.normed_branches import SANDWICH_NORMS, NormedBlock, normed_branches
from engine.expansion.layouts.pieces import (
    EXPERT,
    HEAD_ALONG,
    HIDDEN_IN,
    HIDDEN_OUT,
    LAYER,
    SINKS,
    AttentionStyle,
    MlpStyle,
    layer_list,
    mlp,
    sizes,
)
from engine.expansion.layouts.pre_norm import (
    MULTIPLIERS,
    Block,
    first_of_each_full,
    pre_norm,
    rotary_share,
    uniform_bias,
)
from engine.expansion.layouts.registry import family
from engine.models.config import ConfigReader

NAMED = ("num_local_experts", "num_experts")
PER_TOKEN = ("num_experts_per_tok",)
SINK_RULE = Rule(f"{LAYER}self_attn.sinks", Role.INNER, (SINKS,))


def mixture_keys(
    experts: tuple[str, ...] = NAMED,
    width: str = "intermediate_size",
    per_token: tuple[str, ...] = PER_TOKEN,
    shared: str = "",
) -> dict[str, tuple[str, ...]]:
    """Config keys of the four sizes of a mixture."""
    keys = {"experts": experts, "experts_per_token": per_token, "expert_ffn": (width,)}
    return {**keys, "shared_ffn": (shared,)} if shared else keys


def read_mixture(
    reader: ConfigReader, keys: Mapping[str, tuple[str, ...]], rules: tuple[Rule, ...], **more: Any
) -> Mixture:
    """A mixture whose sizes stand under `keys`. Raises EngineError `model.config_*` for missing or impossible ones."""
    shared = keys.get("shared_ffn")
    return Mixture(
        rules=rules,
        experts=reader.integer(*keys["experts"]),
        per_token=reader.integer(*keys["experts_per_token"]),
        width=reader.integer(*keys["expert_ffn"]),
        config_keys=keys,
        shared_width=reader.integer(*shared, low=0) if shared else 0,
        **more,
    )


@family("mixtral", defaults={"num_local_experts": 8})
def _mixtral(reader: ConfigReader) -> Layout:
    rules = (*router("block_sparse_moe.gate"), *each_expert("block_sparse_moe.experts", MIXTRAL_NAMES))
    mixture = read_mixture(reader, mixture_keys(), rules)
    return pre_norm(reader, Block("mixtral", mlp=None, mixture=mixture, epsilon=1e-5))


@family(
    "minimax_m2",
    defaults=sizes(200064, 3072, 1536, 62, 48, 8, head_dim=128, num_local_experts=256, num_experts_per_tok=8),
    handles=("use_qk_norm",),
)
def _minimax_m2(reader: ConfigReader) -> Layout:
    moe = "block_sparse_moe"
    rules = (
        *router(f"{moe}.gate", bias=f"{moe}.e_score_correction_bias"),
        *each_expert(f"{moe}.experts", MIXTRAL_NAMES),
    )
    mixture = read_mixture(reader, mixture_keys(), rules)
    return pre_norm(
        reader,
        Block(
            "minimax_m2",
            attention=AttentionStyle(qk_norm="full"),
            mlp=None,
            mixture=mixture,
            partial_rotary=rotary_share(reader),
        ),
    )


def _sparse_steps(reader: ConfigReader) -> bool:
    """Whether some layers are dense by Qwen's rule."""
    return reader.integer("decoder_sparse_step", default=1, low=0) != 1 or bool(reader.items("mlp_only_layers"))


@family("qwen3_moe", handles=("attention_bias",))
def _qwen3_moe(reader: ConfigReader) -> Layout:
    rules = (*router("mlp.gate"), *each_expert("mlp.experts"))
    mixture = read_mixture(
        reader,
        mixture_keys(width="moe_intermediate_size"),
        rules,
        dense_width=_dense_width(reader, _sparse_steps(reader)),
        renormalised=reader.flag("norm_topk_prob"),
    )
    block = Block(
        "qwen3_moe",
        attention=uniform_bias(reader, qk_norm="head"),
        mlp=MlpStyle() if mixture.dense_width else None,
        mixture=mixture,
    )
    return pre_norm(reader, block)


def _dense_width(reader: ConfigReader, present: bool) -> int:
    return reader.integer("intermediate_size") if present else 0


@family("qwen2_moe", handles=("qkv_bias",))
def _qwen2_moe(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    rules = (
        *router("mlp.gate"),
        *each_expert("mlp.experts"),
        *shared_expert("mlp.shared_expert"),
        Rule(f"{LAYER}mlp.shared_expert_gate.weight", Role.READ, (HEAD_ALONG, HIDDEN_IN)),
    )
    mixture = read_mixture(
        reader,
        mixture_keys(width="moe_intermediate_size", shared="shared_expert_intermediate_size"),
        rules,
        dense_width=_dense_width(reader, _sparse_steps(reader)),
        renormalised=reader.flag("norm_topk_prob"),
    )
    first = reader.integer("max_window_layers", low=0) if reader.flag("use_sliding_window") else 0
    derived = tuple("sliding_attention" if i % 2 == 0 and i < first else "full_attention" for i in range(layers))
    return pre_norm(
        reader,
        Block(
            "qwen2_moe",
            attention=AttentionStyle(qkv_bias=reader.flag("qkv_bias", default=True)),
            mlp=MlpStyle() if mixture.dense_width else None,
            mixture=mixture,
            per_layer={"layer_types": layer_list(reader, "layer_types", layers) or derived},
        ),
    )


@family(
    "olmoe",
    defaults=sizes(50304, 2048, 2048, 16, 16, num_experts=64, num_experts_per_tok=8),
    handles=("attention_bias",),
)
def _olmoe(reader: ConfigReader) -> Layout:
    rules = (*router("mlp.gate"), *each_expert("mlp.experts"))
    mixture = read_mixture(reader, mixture_keys(), rules, renormalised=reader.flag("norm_topk_prob"))
    style = uniform_bias(reader, qk_norm="full")
    # its QK-norms are as wide as hidden, whatever head_dim says
    block = Block("olmoe", attention=style, mlp=None, mixture=mixture, epsilon=1e-5, derived_head_dim=True)
    return pre_norm(reader, block)


@family(
    "flex_olmo",
    defaults=sizes(100352, 4096, 11008, 32, 32, num_experts=7, num_experts_per_tok=5),
    handles=("attention_bias",),
)
def _flex_olmo(reader: ConfigReader) -> Layout:
    rules = (*router("mlp.gate", raw=True), *each_expert("mlp.experts", raw=True, closes=False))
    mixture = read_mixture(reader, mixture_keys(), rules, renormalised=reader.flag("norm_topk_prob"))
    return normed_branches(
        reader,
        NormedBlock(
            "flex_olmo",
            "post",
            post_norms=SANDWICH_NORMS,
            attention=uniform_bias(reader, qk_norm="full"),
            mlp=None,
            mixture=mixture,
        ),
    )


@family(
    "granitemoe",
    defaults=sizes(32000, 4096, 11008, 32, 32, num_local_experts=8, num_experts_per_tok=2),
    handles=("attention_bias",),
)
def _granitemoe(reader: ConfigReader) -> Layout:
    return _granite_mixture(reader, "granitemoe", ())


@family(
    "granitemoeshared",
    defaults=sizes(32000, 4096, 11008, 32, 32, num_local_experts=8, num_experts_per_tok=2, shared_intermediate_size=0),
    handles=("attention_bias",),
)
def _granitemoeshared(reader: ConfigReader) -> Layout:
    return _granite_mixture(reader, "granitemoeshared", _granite_shared(reader), "shared_intermediate_size")


def _granite_shared(reader: ConfigReader) -> tuple[Rule, ...]:
    if not reader.integer("shared_intermediate_size", default=0, low=0):
        return ()
    style = MlpStyle(prefix=f"{LAYER}shared_mlp.", width=Dim.SHARED_FFN, fused="input_linear", output="output_linear")
    return mlp(style)


def _granite_mixture(reader: ConfigReader, name: str, extra: tuple[Rule, ...], shared: str = "") -> Layout:
    moe = "block_sparse_moe"
    rules = (
        *router(f"{moe}.router.layer"),
        *stacked_experts(f"{moe}.input_linear.weight", f"{moe}.output_linear.weight"),
        *extra,
    )
    mixture = read_mixture(reader, mixture_keys(("num_local_experts",), shared=shared), rules, stacked=True)
    block = Block(name, attention=uniform_bias(reader), mlp=None, mixture=mixture, scaling=MULTIPLIERS)
    return pre_norm(reader, block)


@family(
    "granitemoe_swa",
    defaults=sizes(32000, 4096, 11008, 32, 32, num_local_experts=8, num_experts_per_tok=2, shared_intermediate_size=0),
    handles=("attention_bias",),
)
def _granitemoe_swa(reader: ConfigReader) -> Layout:
    moe, layers = "block_sparse_moe", reader.integer("num_hidden_layers")
    rules = (
        *router(f"{moe}.router"),
        *stacked_experts(f"{moe}.experts.gate_up_proj", f"{moe}.experts.down_proj"),
        *_granite_shared(reader),
    )
    keys = mixture_keys(("num_local_experts",), shared="shared_intermediate_size")
    bases = layer_list(reader, "layer_rope_theta", layers)
    return pre_norm(
        reader,
        Block(
            "granitemoe_swa",
            attention=uniform_bias(reader),
            mlp=None,
            mixture=read_mixture(reader, keys, rules, stacked=True),
            scaling=MULTIPLIERS,
            per_layer=first_of_each_full(reader, layers, 4) | ({"layer_rope_theta": bases} if bases else {}),
            layer_period=4,
            extra=(SINK_RULE,),
        ),
    )


@family(
    "gpt_oss",
    defaults=sizes(201088, 2880, 2880, 36, 64, 8, head_dim=64, num_local_experts=128, num_experts_per_tok=4),
    handles=("attention_bias",),
)
def _gpt_oss(reader: ConfigReader) -> Layout:
    experts, layers = f"{LAYER}mlp.experts.", reader.integer("num_hidden_layers")
    both = Fused((WIDTH, WIDTH), "interleaved")
    rules = (
        *router("mlp.router", bias="mlp.router.bias"),
        Rule(f"{experts}gate_up_proj", Role.READ, (EXPERT, HIDDEN_IN, both)),
        Rule(f"{experts}gate_up_proj_bias", Role.INNER, (EXPERT, both)),
        Rule(f"{experts}down_proj", Role.WRITE, (EXPERT_IN, WIDTH_IN, HIDDEN_OUT), closes=True),
        Rule(f"{experts}down_proj_bias", Role.WRITE_BIAS, (EXPERT, HIDDEN_OUT), closes=True),
    )
    alternate = tuple("full_attention" if i % 2 else "sliding_attention" for i in range(layers))
    return pre_norm(
        reader,
        Block(
            "gpt_oss",
            attention=uniform_bias(reader, default=True),
            mlp=None,
            mixture=read_mixture(reader, mixture_keys(), rules, stacked=True),
            epsilon=1e-5,
            per_layer={"layer_types": layer_list(reader, "layer_types", layers) or alternate},
            layer_period=2,
            extra=(SINK_RULE,),
        ),
    )
