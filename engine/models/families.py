"""The model families: how a block of each is built, and what its config means when it leaves keys out.

Owns the facts per family, as one table. Must not know files, tensors, or how parameters are counted.
Defaults are those of the family's own config class in transformers; a test compares all of them with the installed one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.models.config import ConfigReader


@dataclass(frozen=True, slots=True)
class Block:
    """How one layer is built, as far as shapes and counts depend on it."""

    norm: str = "rmsnorm"
    placement: str = "pre"
    norms_per_layer: int = 2
    qk_norm: str = "none"
    qk_norm_per_head: bool = False
    """Each head has its own QK-norm weights (StableLM), instead of sharing one vector."""
    qk_norm_bias: bool = False
    norm_bias: bool = True
    """LayerNorm only: whether norms over the hidden size have a bias (Cohere's have none)."""
    head_bias: bool = False
    """The output head adds one value per token of the vocabulary (Phi)."""
    query_key_value_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    mlp_kind: str = "gated"


@dataclass(frozen=True, slots=True)
class Family:
    """One family: its config classes, its block, and what its config class assumes."""

    name: str
    model_types: tuple[str, ...]
    causal_class: str
    block: Callable[[ConfigReader], Block]
    defaults: Mapping[str, Any]
    sliding: str = "none"
    """Which layers use the window: "none", "all", "flag" (all, when `use_sliding_window`), "late" (from
    `max_window_layers` on), "early" (every other one before it), "alternate", "pattern" (all but every n-th),
    "no-rope" (those without rotary positions)."""
    derived_head_dim: bool = False
    """The head size is always hidden / heads; an explicit `head_dim` is ignored."""
    rope_theta: float = 10_000.0
    local_rope_theta: float | None = None
    unscaled_length: int = 0
    """Context length before the linear scaling that the publisher applied, where configs never say it."""
    partial_rotary: float = 1.0
    mixture: str = "none"
    """ "none", "mixtral" (experts in every layer), "qwen" (sparse steps, own expert size)."""
    known: bool = True
    notes: tuple[str, ...] = field(default=())


def _plain_bias(reader: ConfigReader, **traits: Any) -> Block:
    bias = reader.flag("attention_bias")
    return Block(query_key_value_bias=bias, output_bias=bias, mlp_bias=reader.flag("mlp_bias"), **traits)


def _llama(reader: ConfigReader) -> Block:
    return _plain_bias(reader)


def _biasless(reader: ConfigReader) -> Block:
    return Block()


def _qwen2(reader: ConfigReader) -> Block:
    return Block(query_key_value_bias=True)


def _qwen2_moe(reader: ConfigReader) -> Block:
    return Block(query_key_value_bias=reader.flag("qkv_bias", default=True))


def _attention_bias(reader: ConfigReader, **traits: Any) -> Block:
    bias = reader.flag("attention_bias")
    return Block(query_key_value_bias=bias, output_bias=bias, **traits)


def _gemma(reader: ConfigReader) -> Block:
    return _attention_bias(reader)


def _qwen3(reader: ConfigReader) -> Block:
    return _attention_bias(reader, qk_norm="head")


def _gemma2(reader: ConfigReader) -> Block:
    return _attention_bias(reader, placement="sandwich", norms_per_layer=4)


def _gemma3(reader: ConfigReader) -> Block:
    return _attention_bias(reader, placement="sandwich", norms_per_layer=4, qk_norm="head")


def _olmo2(reader: ConfigReader) -> Block:
    return _attention_bias(reader, placement="post", qk_norm="full")


def _stablelm(reader: ConfigReader) -> Block:
    parallel = reader.flag("use_parallel_residual")
    normed = reader.flag("qk_layernorm")
    return Block(
        norm="layernorm",
        placement="parallel" if parallel else "pre",
        norms_per_layer=1 if parallel else 2,
        qk_norm="head" if normed else "none",
        qk_norm_per_head=normed,
        query_key_value_bias=reader.flag("use_qkv_bias"),
    )


def _gpt_neox(reader: ConfigReader) -> Block:
    bias = reader.flag("attention_bias", default=True)
    return Block(
        norm="layernorm",
        placement="parallel" if reader.flag("use_parallel_residual", default=True) else "pre",
        query_key_value_bias=bias,
        output_bias=bias,
        mlp_bias=True,
        mlp_kind="plain",
    )


def _falcon(reader: ConfigReader) -> Block:
    modern = reader.flag("new_decoder_architecture")
    parallel = reader.flag("parallel_attn", default=True)
    separate = reader.integer("num_ln_in_parallel_attn", default=2 if modern else 1, high=2) == 2
    bias = reader.flag("bias")
    return Block(
        norm="layernorm",
        placement="parallel" if parallel or modern else "pre",
        norms_per_layer=2 if separate or not parallel else 1,
        query_key_value_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        mlp_kind="plain",
    )


def _phi(reader: ConfigReader) -> Block:
    normed = reader.flag("qk_layernorm")
    return Block(
        norm="layernorm",
        placement="parallel",
        norms_per_layer=1,
        qk_norm="head" if normed else "none",
        qk_norm_bias=normed,
        head_bias=True,
        query_key_value_bias=True,
        output_bias=True,
        mlp_bias=True,
        mlp_kind="plain",
    )


def _starcoder2(reader: ConfigReader) -> Block:
    bias = reader.flag("use_bias", default=True)
    return Block(norm="layernorm", query_key_value_bias=bias, output_bias=bias, mlp_bias=bias, mlp_kind="plain")


def _cohere(reader: ConfigReader) -> Block:
    normed = reader.flag("use_qk_norm")
    return _attention_bias(
        reader,
        norm="layernorm",
        norm_bias=False,
        placement="parallel",
        norms_per_layer=1,
        qk_norm="head" if normed else "none",
        qk_norm_per_head=normed,
    )


def _glm4(reader: ConfigReader) -> Block:
    bias = reader.flag("attention_bias", default=True)
    return Block(placement="sandwich", norms_per_layer=4, query_key_value_bias=bias)


def _unknown(reader: ConfigReader) -> Block:
    norm = "layernorm" if reader.has("layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon") else "rmsnorm"
    bias = reader.flag("attention_bias", "use_bias", "bias")
    gated = reader.text("hidden_act", "activation_function", "hidden_activation", default="silu") in ("silu", "swiglu")
    return Block(
        norm=norm,
        query_key_value_bias=bias,
        output_bias=bias,
        mlp_bias=reader.flag("mlp_bias"),
        mlp_kind="gated" if gated else "plain",
    )


def _sizes(
    vocab: int, hidden: int, ffn: int | None, layers: int, heads: int, kv: int | None, context: int, **more: Any
) -> dict[str, Any]:
    """The seven keys every config has; None where the class derives the value."""
    sizes = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": context,
    }
    return {key: value for key, value in (sizes | more).items() if value is not None}


