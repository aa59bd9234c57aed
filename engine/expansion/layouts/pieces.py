"""The parts decoders are built of, as rules: embedding, head, norms, attention, feed-forward networks, sizes.

Owns what families share. Must not know which family has which part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from engine.expansion.axes import Axis, Dim, Dims, Fused, Role, Side
from engine.expansion.layout import Rule
from engine.models.config import LARGEST_LAYER_COUNT, REQUIRED, ConfigReader

LAYER = "model.layers.{i}."

HIDDEN_OUT = Axis(Dim.HIDDEN)
HIDDEN_IN = Axis(Dim.HIDDEN, Side.IN)
HIDDEN_ALONG = Axis(Dim.HIDDEN, Side.ALONG)
QUERY_OUT = Axis(Dim.QUERY)
QUERY_IN = Axis(Dim.QUERY, Side.IN)
KEY_VALUE_OUT = Axis(Dim.KEY_VALUE)
VOCAB = Axis(Dim.VOCAB)
EXPERT = Axis(Dim.EXPERT)
HEAD_ALONG = Axis(Dim.FIXED, Side.ALONG)
"""A head's own coordinates."""
SINKS = Axis(Dim.QUERY, Side.ALONG, per_head=False)

CONFIG_KEYS = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "ffn": ("intermediate_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab": ("vocab_size",),
}


def read_dims(
    reader: ConfigReader, more: Mapping[str, int] = MappingProxyType({}), *, derived_head_dim: bool = False
) -> Dims:
    """The sizes under their usual keys; `more` adds or replaces fields (experts, another ffn).

    Raises EngineError `model.config_*` naming the key that cannot be.
    """
    hidden = reader.integer("hidden_size")
    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise reader.wrong("num_key_value_heads", kv_heads, f"a divisor of the {heads} attention heads")
    fields = {
        "layers": reader.integer("num_hidden_layers", high=LARGEST_LAYER_COUNT),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": _head_dim(reader, hidden, heads, derived_head_dim),
        "vocab": reader.integer("vocab_size"),
    }
    if "ffn" not in more:
        fields["ffn"] = reader.integer("intermediate_size", default=REQUIRED)
    return Dims(**{**fields, **more})


def _head_dim(reader: ConfigReader, hidden: int, heads: int, derived: bool) -> int:
    if not derived and reader.raw("head_dim") is not None:
        return reader.integer("head_dim")
    if hidden % heads:
        raise reader.wrong("num_attention_heads", heads, f"a divisor of hidden_size {hidden} (no head_dim is given)")
    return hidden // heads


def ends(*, embedding: str = "model.embed_tokens.weight", head: str = "lm_head.weight") -> tuple[Rule, ...]:
    """Embedding and output head. A tied head that a file stores nevertheless is known, and left out of the output."""
    return (
        Rule(embedding, Role.EMBEDDING, (VOCAB, HIDDEN_OUT)),
        Rule(head, Role.HEAD, (VOCAB, HIDDEN_IN)),
    )


def gain(name: str, role: Role, *, closes: bool = False) -> Rule:
    """The gain of a norm over the hidden size."""
    return Rule(f"{name}.weight", role, (HIDDEN_ALONG,), closes=closes)


FINAL = gain("model.norm", Role.FINAL_GAIN)


@dataclass(frozen=True, slots=True)
class AttentionStyle:
    """How one attention block is stored."""

    prefix: str = f"{LAYER}self_attn."
    raw: bool = False
    """It reads the stream itself, without a norm."""
    fused: bool = False
    """Query, key and value are one tensor, one part after the other."""
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: str = "none"
    """ "none", "head", "full"."""
    norm_names: tuple[str, ...] = ("q_norm", "k_norm")
    """Empty where the QK-norms have no gain."""
    output: str = "o_proj"
    closes: bool = True
    """False where a post-norm follows, whose gain closes the branch."""


def attention(style: AttentionStyle) -> tuple[Rule, ...]:
    """Projections, biases and QK-norms of one attention block."""
    output = (
        Rule(f"{style.prefix}{style.output}.weight", Role.WRITE, (HIDDEN_OUT, QUERY_IN), closes=style.closes),
        *((_output_bias(f"{style.prefix}{style.output}", style.closes),) if style.output_bias else ()),
    )
    return (*(_fused_qkv(style) if style.fused else _separate_qkv(style)), *output, *_qk_norms(style))


def _output_bias(name: str, closes: bool) -> Rule:
    return Rule(f"{name}.bias", Role.WRITE_BIAS, (HIDDEN_OUT,), closes=closes)


