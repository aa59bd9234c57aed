"""A config turned into sizes, and sizes turned into an exact parameter count.

Owns the arithmetic. Must not know files or tensors. One function per part of the model, for breakdowns:

    parameters = embeddings + head + final norm
               + layers * (attention + query/key norms + block norms)
               + dense layers * mlp + mixture layers * mixture
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.models.architecture import Moe, Rope
from engine.models.config import LARGEST_LAYER_COUNT, REQUIRED, ConfigReader, architecture_class
from engine.models.families import Block, Family, find_family
from engine.models.rope import read_rope


@dataclass(frozen=True, slots=True)
class Shape:
    """Everything the counts depend on."""

    family: Family
    block: Block
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    context_length: int
    rope: Rope
    moe: Moe | None
    sliding_window: int | None
    sliding_layers: int
    notes: tuple[str, ...]

    @property
    def query_width(self) -> int:
        """Output width of the query projection."""
        return self.heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Output width of the key projection, and of the value projection."""
        return self.key_value_heads * self.head_dim


def read_shape(tree: Mapping[str, Any], name: str) -> Shape:
    """The sizes in a config (of the text part). Raises EngineError naming the key that cannot be."""
    bare = ConfigReader(tree, name)
    class_name = architecture_class(tree)
    family = find_family(bare.text("model_type"), class_name)
    reader = ConfigReader(tree, name, family.defaults)
    block = family.block(reader)
    layers = reader.integer("num_hidden_layers", "n_layer", "n_layers", "num_layers", high=LARGEST_LAYER_COUNT)
    hidden = reader.integer("hidden_size", "n_embd", "n_embed", "d_model")
    context = reader.integer(
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        default=REQUIRED if family.known else 0,
        low=1 if family.known else 0,
    )
    heads, key_value_heads, head_dim = _attention_sizes(reader, family, hidden)
    rope, rope_notes = read_rope(reader, family, context)
    moe, moe_notes = _mixture(reader, family, layers)
    window, sliding_layers, window_notes = _sliding(reader, family, layers, context)
    unknown = () if family.known else _unknown_notes(bare.text("model_type"), class_name)
    return Shape(
        family=family,
        block=block,
        layers=layers,
        hidden=hidden,
        intermediate=_intermediate(reader, family, hidden),
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        vocabulary=reader.integer("vocab_size"),
        tied=reader.flag("tie_word_embeddings"),
        context_length=context,
        rope=rope,
        moe=moe,
        sliding_window=window,
        sliding_layers=sliding_layers,
        notes=(*unknown, *rope_notes, *moe_notes, *window_notes, *_no_rope_notes(reader, family, layers)),
    )


def _intermediate(reader: ConfigReader, family: Family, hidden: int) -> int:
    keys = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "d_ff")
    if family.name == "falcon":
        return reader.integer("ffn_hidden_size", default=4 * hidden)
    return reader.integer(*keys, default=REQUIRED if family.known else 4 * hidden)


def _attention_sizes(reader: ConfigReader, family: Family, hidden: int) -> tuple[int, int, int]:
    """Query heads, key/value heads, head size."""
    low = 1 if family.known else 0
    heads = reader.integer(
        "num_attention_heads", "n_head", "n_heads", "num_heads", default=REQUIRED if family.known else 0, low=low
    )
    if reader.raw("head_dim") is not None and not family.derived_head_dim:
        head_dim = reader.integer("head_dim")
    elif heads and hidden % heads:
        raise reader.wrong("num_attention_heads", heads, f"a divisor of hidden_size {hidden} (no head_dim is given)")
    else:
        head_dim = hidden // heads if heads else 0
    if family.name == "falcon":
        key_value_heads = _falcon_key_value_heads(reader, heads)
    elif family.name == "gpt_neox":
        key_value_heads = heads
    else:
        key_value_heads = reader.integer("num_key_value_heads", "num_kv_heads", default=heads, low=low)
    if key_value_heads and heads % key_value_heads:
        raise reader.wrong("num_key_value_heads", key_value_heads, f"a divisor of the {heads} attention heads")
    return heads, key_value_heads, head_dim


def _falcon_key_value_heads(reader: ConfigReader, heads: int) -> int:
    if reader.flag("new_decoder_architecture"):
        return reader.integer("num_kv_heads", "n_head_kv", default=heads)
    return 1 if reader.flag("multi_query", default=True) else heads


def _mixture(reader: ConfigReader, family: Family, layers: int) -> tuple[Moe | None, tuple[str, ...]]:
    if family.mixture == "mixtral":
        experts = reader.integer("num_local_experts", "num_experts")
        per_token = reader.integer("num_experts_per_tok")
        return Moe(experts, per_token, reader.integer("intermediate_size"), moe_layers=layers), ()
    if family.mixture == "qwen":
        return _qwen_mixture(reader, family, layers), ()
    experts = reader.integer("num_experts", "num_local_experts", "n_routed_experts", default=0, low=0)
    if family.known or experts < 2:
        return None, ()
    moe = Moe(
        experts,
        reader.integer("num_experts_per_tok", "num_experts_per_token", default=1),
        reader.integer("moe_intermediate_size", "intermediate_size", default=0, low=0),
        moe_layers=layers,
    )
    return moe, ("It has experts; that every layer is a mixture layer is assumed.",)


