"""RMSNorm decoders with one norm before each branch: the Llama block and its relatives.

Owns the rules of those families. Must not know what growth does to a tensor.

    x -> norm -> q k v -> attention -> o -> + -> norm -> gate up -> act -> down -> +
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.expansion.axes import Role
from engine.expansion.layout import Layout, Rule, Traits
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
from engine.expansion.layouts.registry import family
from engine.models.config import ConfigReader


@dataclass(frozen=True, slots=True)
class Block:
    """What sets a pre-norm family apart from Llama."""

    family: str
    attention: AttentionStyle = field(default_factory=AttentionStyle)
    mlp: MlpStyle = field(default_factory=MlpStyle)
    norm: str = "rmsnorm"
    norm_names: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    epsilon: float = 1e-6
    derived_head_dim: bool = False
    heads_divide_hidden: bool = False
    embedding_times_root: bool = False
    scaling: tuple[str, ...] = ()
    partial_rotary: float = 1.0
    per_layer: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    layer_period: int = 1
    unsupported: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[Rule, ...] = ()


def pre_norm(reader: ConfigReader, block: Block) -> Layout:
    """The layout of a pre-norm decoder. Raises EngineError `model.config_*` for sizes that cannot be."""
    tied = reader.flag("tie_word_embeddings")
    fused = (("qkv",) if block.attention.fused else ()) + (("gate_up",) if block.mlp.fused else ())
    head_normed = block.attention.qk_norm != "none"
    traits = Traits(
        norm=block.norm,
        placement="pre",
        tied=tied,
        qk_norm=block.attention.qk_norm,
        qk_norm_shares_epsilon=head_normed,
        embedding_times_root=block.embedding_times_root,
        biases=bias_names(qkv=block.attention.qkv_bias, output=block.attention.output_bias, mlp=block.mlp.bias),
        fused=fused,
        head_dim_key=not block.derived_head_dim,
        heads_divide_hidden=block.heads_divide_hidden,
        partial_rotary=block.partial_rotary,
        scaling=block.scaling,
        per_layer_keys=tuple(block.per_layer),
        layer_period=block.layer_period,
    )
    rules = (
        *ends(tied=tied),
        gain(f"{LAYER}{block.norm_names[0]}", Role.PRE_GAIN),
        *attention(block.attention),
        gain(f"{LAYER}{block.norm_names[1]}", Role.PRE_GAIN),
        *mlp(block.mlp),
        *block.extra,
        FINAL,
    )
    return Layout(
        family=block.family,
        dims=read_dims(reader, derived_head_dim=block.derived_head_dim),
        traits=traits,
        rules=rules,
        config_keys=CONFIG_KEYS,
        epsilon=reader.number("rms_norm_eps", default=block.epsilon),
        per_layer=block.per_layer,
        unsupported=block.unsupported,
        ignored=ROTARY_TABLES,
    )


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


@family("llama", handles=("attention_bias", "mlp_bias"))
def _llama(reader: ConfigReader) -> Layout:
    bias = reader.flag("attention_bias")
    return pre_norm(
        reader,
        Block(
            "llama",
            attention=AttentionStyle(qkv_bias=bias, output_bias=bias),
            mlp=MlpStyle(bias=reader.flag("mlp_bias")),
            heads_divide_hidden=True,
        ),
    )


@family("mistral")
def _mistral(reader: ConfigReader) -> Layout:
    return pre_norm(reader, Block("mistral"))


@family("qwen2")
def _qwen2(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    return pre_norm(
        reader,
        Block("qwen2", attention=AttentionStyle(qkv_bias=True), per_layer=window_layers(reader, layers)),
    )


@family("qwen3", handles=("attention_bias",))
def _qwen3(reader: ConfigReader) -> Layout:
    bias = reader.flag("attention_bias")
    layers = reader.integer("num_hidden_layers")
    return pre_norm(
        reader,
        Block(
            "qwen3",
            attention=AttentionStyle(qkv_bias=bias, output_bias=bias, qk_norm="head"),
            per_layer=window_layers(reader, layers),
        ),
    )


@family("gemma", handles=("attention_bias",))
def _gemma(reader: ConfigReader) -> Layout:
    bias = reader.flag("attention_bias")
    return pre_norm(
        reader,
        Block(
            "gemma",
            attention=AttentionStyle(qkv_bias=bias, output_bias=bias),
            norm="rmsnorm+1",
            embedding_times_root=True,
        ),
    )
