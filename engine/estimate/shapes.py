"""Parameter counts and matrix shapes that the formulas are written in.

Owns the arithmetic from an `Architecture` to widths, adapter sizes and per-token matrix work. Must not know bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from engine.models.architecture import Architecture

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = "experts"
"""The fused expert matrices of a mixture, as the name of an adapted part."""
_FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
_FUSED_NAMES = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "c_attn": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "dense": ("o_proj",),
    "out_proj": ("o_proj",),
    "dense_h_to_4h": ("up_proj",),
    "fc1": ("up_proj",),
    "c_fc": ("up_proj",),
    "c_proj": ("down_proj",),
    "dense_4h_to_h": ("down_proj",),
    "fc2": ("down_proj",),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The widths of one architecture, worked out once."""

    hidden: int
    feed_forward: int
    """Feed-forward width that one token passes through (mixtures: active experts plus shared ones)."""
    query: int
    key_value: int
    heads: int
    layers: int
    vocabulary: int
    parameters: int
    quantizable: int
    """P: parameters in `nn.Linear` layers, which bitsandbytes packs. The fused experts of mixtures are not."""
    layer_matmul: int
    """Matrix elements one token passes in one average layer."""
    head: int
    """Elements of the output head."""
    largest_linear: int
    routed: int
    """Experts per token, 0 for dense models."""


@lru_cache(maxsize=256)
def shape_of(architecture: Architecture) -> Shape:
    """The widths of `architecture`."""
    a = architecture
    query, key_value = a.attention_heads * a.head_dim, a.key_value_heads * a.head_dim
    matrices = 3 if a.mlp_kind == "gated" else 2
    attention = a.hidden_size * (2 * query + 2 * key_value)
    dense = matrices * a.hidden_size * a.intermediate_size
    quantizable = min(a.linear_parameters, a.parameters)
    feed_forward, routed, mlp = a.intermediate_size, 0, dense
    if a.moe is not None:
        moe = a.moe
        experts = moe.moe_layers * moe.experts * matrices * a.hidden_size * moe.expert_intermediate_size
        quantizable = max(quantizable - experts, 0)
        active = moe.experts_per_token * moe.expert_intermediate_size + moe.shared_intermediate_size
        share = moe.moe_layers / max(a.layers, 1)
        routed, feed_forward = moe.experts_per_token, max(active, a.intermediate_size if share < 1 else 0)
        router = moe.experts * a.hidden_size
        mlp = round(share * (matrices * a.hidden_size * active + router) + (1 - share) * dense)
    return Shape(
        hidden=a.hidden_size,
        feed_forward=feed_forward,
        query=query,
        key_value=key_value,
        heads=a.attention_heads,
        layers=a.layers,
        vocabulary=a.vocab_size,
        parameters=a.parameters,
        quantizable=quantizable,
        layer_matmul=attention + mlp,
        head=a.vocab_size * a.hidden_size,
        largest_linear=a.hidden_size * max(a.intermediate_size if a.moe is None else 0, query, key_value),
        routed=routed,
    )


@lru_cache(maxsize=256)
def norm_parameters(architecture: Architecture) -> int:
    """Gains, and biases of layer norms: two norms a layer (four around a sandwich), those of heads, the last one."""
    a = architecture
    placed = {"sandwich": 4, "parallel": 1}.get(a.norm_placement, 2)
    values = {"head": 2 * a.head_dim, "full": (a.attention_heads + a.key_value_heads) * a.head_dim}.get(a.qk_norm, 0)
    one = 2 if a.norm == "layernorm" and a.family != "cohere" else 1
    return one * ((a.layers * placed + 1) * a.hidden_size + a.layers * values)