def _fused_qkv(style: AttentionStyle) -> tuple[Rule, ...]:
    parts = Fused((QUERY_OUT, KEY_VALUE_OUT, KEY_VALUE_OUT))
    name = f"{style.prefix}qkv_proj"
    rules = (Rule(f"{name}.weight", Role.READ, (parts, HIDDEN_IN)),)
    return (*rules, Rule(f"{name}.bias", Role.INNER, (parts,))) if style.qkv_bias else rules


def _separate_qkv(style: AttentionStyle) -> tuple[Rule, ...]:
    read = Role.RAW_READ if style.raw else Role.READ
    normed = Role.QK_MATRIX_FULL if style.qk_norm == "full" else read
    rules: list[Rule] = []
    for letter, axis, role in (
        ("q", QUERY_OUT, normed),
        ("k", KEY_VALUE_OUT, normed),
        ("v", KEY_VALUE_OUT, read),
    ):
        rules.append(Rule(f"{style.prefix}{letter}_proj.weight", role, (axis, HIDDEN_IN)))
        if style.qkv_bias:
            bias_role = Role.QK_MATRIX_FULL if role is Role.QK_MATRIX_FULL else Role.INNER
            rules.append(Rule(f"{style.prefix}{letter}_proj.bias", bias_role, (axis,)))
    return tuple(rules)


def _qk_norms(style: AttentionStyle) -> tuple[Rule, ...]:
    if style.qk_norm == "none":
        return ()
    names = tuple(f"{style.prefix}{name}.weight" for name in style.norm_names)
    if style.qk_norm == "head":
        return tuple(Rule(name, Role.HEAD_GAIN, (HEAD_ALONG,)) for name in names)
    axes = (Axis(Dim.QUERY, Side.ALONG), Axis(Dim.KEY_VALUE, Side.ALONG))
    return tuple(Rule(name, Role.QK_GAIN_FULL, (axis,)) for name, axis in zip(names, axes, strict=True))


@dataclass(frozen=True, slots=True)
class MlpStyle:
    """How one feed-forward network is stored."""

    prefix: str = f"{LAYER}mlp."
    width: Dim = Dim.FFN
    raw: bool = False
    inputs: tuple[str, ...] = ("gate_proj", "up_proj")
    """Projections that read the stream; a single one has no gate."""
    output: str = "down_proj"
    fused: str = ""
    """Name of the tensor that holds gate and up one after the other; replaces `inputs`."""
    bias: bool = False
    closes: bool = True


def mlp(style: MlpStyle) -> tuple[Rule, ...]:
    """Projections and biases of one feed-forward network."""
    role = Role.RAW_READ if style.raw else Role.READ
    width = Axis(style.width)
    rules: list[Rule] = []
    for name in (style.fused,) if style.fused else style.inputs:
        axis = Fused((width, width)) if style.fused else width
        rules.append(Rule(f"{style.prefix}{name}.weight", role, (axis, HIDDEN_IN)))
        if style.bias:
            rules.append(Rule(f"{style.prefix}{name}.bias", Role.INNER, (axis,)))
    columns = Axis(style.width, Side.IN)
    rules.append(Rule(f"{style.prefix}{style.output}.weight", Role.WRITE, (HIDDEN_OUT, columns), closes=style.closes))
    if style.bias:
        rules.append(_output_bias(f"{style.prefix}{style.output}", style.closes))
    return tuple(rules)


def bias_names(*, qkv: bool = False, output: bool = False, mlp: bool = False, head: bool = False) -> tuple[str, ...]:
    """The present biases as `Traits.biases` names them."""
    present = (("qkv", qkv), ("output", output), ("mlp", mlp), ("head", head))
    return tuple(name for name, there in present if there)


def sizes(
    vocab: int, hidden: int, ffn: int, layers: int, heads: int, kv: int | None = None, **more: Any
) -> dict[str, Any]:
    """The keys every config has, as defaults of a family; None where the class derives the value."""
    keys = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
    }
    return {key: value for key, value in (keys | more).items() if value is not None}


def layer_list(reader: ConfigReader, key: str, layers: int) -> tuple[Any, ...]:
    """A per-layer list of the config, () when it is missing. Raises EngineError when its length is not `layers`."""
    listed = reader.items(key)
    if listed and len(listed) != layers:
        raise reader.wrong(key, f"a list of {len(listed)}", f"one entry for each of the {layers} layers")
    return tuple(listed)


def period(*lists: tuple[Any, ...]) -> int:
    """Layers after which per-layer lists repeat; 1 when every layer is alike, or none of two whole periods repeats."""
    rows = tuple(zip(*(one for one in lists if one), strict=True))
    for length in range(1, len(rows) // 2 + 1):
        if all(rows[index] == rows[index % length] for index in range(len(rows))):
            return length
    return 1
