"""RMSNorm decoders whose branches are normed before they join the stream: sandwich and post-norm blocks.

Owns the rules of those families. Must not know what growth does to a tensor. The post-norm's gain closes a branch:
a zero matrix before it would sit where x / rms(x) is discontinuous, and the first step would throw the loss.

    sandwich   x -> norm -> branch -> norm -> +          Gemma 2 and 3, GLM-4
    post       x ---------> branch -> norm -> +          OLMo 2 and 3, EXAONE 4: the branch reads the raw stream
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.expansion.axes import Role
from engine.expansion.layout import Layout, Rule, Traits
from engine.expansion.layouts.experts import Mixture
from engine.expansion.layouts.pieces import (
    CONFIG_KEYS,
    FINAL,
    LAYER,
    AttentionStyle,
    MlpStyle,
    attention,
    bias_names,
    ends,
    gain,
    layer_list,
    mlp,
    read_dims,
    sizes,
)
from engine.expansion.layouts.pre_norm import (
    LLAMA_BIASES,
    MULTIPLIERS,
    ROTARY_TABLES,
    llama_block,
    pre_norm,
    rotary_share,
    uniform_bias,
)
from engine.expansion.layouts.registry import family
from engine.models.config import ConfigReader


@dataclass(frozen=True, slots=True)
class NormedBlock:
    """One family's block. `attention` and `mlp` are completed with what the placement decides."""

    family: str
    placement: str
    post_norms: tuple[str, str]
    """Norms of the two branches' outputs."""
    pre_norms: tuple[str, ...] = ()
    attention: AttentionStyle = field(default_factory=AttentionStyle)
    mlp: MlpStyle | None = field(default_factory=MlpStyle)
    """None where every layer is a mixture."""
    mixture: Mixture | None = None
    norm: str = "rmsnorm"
    epsilon: float = 1e-6
    heads_divide_hidden: bool = False
    embedding_times_root: bool = False
    scaling: tuple[str, ...] = ()
    partial_rotary: float = 1.0
    per_layer: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    layer_period: int = 1
    extra: tuple[Rule, ...] = ()
    unsupported: Mapping[str, str] = field(default_factory=dict)


def normed_branches(reader: ConfigReader, block: NormedBlock) -> Layout:
    """The layout of a sandwich or post-norm decoder. Raises EngineError `model.config_*` for impossible sizes."""
    tied = reader.flag("tie_word_embeddings")
    raw = block.placement == "post"
    attend = replace(block.attention, raw=raw, closes=False)
    feed = replace(block.mlp, raw=raw, closes=False) if block.mlp else None
    mixture = block.mixture
    traits = Traits(
        norm=block.norm,
        placement=block.placement,
        tied=tied,
        qk_norm=attend.qk_norm,
        qk_norm_shares_epsilon=attend.qk_norm != "none",
        embedding_times_root=block.embedding_times_root,
        biases=bias_names(qkv=attend.qkv_bias, output=attend.output_bias, mlp=bool(feed and feed.bias)),
        fused=("gate_up",) if feed and feed.fused else (),
        heads_divide_hidden=block.heads_divide_hidden,
        partial_rotary=block.partial_rotary,
        scaling=block.scaling,
        per_layer_keys=tuple(block.per_layer),
        layer_period=block.layer_period,
        **(mixture.traits if mixture else {}),
    )
    rules: tuple[Rule, ...] = (
        *ends(),
        *(gain(f"{LAYER}{name}", Role.PRE_GAIN) for name in block.pre_norms),
        *attention(attend),
        *(mlp(feed) if feed else ()),
        *(mixture.rules if mixture else ()),
        *block.extra,
        *(gain(f"{LAYER}{name}", Role.POST_GAIN, closes=True) for name in block.post_norms),
        FINAL,
    )
    return Layout(
        family=block.family,
        dims=read_dims(reader, mixture.sizes if mixture else {}),
        traits=traits,
        rules=rules,
        config_keys=mixture.keys if mixture else CONFIG_KEYS,
        epsilon=reader.number("rms_norm_eps", default=block.epsilon),
        per_layer=block.per_layer,
        unsupported={**(mixture.unsupported if mixture else {}), **block.unsupported},
        ignored=ROTARY_TABLES,
        optional_prefix="model.",
    )


