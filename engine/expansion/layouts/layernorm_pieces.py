"""The parts that LayerNorm decoders share: norms with a bias, fused and transposed projections, sizes, old names.

Owns what several of those families have in common. Must not know which family has which part.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.expansion.axes import Axis, Dim, Dims, Fused, Role, Side
from engine.expansion.layout import Rule
from engine.expansion.layouts.pieces import (
    HIDDEN_ALONG,
    HIDDEN_IN,
    HIDDEN_OUT,
    KEY_VALUE_OUT,
    QUERY_IN,
    QUERY_OUT,
)
from engine.models.config import LARGEST_LAYER_COUNT, ConfigReader

FFN_OUT = Axis(Dim.FFN)
FFN_IN = Axis(Dim.FFN, Side.IN)
POSITION = Axis(Dim.FIXED)
HEAD_ALONG = Axis(Dim.FIXED, Side.ALONG)
"""A head's own coordinates."""

QKV_IN_TURN = Fused((QUERY_OUT, KEY_VALUE_OUT, KEY_VALUE_OUT))
QKV_BY_GROUP = Fused((QUERY_OUT, KEY_VALUE_OUT, KEY_VALUE_OUT), order="grouped")

SLOPES = "ALiBi's slopes depend on the number of heads, so that old heads would attend elsewhere"
DERIVED = "its head size is always hidden / heads, and heads cannot grow: "

Keys = Mapping[str, tuple[str, ...]]

GPT_KEYS: Keys = {
    "layers": ("n_layer", "num_hidden_layers"),
    "hidden": ("n_embd", "hidden_size"),
    "ffn": ("n_inner",),
    "heads": ("n_head", "num_attention_heads"),
    "vocab": ("vocab_size",),
}
"""GPT-2's names; transformers takes the usual ones too."""


def norm(name: str, *, bias: bool = True, final: bool = False) -> tuple[Rule, ...]:
    """Gain and bias of a LayerNorm over the stream."""
    gain, shift = (Role.FINAL_GAIN, Role.FINAL_BIAS) if final else (Role.PRE_GAIN, Role.PRE_BIAS)
    rules = (Rule(f"{name}.weight", gain, (HIDDEN_ALONG,)),)
    return (*rules, Rule(f"{name}.bias", shift, (HIDDEN_ALONG,))) if bias else rules


def head_norms(prefix: str, *, bias: bool) -> tuple[Rule, ...]:
    """LayerNorms over one head's query and key, the same for every head."""
    names = [f"{prefix}{side}_layernorm" for side in "qk"]
    gains = tuple(Rule(f"{name}.weight", Role.HEAD_GAIN, (HEAD_ALONG,)) for name in names)
    return (*gains, *(Rule(f"{name}.bias", Role.INNER, (HEAD_ALONG,)) for name in names)) if bias else gains


def reads(name: str, axis: Axis | Fused, *, bias: bool, transposed: bool = False) -> tuple[Rule, ...]:
    """A projection that reads the normalised stream; `transposed` where a file stores it in x out (Conv1D)."""
    rules = (Rule(f"{name}.weight", Role.READ, (HIDDEN_IN, axis) if transposed else (axis, HIDDEN_IN)),)
    return (*rules, Rule(f"{name}.bias", Role.INNER, (axis,))) if bias else rules


def writes(name: str, axis: Axis, *, bias: bool, transposed: bool = False) -> tuple[Rule, ...]:
    """A projection that adds to the stream; zeroing it and its bias closes the branch."""
    axes = (axis, HIDDEN_OUT) if transposed else (HIDDEN_OUT, axis)
    rules = (Rule(f"{name}.weight", Role.WRITE, axes, closes=True),)
    return (*rules, Rule(f"{name}.bias", Role.WRITE_BIAS, (HIDDEN_OUT,), closes=True)) if bias else rules


def plain_mlp(prefix: str, names: tuple[str, str], *, bias: bool, transposed: bool = False) -> tuple[Rule, ...]:
    """Up, activation, down, without a gate."""
    up, down = names
    return (
        *reads(f"{prefix}{up}", FFN_OUT, bias=bias, transposed=transposed),
        *writes(f"{prefix}{down}", FFN_IN, bias=bias, transposed=transposed),
    )


def separate_attention(prefix: str, *, bias: bool, output: str, output_bias: bool) -> tuple[Rule, ...]:
    """Query, key, value and output projections, each a tensor."""
    parts = (("q_proj", QUERY_OUT), ("k_proj", KEY_VALUE_OUT), ("v_proj", KEY_VALUE_OUT))
    return (
        *(rule for name, axis in parts for rule in reads(f"{prefix}{name}", axis, bias=bias)),
        *writes(f"{prefix}{output}", QUERY_IN, bias=output_bias),
    )


def positions(name: str) -> Rule:
    """A learned position table."""
    return Rule(name, Role.POSITIONS, (POSITION, HIDDEN_OUT))


def head_bias(name: str = "lm_head.bias") -> Rule:
    """The bias of the output head, one entry per token of the vocabulary."""
    return Rule(name, Role.INNER, (Axis(Dim.VOCAB),))


def sizes(reader: ConfigReader, keys: Keys, *, kv_heads: int = 0) -> Dims:
    """Sizes of a decoder whose head size is hidden / heads; FFN is 4 x hidden where the config says nothing.

    `kv_heads` 0 means one per query head unless `keys` name a key for it. Raises EngineError `model.config_*`.
    """
    hidden = reader.integer(*keys["hidden"])
    heads = reader.integer(*keys["heads"])
    if hidden % heads:
        raise reader.wrong(keys["heads"][0], heads, f"a divisor of the hidden size {hidden}")
    if not kv_heads:
        kv_heads = reader.integer(*keys["kv_heads"], default=heads) if "kv_heads" in keys else heads
    if heads % kv_heads:
        raise reader.wrong("num_key_value_heads", kv_heads, f"a divisor of the {heads} attention heads")
    return Dims(
        layers=reader.integer(*keys["layers"], high=LARGEST_LAYER_COUNT),
        hidden=hidden,
        ffn=reader.integer(*keys["ffn"], default=4 * hidden) if "ffn" in keys else 4 * hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        vocab=reader.integer(*keys["vocab"]),
    )


def partial_rotary(reader: ConfigReader, default: float) -> float:
    """The share of a head that is rotated, where a version 4 or version 5 config has it."""
    value = reader.table("rope_parameters", "rope_scaling").get("partial_rotary_factor")
    if isinstance(value, (int, float)):
        return float(value)
    return reader.number("partial_rotary_factor", "rotary_pct", default=default)