@lru_cache(maxsize=256)
def adapted_modules(architecture: Architecture, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Which of the seven linears of a block get an adapter, and `EXPERTS` where peft adapts the fused experts as well
    (it does for "all-linear")."""
    plain = architecture.mlp_kind != "gated"
    feed_forward = _FEED_FORWARD[1:] if plain else _FEED_FORWARD
    possible = _ATTENTION if _experts_everywhere(architecture) else _ATTENTION + feed_forward
    if targets == ("all-linear",):
        return possible if architecture.moe is None else (*possible, EXPERTS)
    wanted = {name for target in targets for name in _FUSED_NAMES.get(target, (target,))}
    return tuple(name for name in possible if name in wanted)


def _experts_everywhere(architecture: Architecture) -> bool:
    moe = architecture.moe
    return moe is not None and moe.moe_layers >= architecture.layers and not moe.shared_intermediate_size


@dataclass(frozen=True, slots=True)
class Linear:
    """One adapted linear layer of a block."""

    name: str
    inputs: int
    outputs: int


@lru_cache(maxsize=512)
def adapted_linears(architecture: Architecture, targets: tuple[str, ...]) -> tuple[Linear, ...]:
    """The linear layers of one block that get an adapter; fused layers (Phi-3, GPT-NeoX, Falcon) are one each."""
    s, f = shape_of(architecture), architecture.intermediate_size
    modules = set(adapted_modules(architecture, targets))
    if architecture.family in FUSED_ATTENTION:
        linears: list[tuple[tuple[str, ...], str, int, int]] = [
            (_ATTENTION[:3], "qkv", s.hidden, s.query + 2 * s.key_value)
        ]
    else:
        linears = [
            (("q_proj",), "q_proj", s.hidden, s.query),
            (("k_proj",), "k_proj", s.hidden, s.key_value),
            (("v_proj",), "v_proj", s.hidden, s.key_value),
        ]
    linears.append((("o_proj",), "o_proj", s.query, s.hidden))
    if architecture.family in FUSED_GATES:
        linears.append((("gate_proj", "up_proj"), "gate_up", s.hidden, 2 * f))
    else:
        linears += [(("gate_proj",), "gate_proj", s.hidden, f), (("up_proj",), "up_proj", s.hidden, f)]
    linears.append((("down_proj",), "down_proj", f, s.hidden))
    return tuple(
        Linear(name, inputs, outputs) for parts, name, inputs, outputs in linears if modules.intersection(parts)
    )


FUSED_GATES = ("phi3", "glm4")
"""Families with one matrix for gate and up."""

FUSED_ATTENTION = ("phi3", "gpt_neox", "falcon")
"""Families with one matrix for query, key and value."""


@lru_cache(maxsize=512)
def adapter_parameters(architecture: Architecture, targets: tuple[str, ...], rank: int) -> int:
    """A = L · Σ r·(in + out) over the adapted linears; experts see `expert_adapter_parameters`."""
    moe, layers = architecture.moe, architecture.layers
    total = 0
    for linear in adapted_linears(architecture, targets):
        dense = moe is not None and linear.name in _FEED_FORWARD
        count = layers - moe.moe_layers if dense and moe is not None else layers
        total += count * (linear.inputs + linear.outputs)
        if dense and moe is not None and moe.shared_intermediate_size:
            total += moe.moe_layers * (architecture.hidden_size + moe.shared_intermediate_size)
    if moe is not None and EXPERTS in adapted_modules(architecture, targets):
        total += moe.moe_layers * expert_adapter_ranks(architecture)
    return rank * total


def expert_adapter_ranks(architecture: Architecture) -> int:
    """Σ (in + out) of one mixture layer per unit of rank: 2·E·(h + 2f) for gate and up, E·(f + h) for down, h + E for
    the router. Source: peft 0.21, which doubles the rank of the fused gate and up."""
    moe = architecture.moe
    if moe is None:
        return 0
    h, f, experts = architecture.hidden_size, moe.expert_intermediate_size, moe.experts
    return 2 * experts * (h + 2 * f) + experts * (f + h) + h + experts


@lru_cache(maxsize=512)
def magnitude_parameters(architecture: Architecture, targets: tuple[str, ...]) -> int:
    """L · Σ out: DoRA learns one magnitude per output."""
    return architecture.layers * sum(linear.outputs for linear in adapted_linears(architecture, targets))