def every_nth_full(reader: ConfigReader, layers: int, pattern: int) -> dict[str, tuple[Any, ...]]:
    """`layer_types`: given, or windows in all but every `pattern`-th layer."""
    listed = layer_list(reader, "layer_types", layers)
    derived = tuple("full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers))
    return {"layer_types": listed or derived}


SANDWICH_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
GEMMA_SCALING = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")


def _gemma(reader: ConfigReader, name: str, pattern: int, qk_norm: str) -> NormedBlock:
    return NormedBlock(
        name,
        "sandwich",
        pre_norms=("input_layernorm", "pre_feedforward_layernorm"),
        post_norms=SANDWICH_NORMS,
        attention=uniform_bias(reader, qk_norm=qk_norm),
        norm="rmsnorm+1",
        heads_divide_hidden=True,
        embedding_times_root=True,
        scaling=GEMMA_SCALING,
        per_layer=every_nth_full(reader, reader.integer("num_hidden_layers"), pattern),
        layer_period=pattern,
    )


@family("gemma2", handles=("attention_bias",))
def _gemma2(reader: ConfigReader) -> Layout:
    return normed_branches(reader, _gemma(reader, "gemma2", 2, "none"))


@family("gemma3_text", handles=("attention_bias",))
def _gemma3(reader: ConfigReader) -> Layout:
    pattern = reader.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return normed_branches(reader, _gemma(reader, "gemma3", pattern, "head"))


@family("olmo2", handles=("attention_bias",))
def _olmo2(reader: ConfigReader) -> Layout:
    style = uniform_bias(reader, qk_norm="full")
    return normed_branches(
        reader, NormedBlock("olmo2", "post", post_norms=SANDWICH_NORMS, attention=style, epsilon=1e-5)
    )


@family("olmo3", defaults=sizes(50304, 4096, 11008, 32, 32), handles=("attention_bias",))
def _olmo3(reader: ConfigReader) -> Layout:
    return normed_branches(
        reader,
        NormedBlock(
            "olmo3",
            "post",
            post_norms=SANDWICH_NORMS,
            attention=uniform_bias(reader, qk_norm="full"),
            epsilon=1e-5,
            per_layer=every_nth_full(reader, reader.integer("num_hidden_layers"), 4),
            layer_period=4,
        ),
    )


@family("exaone4", defaults=sizes(102400, 4096, 16384, 32, 32, 32, sliding_window=4096, sliding_window_pattern=4))
def _exaone4(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    pattern = exaone_pattern(reader)
    return normed_branches(
        reader,
        NormedBlock(
            "exaone4",
            "post",
            post_norms=SANDWICH_NORMS,
            attention=AttentionStyle(qk_norm="head"),
            epsilon=1e-5,
            per_layer=every_nth_full(reader, layers, pattern),
            layer_period=pattern,
        ),
    )


def exaone_pattern(reader: ConfigReader) -> int:
    """Layers in a period of EXAONE's attention: an interval, or a text with a letter per layer; 1 without windows."""
    pattern = reader.raw("sliding_window_pattern")
    if reader.raw("sliding_window") is None:
        return 1
    return len(pattern) if isinstance(pattern, str) and pattern else reader.integer("sliding_window_pattern", default=4)


@family("glm4", defaults=sizes(151552, 4096, 13696, 40, 32, 2, head_dim=128), handles=("attention_bias",))
def _glm4(reader: ConfigReader) -> Layout:
    return normed_branches(
        reader,
        NormedBlock(
            "glm4",
            "sandwich",
            pre_norms=("input_layernorm", "post_attention_layernorm"),
            post_norms=("post_self_attn_layernorm", "post_mlp_layernorm"),
            attention=AttentionStyle(qkv_bias=reader.flag("attention_bias", default=True)),
            mlp=MlpStyle(fused="gate_up_proj"),
            epsilon=1.5625e-7,
            partial_rotary=rotary_share(reader, 0.5),
        ),
    )


@family("hyperclovax", defaults=sizes(32000, 4096, 11008, 32, 32), handles=LLAMA_BIASES)
def _hyperclovax(reader: ConfigReader) -> Layout:
    if not reader.flag("use_post_norm", default=True):
        return pre_norm(reader, llama_block(reader, "hyperclovax", heads_divide_hidden=True, scaling=MULTIPLIERS))
    return normed_branches(
        reader,
        NormedBlock(
            "hyperclovax",
            "sandwich",
            pre_norms=("input_layernorm", "post_attention_layernorm"),
            post_norms=("post_norm1", "post_norm2"),
            attention=uniform_bias(reader),
            mlp=MlpStyle(bias=reader.flag("mlp_bias")),
            heads_divide_hidden=True,
            scaling=MULTIPLIERS,
        ),
    )