def _qwen_mixture(reader: ConfigReader, family: Family, layers: int) -> Moe | None:
    experts = reader.integer("num_experts", "num_local_experts", low=0)
    step = reader.integer("decoder_sparse_step", low=0)
    dense = reader.items("mlp_only_layers")
    if not all(type(index) is int for index in dense):
        raise reader.wrong("mlp_only_layers", dense, "a list of layer numbers")
    excluded = set(dense)
    sparse = sum(1 for i in range(layers) if step and (i + 1) % step == 0 and i not in excluded) if experts else 0
    if sparse == 0:
        return None
    shared = reader.integer("shared_expert_intermediate_size", low=0) if family.name == "qwen2_moe" else 0
    return Moe(
        experts,
        reader.integer("num_experts_per_tok"),
        reader.integer("moe_intermediate_size"),
        shared_experts=1 if shared else 0,
        shared_intermediate_size=shared,
        moe_layers=sparse,
    )


def _sliding(
    reader: ConfigReader, family: Family, layers: int, context: int
) -> tuple[int | None, int, tuple[str, ...]]:
    """Window, number of layers that use it, notes."""
    if reader.raw("sliding_window") is None:
        return None, 0, ()
    if family.sliding in ("late", "early", "flag", "no-rope") and not reader.flag("use_sliding_window"):
        return None, 0, ()
    window = reader.integer("sliding_window", low=0)
    kinds = reader.items("layer_types")
    if kinds:
        count = sum(1 for kind in kinds if kind == "sliding_attention")
        notes = () if len(kinds) == layers else (_layer_types_note(len(kinds), layers),)
        return (window if count else None), min(count, layers), notes
    if window == 0 or (family.sliding == "all" and context and window >= context):
        return None, 0, ()
    count = _sliding_count(reader, family, layers)
    return (window if count else None), count, ()


def _sliding_count(reader: ConfigReader, family: Family, layers: int) -> int:
    """How many layers the family's own rule gives the window to, when the config does not list them."""
    match family.sliding:
        case "all" | "flag":
            return layers
        case "late":
            return max(layers - reader.integer("max_window_layers", low=0), 0)
        case "early":
            limit = min(reader.integer("max_window_layers", low=0), layers)
            return (limit + 1) // 2
        case "alternate":
            return (layers + 1) // 2
        case "pattern":
            return layers - layers // reader.integer("sliding_window_pattern", default=6)
        case "no-rope":
            return layers - _rotary_layers(reader, layers)
        case _:
            return 0


def _layer_types_note(listed: int, layers: int) -> str:
    return f"'layer_types' lists {listed} layers but the model has {layers}; current loaders refuse that."


def _rotary_layers(reader: ConfigReader, layers: int) -> int:
    """SmolLM3: layers with rotary positions."""
    flags = reader.items("no_rope_layers")
    if flags:
        return sum(1 for rotary in flags[:layers] if rotary)
    interval = reader.integer("no_rope_layer_interval")
    return layers - layers // interval


def _no_rope_notes(reader: ConfigReader, family: Family, layers: int) -> tuple[str, ...]:
    if family.name != "smollm3":
        return ()
    without = layers - _rotary_layers(reader, layers)
    return (f"{without} of the {layers} layers have no rotary positions.",) if without else ()


def _unknown_notes(model_type: str, class_name: str) -> tuple[str, ...]:
    called = model_type or class_name or "no model_type"
    return (
        f"The family ({called[:60]}) is unknown: norm placement, QK-norm, biases and tied embeddings are guessed from "
        "the config's keys, and the parameter arithmetic treats it like a Llama.",
    )


def norm_parameters(shape: Shape) -> int:
    """One norm over the hidden size: a gain, and as a rule a bias for LayerNorm."""
    return shape.hidden * (2 if shape.block.norm == "layernorm" and shape.block.norm_bias else 1)


def attention_parameters(shape: Shape) -> int:
    """Query, key, value and output projections of one layer with their biases and QK-norms."""
    block, query, key_value = shape.block, shape.query_width, shape.key_value_width
    matrices = shape.hidden * (query + 2 * key_value) + query * shape.hidden
    biases = (query + 2 * key_value) * block.query_key_value_bias + shape.hidden * block.output_bias
    if block.qk_norm == "full" or block.qk_norm_per_head:
        return matrices + biases + query + key_value
    return matrices + biases + (2 * shape.head_dim * (1 + block.qk_norm_bias) if block.qk_norm == "head" else 0)


def mlp_parameters(shape: Shape, intermediate: int) -> int:
    """One feed-forward network: gate, up, down (gated) or up, down (plain)."""
    inputs = 2 if shape.block.mlp_kind == "gated" else 1
    bias = (inputs * intermediate + shape.hidden) if shape.block.mlp_bias else 0
    return (inputs + 1) * shape.hidden * intermediate + bias


def mixture_parameters(shape: Shape, moe: Moe) -> int:
    """Router, experts, and the shared expert with its gate."""
    router = moe.experts * shape.hidden
    experts = moe.experts * mlp_parameters(shape, moe.expert_intermediate_size)
    if not moe.shared_experts:
        return router + experts
    return router + experts + mlp_parameters(shape, moe.shared_intermediate_size) + shape.hidden


def count_parameters(shape: Shape) -> int:
    """The whole model, a tied head counted once."""
    ends = shape.vocabulary * shape.hidden * (1 if shape.tied else 2) + norm_parameters(shape)
    ends += shape.vocabulary * shape.block.head_bias
    layer = attention_parameters(shape) + shape.block.norms_per_layer * norm_parameters(shape)
    mixture_layers = shape.moe.moe_layers if shape.moe else 0
    mixture = mixture_layers * mixture_parameters(shape, shape.moe) if shape.moe else 0
    dense = (shape.layers - mixture_layers) * mlp_parameters(shape, shape.intermediate)
    return ends + shape.layers * layer + dense + mixture
