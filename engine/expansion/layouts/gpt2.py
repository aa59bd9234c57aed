"""GPT-2 and its descendants: learned positions, LayerNorm before each branch, a plain feed-forward network.

Owns the rules of GPT-2, GPT-BigCode (StarCoder 1), GPT-Neo, GPT-J, CodeGen and MPT. Must not know what growth does.
GPT-2 stores its projections in x out (Conv1D); the others out x in.
"""

from __future__ import annotations

from typing import Any

from engine.expansion.axes import Fused
from engine.expansion.layout import Layout, Rule, Traits
from engine.expansion.layouts.layernorm_pieces import (
    DERIVED,
    GPT_KEYS,
    QKV_BY_GROUP,
    QKV_IN_TURN,
    SLOPES,
    Keys,
    head_bias,
    norm,
    plain_mlp,
    positions,
    reads,
    separate_attention,
    sizes,
    writes,
)
from engine.expansion.layouts.pieces import QUERY_IN, QUERY_OUT, bias_names, ends, layer_list, period
from engine.expansion.layouts.registry import family, refuse, trait_error
from engine.models.config import ConfigReader

refuse(
    "it normalises the stream itself after every branch, so that the widths of all layers hang together", "openai-gpt"
)

PREFIX = "transformer."
LAYER = f"{PREFIX}h.{{i}}."
EMBEDDING = f"{PREFIX}wte.weight"
FINAL = norm(f"{PREFIX}ln_f", final=True)
MASKS = (f"{LAYER}attn.bias", f"{LAYER}attn.masked_bias", f"{LAYER}attn.attention.bias", f"{LAYER}attn.causal_mask")
"""Buffers that old files store; loaders make them anew."""

GPT2_SIZES = {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "tie_word_embeddings": True}
FOLLOWING: Keys = {**GPT_KEYS, "kv_heads": GPT_KEYS["heads"]}


def _traits(reader: ConfigReader, **more: Any) -> Traits:
    settings: dict[str, Any] = {
        "norm": "layernorm",
        "placement": "pre",
        "tied": reader.flag("tie_word_embeddings"),
        "head_dim_key": False,
        "key_value_follows": True,
    }
    return Traits(**(settings | more))


def _refuse_cross_attention(reader: ConfigReader) -> None:
    if reader.flag("add_cross_attention"):
        raise trait_error(reader, "add_cross_attention", True)


def _layout(reader: ConfigReader, name: str, traits: Traits, rules: tuple[Rule, ...], **more: Any) -> Layout:
    settings: dict[str, Any] = {
        "config_keys": FOLLOWING,
        "epsilon_keys": ("layer_norm_epsilon",),
        "epsilon": reader.number("layer_norm_epsilon", default=1e-5),
        "optional_prefix": PREFIX,
        "ignored": MASKS,
    } | more
    settings.setdefault("dims", sizes(reader, settings["config_keys"]))
    return Layout(family=name, traits=traits, rules=(*ends(embedding=EMBEDDING), *rules), **settings)


@family("gpt2", defaults=GPT2_SIZES)
def _gpt2(reader: ConfigReader) -> Layout:
    _refuse_cross_attention(reader)
    traits = _traits(reader, biases=bias_names(qkv=True, output=True, mlp=True), fused=("qkv",), learned_positions=True)
    by_index = "its attention is scaled by the layer's number, and old layers would get new numbers"
    return _layout(
        reader,
        "gpt2",
        traits,
        (
            positions(f"{PREFIX}wpe.weight"),
            *norm(f"{LAYER}ln_1"),
            *norm(f"{LAYER}ln_2"),
            *reads(f"{LAYER}attn.c_attn", QKV_IN_TURN, bias=True, transposed=True),
            *writes(f"{LAYER}attn.c_proj", QUERY_IN, bias=True, transposed=True),
            *plain_mlp(f"{LAYER}mlp.", ("c_fc", "c_proj"), bias=True, transposed=True),
            *FINAL,
        ),
        unsupported={"depth": by_index} if reader.flag("scale_attn_by_inverse_layer_idx") else {},
    )


@family("gpt_bigcode", defaults=GPT2_SIZES)
def _gpt_bigcode(reader: ConfigReader) -> Layout:
    """With multi-query attention all queries, then the one key and value; otherwise head by head."""
    _refuse_cross_attention(reader)
    single = reader.flag("multi_query", default=True)
    traits = _traits(
        reader,
        biases=bias_names(qkv=True, output=True, mlp=True),
        fused=("qkv",),
        learned_positions=True,
        key_value_follows=not single,
    )
    one_key = "multi-query attention has one key/value head, and its config no key for another number"
    keys = GPT_KEYS if single else FOLLOWING
    return _layout(
        reader,
        "gpt_bigcode",
        traits,
        (
            positions(f"{PREFIX}wpe.weight"),
            *norm(f"{LAYER}ln_1"),
            *norm(f"{LAYER}ln_2"),
            *reads(f"{LAYER}attn.c_attn", QKV_IN_TURN if single else QKV_BY_GROUP, bias=True),
            *writes(f"{LAYER}attn.c_proj", QUERY_IN, bias=True),
            *plain_mlp(f"{LAYER}mlp.", ("c_fc", "c_proj"), bias=True),
            *FINAL,
        ),
        config_keys=keys,
        dims=sizes(reader, keys, kv_heads=1 if single else 0),
        unsupported={"kv_heads": one_key} if single else {},
    )


NEO_KEYS: Keys = {
    "layers": ("num_layers", "num_hidden_layers"),
    "hidden": ("hidden_size",),
    "ffn": ("intermediate_size",),
    "heads": ("num_heads", "num_attention_heads"),
    "kv_heads": ("num_heads", "num_attention_heads"),
    "vocab": ("vocab_size",),
}