_TIED = {"tie_word_embeddings": True}

FAMILIES: tuple[Family, ...] = (
    Family("llama", ("llama",), "LlamaForCausalLM", _llama, _sizes(32000, 4096, 11008, 32, 32, None, 2048)),
    Family(
        "mistral",
        ("mistral",),
        "MistralForCausalLM",
        _biasless,
        _sizes(32000, 4096, 14336, 32, 32, 8, 131072, sliding_window=4096),
        sliding="all",
    ),
    Family(
        "mixtral",
        ("mixtral",),
        "MixtralForCausalLM",
        _biasless,
        _sizes(32000, 4096, 14336, 32, 32, 8, 131072, num_local_experts=8, num_experts_per_tok=2),
        sliding="all",
        rope_theta=1_000_000.0,
        mixture="mixtral",
    ),
    Family(
        "qwen2",
        ("qwen2",),
        "Qwen2ForCausalLM",
        _qwen2,
        _sizes(151936, 4096, 22016, 32, 32, 32, 32768, sliding_window=4096, max_window_layers=28),
        sliding="late",
    ),
    Family(
        "qwen3",
        ("qwen3",),
        "Qwen3ForCausalLM",
        _qwen3,
        _sizes(151936, 4096, 22016, 32, 32, 32, 32768, head_dim=128, sliding_window=4096, max_window_layers=28),
        sliding="late",
    ),
    Family(
        "qwen2_moe",
        ("qwen2_moe",),
        "Qwen2MoeForCausalLM",
        _qwen2_moe,
        _sizes(
            151936, 2048, 5632, 24, 16, 16, 32768,
            sliding_window=4096, max_window_layers=28, decoder_sparse_step=1, moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632, num_experts_per_tok=4, num_experts=60,
        ),
        sliding="early",
        mixture="qwen",
    ),
    Family(
        "qwen3_moe",
        ("qwen3_moe",),
        "Qwen3MoeForCausalLM",
        _qwen3,
        _sizes(
            151936, 2048, 6144, 24, 32, 4, 32768,
            sliding_window=4096, decoder_sparse_step=1, moe_intermediate_size=768,
            num_experts_per_tok=8, num_experts=128,
        ),
        sliding="flag",
        mixture="qwen",
    ),
    Family(
        "gemma", ("gemma",), "GemmaForCausalLM", _gemma,
        _sizes(256000, 3072, 24576, 28, 16, 16, 8192, head_dim=256) | _TIED,
    ),
    Family(
        "gemma2",
        ("gemma2",),
        "Gemma2ForCausalLM",
        _gemma2,
        _sizes(256000, 2304, 9216, 26, 8, 4, 8192, head_dim=256, sliding_window=4096) | _TIED,
        sliding="alternate",
    ),
    Family(
        "gemma3",
        ("gemma3_text", "gemma3"),
        "Gemma3ForCausalLM",
        _gemma3,
        _sizes(262208, 2304, 9216, 26, 8, 4, 131072, head_dim=256, sliding_window=4096) | _TIED,
        sliding="pattern",
        rope_theta=1_000_000.0,
        local_rope_theta=10_000.0,
        unscaled_length=32_768,
    ),
    Family(
        "phi3",
        ("phi3",),
        "Phi3ForCausalLM",
        _biasless,
        _sizes(32064, 3072, 8192, 32, 32, None, 4096, original_max_position_embeddings=4096),
        sliding="all",
    ),
    Family(
        "smollm3",
        ("smollm3",),
        "SmolLM3ForCausalLM",
        _llama,
        _sizes(128256, 2048, 11008, 36, 16, 4, 32768, no_rope_layer_interval=4) | _TIED,
        sliding="no-rope",
        rope_theta=2_000_000.0,
    ),
    Family("olmo2", ("olmo2",), "Olmo2ForCausalLM", _olmo2, _sizes(50304, 4096, 11008, 32, 32, None, 2048)),
    Family(
        "olmo3",
        ("olmo3",),
        "Olmo3ForCausalLM",
        _olmo2,
        _sizes(50304, 4096, 11008, 32, 32, None, 2048, sliding_window=4096, sliding_window_pattern=4),
        sliding="pattern",
        rope_theta=500_000.0,
        local_rope_theta=500_000.0,
    ),
    Family(
        "glm4",
        ("glm4",),
        "Glm4ForCausalLM",
        _glm4,
        _sizes(151552, 4096, 13696, 40, 32, 2, 131072, head_dim=128),
        partial_rotary=0.5,
    ),
    Family(
        "cohere",
        ("cohere",),
        "CohereForCausalLM",
        _cohere,
        _sizes(256000, 8192, 22528, 40, 64, None, 8192) | _TIED,
        rope_theta=500_000.0,
    ),
    Family(
        "starcoder2",
        ("starcoder2",),
        "Starcoder2ForCausalLM",
        _starcoder2,
        _sizes(49152, 3072, 12288, 30, 24, 2, 4096) | _TIED,
        sliding="all",
    ),
    Family(
        "phi", ("phi",), "PhiForCausalLM", _phi, _sizes(51200, 2048, 8192, 24, 32, None, 2048), partial_rotary=0.5
    ),
    Family(
        "stablelm",
        ("stablelm",),
        "StableLmForCausalLM",
        _stablelm,
        _sizes(50304, 2560, 6912, 32, 32, 32, 4096),
        derived_head_dim=True,
        partial_rotary=0.25,
    ),
    Family(
        "gpt_neox",
        ("gpt_neox",),
        "GPTNeoXForCausalLM",
        _gpt_neox,
        _sizes(50432, 6144, 24576, 44, 64, None, 2048),
        derived_head_dim=True,
        partial_rotary=0.25,
    ),
    Family("granite", ("granite",), "GraniteForCausalLM", _llama, _sizes(32000, 4096, 11008, 32, 32, None, 2048)),
    Family(
        "falcon",
        ("falcon",),
        "FalconForCausalLM",
        _falcon,
        _sizes(65024, 4544, None, 32, 71, None, 2048, multi_query=True, parallel_attn=True) | _TIED,
        derived_head_dim=True,
    ),
)  # fmt: skip

UNKNOWN = Family("unknown", (), "", _unknown, _TIED, known=False)

_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}
_BY_CLASS = {family.causal_class: family for family in FAMILIES}


def find_family(model_type: str, class_name: str = "") -> Family:
    """The family of a config's `model_type`, else of its class; `UNKNOWN` when neither is in the table."""
    return _BY_TYPE.get(model_type) or (_BY_CLASS.get(class_name) if not model_type else None) or UNKNOWN
