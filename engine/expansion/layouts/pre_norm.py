"""RMSNorm decoders with one norm before each branch: the Llama block, and what may differ from it.

Owns how such a block is put together. Must not know which family has which block.

    x -> norm -> q k v -> attention -> o -> + -> norm -> gate up -> act -> down -> +
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
)
from engine.models.config import ConfigReader


@dataclass(frozen=True, slots=True)
class Block:
    """What sets a pre-norm family apart from Llama."""

    family: str
    attention: AttentionStyle = field(default_factory=AttentionStyle)
    mlp: MlpStyle | None = field(default_factory=MlpStyle)
    """None where every layer is a mixture."""
    mixture: Mixture | None = None
    norm: str = "rmsnorm"
    norm_names: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """Empty where the norms have no gain."""
    epsilon: float = 1e-6
    derived_head_dim: bool = False
    """The head size is always hidden / heads."""
    square_output: bool = False
    """The output projection is hidden x hidden: hidden and heads grow together, though head_dim is a key."""
    heads_divide_hidden: bool = False
    embedding_times_root: bool = False
    normed_embedding: bool = False
    """The stream begins with a norm, so that its size is not the embedding's to choose."""
    scaling: tuple[str, ...] = ()
    partial_rotary: float = 1.0
    per_layer: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    layer_period: int = 1
    unsupported: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[Rule, ...] = ()


def pre_norm(reader: ConfigReader, block: Block) -> Layout:
    """The layout of a pre-norm decoder. Raises EngineError `model.config_*` for sizes that cannot be."""
    tied = reader.flag("tie_word_embeddings")
    dense, mixture = block.mlp, block.mixture
    fused = (("qkv",) if block.attention.fused else ()) + (("gate_up",) if dense and dense.fused else ())
    if mixture and mixture.stacked:
        fused = (*fused, "experts")
    head_normed = block.attention.qk_norm != "none"
    traits = Traits(
        norm=block.norm,
        placement="pre",
        tied=tied,
        qk_norm=block.attention.qk_norm,
        qk_norm_shares_epsilon=head_normed,
        fixed_epsilon=block.normed_embedding,
        gainless=not block.norm_names,
        embedding_times_root=block.embedding_times_root,
        biases=bias_names(
            qkv=block.attention.qkv_bias, output=block.attention.output_bias, mlp=bool(dense and dense.bias)
        ),
        fused=fused,
        head_dim_key=not (block.derived_head_dim or block.square_output),
        heads_divide_hidden=block.heads_divide_hidden,
        partial_rotary=block.partial_rotary,
        scaling=block.scaling,
        per_layer_keys=tuple(block.per_layer),
        layer_period=block.layer_period,
        **(mixture.traits if mixture else {}),
    )
    rules = (
        *ends(),
        *(gain(f"{LAYER}{name}", Role.PRE_GAIN) for name in block.norm_names),
        *attention(block.attention),
        *(mlp(dense) if dense else ()),
        *(mixture.rules if mixture else ()),
        *block.extra,
        *((FINAL,) if block.norm_names else ()),
    )
    return Layout(
        family=block.family,
        dims=read_dims(reader, mixture.sizes if mixture else {}, derived_head_dim=block.derived_head_dim),
        traits=traits,
        rules=rules,
        config_keys=mixture.keys if mixture else CONFIG_KEYS,
        epsilon=reader.number("rms_norm_eps", default=block.epsilon),
        per_layer=block.per_layer,
        unsupported={**(mixture.unsupported if mixture else {}), **block.unsupported},
        ignored=ROTARY_TABLES,
        optional_prefix="model.",
    )


LLAMA_BIASES = ("attention_bias", "mlp_bias")
MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
"""Granite's: none of them feels a wider stream."""

ROTARY_TABLES = (f"{LAYER}self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
"""Buffers that old files store; current loaders ignore them."""


def window_layers(reader: ConfigReader, layers: int) -> dict[str, tuple[Any, ...]]:
    """Qwen's `layer_types`: given, or full attention below `max_window_layers` and windows above."""
    listed = layer_list(reader, "layer_types", layers)
    if listed:
        return {"layer_types": listed}
    windows = reader.flag("use_sliding_window") and reader.raw("sliding_window") is not None
    first = reader.integer("max_window_layers", low=0) if windows else layers
    return {"layer_types": tuple("sliding_attention" if i >= first else "full_attention" for i in range(layers))}


def first_of_each_full(reader: ConfigReader, layers: int, period: int) -> dict[str, tuple[Any, ...]]:
    """`layer_types`: given, or full attention in the first of every `period` layers and windows in the others."""
    listed = layer_list(reader, "layer_types", layers)
    derived = tuple("sliding_attention" if i % period else "full_attention" for i in range(layers))
    return {"layer_types": listed or derived}


def uniform_bias(reader: ConfigReader, *, default: bool = False, qk_norm: str = "none") -> AttentionStyle:
    """Attention where `attention_bias` stands for all four projections."""
    bias = reader.flag("attention_bias", default=default)
    return AttentionStyle(qkv_bias=bias, output_bias=bias, qk_norm=qk_norm)


def llama_block(reader: ConfigReader, name: str, **changes: Any) -> Block:
    """Llama's block: optional biases on all projections. `changes` are fields of `Block`."""
    plain = Block(name, attention=uniform_bias(reader), mlp=MlpStyle(bias=reader.flag("mlp_bias")))
    return replace(plain, **changes)


def rotary_share(reader: ConfigReader, default: float = 1.0) -> float:
    """Share of a head that is rotated: under its own key, or among the rope settings."""
    for table in (reader.tree, reader.table("rope_parameters"), reader.table("rope_scaling")):
        share = table.get("partial_rotary_factor")
        if isinstance(share, (int, float)) and not isinstance(share, bool):
            return float(share)
    return default