@family(
    "gpt_neo",
    defaults={
        "vocab_size": 50257,
        "hidden_size": 2048,
        "num_layers": 24,
        "num_heads": 16,
        "tie_word_embeddings": True,
    },
)
def _gpt_neo(reader: ConfigReader) -> Layout:
    """Some layers see a window only; `attention_types` spells their kinds as [[kinds], times] pairs."""
    dims = sizes(reader, NEO_KEYS)
    kinds = _attention_layers(reader, dims.layers)
    traits = _traits(
        reader,
        biases=bias_names(output=True, mlp=True),
        learned_positions=True,
        per_layer_keys=("attention_layers",),
        layer_period=period(kinds),
    )
    return _layout(
        reader,
        "gpt_neo",
        traits,
        (
            positions(f"{PREFIX}wpe.weight"),
            *norm(f"{LAYER}ln_1"),
            *norm(f"{LAYER}ln_2"),
            *separate_attention(f"{LAYER}attn.attention.", bias=False, output="out_proj", output_bias=True),
            *plain_mlp(f"{LAYER}mlp.", ("c_fc", "c_proj"), bias=True),
            *FINAL,
        ),
        dims=dims,
        config_keys=NEO_KEYS,
        per_layer={"attention_layers": kinds},
        ignored=(*MASKS, f"{LAYER}attn.attention.masked_bias"),
    )


def _attention_layers(reader: ConfigReader, layers: int) -> tuple[Any, ...]:
    """The kind of each layer. Raises EngineError where `attention_types` is no such list or of another length."""
    listed = layer_list(reader, "attention_layers", layers)
    if listed:
        return listed
    kinds: list[Any] = []
    for item in reader.items("attention_types") or [[["global", "local"], layers // 2]]:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], list) and isinstance(item[1], int)):
            raise reader.wrong("attention_types", item, "pairs of a list of kinds and a number of repetitions")
        kinds.extend(item[0] * min(item[1], layers))
    if len(kinds) != layers:
        raise reader.wrong("attention_types", f"a list for {len(kinds)} layers", f"one for {layers}")
    return tuple(kinds)


@family("gptj", defaults={"vocab_size": 50400, "n_embd": 4096, "n_layer": 28, "n_head": 16})
def _gptj(reader: ConfigReader) -> Layout:
    """One norm feeds both branches; `rotary_dim` is a number of coordinates and stays."""
    traits = _traits(reader, placement="parallel", biases=bias_names(mlp=True, head=True))
    return _layout(
        reader,
        "gptj",
        traits,
        (
            head_bias(),
            *norm(f"{LAYER}ln_1"),
            *separate_attention(f"{LAYER}attn.", bias=False, output="out_proj", output_bias=False),
            *plain_mlp(f"{LAYER}mlp.", ("fc_in", "fc_out"), bias=True),
            *FINAL,
        ),
    )


@family("codegen", defaults={"vocab_size": 50400, "n_embd": 4096, "n_layer": 28, "n_head": 16})
def _codegen(reader: ConfigReader) -> Layout:
    """GPT-J with queries, values and keys in four slices of the heads, as four accelerators once held them."""
    traits = _traits(reader, placement="parallel", biases=bias_names(mlp=True, head=True), fused=("qkv",))
    sliced = "its query, key and value rows lie in four slices, whose borders would cut through added heads"
    return _layout(
        reader,
        "codegen",
        traits,
        (
            head_bias(),
            *norm(f"{LAYER}ln_1"),
            *reads(f"{LAYER}attn.qkv_proj", Fused((QUERY_OUT, QUERY_OUT, QUERY_OUT)), bias=False),
            *writes(f"{LAYER}attn.out_proj", QUERY_IN, bias=False),
            *plain_mlp(f"{LAYER}mlp.", ("fc_in", "fc_out"), bias=True),
            *FINAL,
        ),
        unsupported={"hidden": DERIVED + sliced, "heads": sliced, "kv_heads": sliced},
    )


MPT_KEYS: Keys = {
    "layers": ("n_layers", "num_hidden_layers"),
    "hidden": ("d_model", "hidden_size"),
    "heads": ("n_heads", "num_attention_heads"),
    "kv_heads": ("n_heads", "num_attention_heads"),
    "vocab": ("vocab_size",),
}


@family(
    "mpt", defaults={"vocab_size": 50368, "d_model": 2048, "n_layers": 24, "n_heads": 16, "tie_word_embeddings": True}
)
def _mpt(reader: ConfigReader) -> Layout:
    """Depth only: transformers always applies ALiBi and always makes the feed-forward part 4 x hidden wide."""
    traits = _traits(reader, fused=("qkv",), alibi=True)
    return _layout(
        reader,
        "mpt",
        traits,
        (
            *norm(f"{PREFIX}blocks.{{i}}.norm_1", bias=False),
            *norm(f"{PREFIX}blocks.{{i}}.norm_2", bias=False),
            *reads(f"{PREFIX}blocks.{{i}}.attn.Wqkv", QKV_IN_TURN, bias=False),
            *writes(f"{PREFIX}blocks.{{i}}.attn.out_proj", QUERY_IN, bias=False),
            *plain_mlp(f"{PREFIX}blocks.{{i}}.ffn.", ("up_proj", "down_proj"), bias=False),
            *norm(f"{PREFIX}norm_f", bias=False, final=True),
        ),
        config_keys=MPT_KEYS,
        unsupported={
            "hidden": DERIVED + SLOPES,
            "ffn": "its feed-forward width is always 4 x hidden",
            "heads": SLOPES,
            "kv_heads": SLOPES,
        },
    )
