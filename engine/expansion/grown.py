"""A larger model as an `Architecture`, so that everything which estimates models can estimate it.

Owns the translation between expansion's sizes and the analyzer's. Must not know how a plan was chosen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.expansion.axes import Dims
from engine.expansion.config_mixture import MIXTURES
from engine.models.architecture import Architecture, Moe

_ATTENTION_BIAS = frozenset(
    ("llama", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3", "olmo2", "smollm3", "granite", "gpt_neox")
)
_MLP_BIAS = frozenset(("llama", "smollm3", "granite"))
_OTHER_BIAS = {"qwen2_moe": "qkv_bias", "stablelm": "use_qkv_bias", "falcon": "bias"}


def grown_architecture(base: Architecture, after: Dims, parameters: int, target_family: str = "") -> Architecture:
    """`base` with the sizes `after`; a dense model turned into a mixture takes that family's name and class."""
    moe = _mixture(base, after)
    sliding = round(base.sliding_layers * after.layers / max(base.layers, 1))
    grown = replace(
        base,
        layers=after.layers,
        hidden_size=after.hidden,
        intermediate_size=after.ffn or base.intermediate_size,
        attention_heads=after.heads,
        key_value_heads=after.kv_heads,
        head_dim=after.head_dim,
        moe=moe,
        sliding_layers=min(sliding, after.layers),
        parameters=parameters,
        parameters_source="config",
        weight_bytes=2 * parameters,
    )
    if not target_family:
        return grown
    return replace(grown, family=target_family, architecture=MIXTURES[target_family].causal_class)


def _mixture(base: Architecture, after: Dims) -> Moe | None:
    if not after.experts:
        return None
    old = base.moe
    if old is None:
        return Moe(after.experts, after.experts_per_token, after.expert_ffn, moe_layers=after.layers)
    share = old.moe_layers / max(base.layers, 1)
    return replace(
        old,
        experts=after.experts,
        experts_per_token=after.experts_per_token,
        expert_intermediate_size=after.expert_ffn or old.expert_intermediate_size,
        shared_intermediate_size=after.shared_ffn or old.shared_intermediate_size,
        moe_layers=round(after.layers * share),
    )


def config_of(base: Architecture) -> dict[str, Any]:
    """A config that says what the analyzer knows, for models of which only the shape is known."""
    config: dict[str, Any] = {
        "model_type": {"gemma3": "gemma3_text"}.get(base.family, base.family),
        "hidden_size": base.hidden_size,
        "num_hidden_layers": base.layers,
        "num_attention_heads": base.attention_heads,
        "num_key_value_heads": base.key_value_heads,
        "head_dim": base.head_dim,
        "vocab_size": base.vocab_size,
        "intermediate_size": base.intermediate_size,
        "max_position_embeddings": base.context_length,
        "tie_word_embeddings": base.tied_embeddings,
    }
    return config | _biases(base) | _family_keys(base)


def _biases(base: Architecture) -> dict[str, Any]:
    """Biases under the names that the family reads; some have them without a key."""
    if base.family in _ATTENTION_BIAS:
        more = {"mlp_bias": base.mlp_bias} if base.family in _MLP_BIAS else {}
        return {"attention_bias": base.attention_bias, **more}
    key = _OTHER_BIAS.get(base.family)
    return {key: base.attention_bias} if key else {}


def _family_keys(base: Architecture) -> dict[str, Any]:
    """What single families call otherwise."""
    if base.family == "falcon":
        return {
            "ffn_hidden_size": base.intermediate_size,
            "num_kv_heads": base.key_value_heads,
            "new_decoder_architecture": 1 < base.key_value_heads < base.attention_heads,
            "multi_query": base.key_value_heads == 1,
        }
    if base.family in ("stablelm", "gpt_neox"):
        return {"use_parallel_residual": base.norm_placement == "parallel"}
    if base.moe is None:
        return {}
    moe = base.moe
    experts = "num_local_experts" if base.family == "mixtral" else "num_experts"
    keys: dict[str, Any] = {experts: moe.experts, "num_experts_per_tok": moe.experts_per_token}
    if base.family == "mixtral":
        return keys | {"intermediate_size": moe.expert_intermediate_size}
    dense = base.layers - moe.moe_layers
    return keys | {
        "moe_intermediate_size": moe.expert_intermediate_size,
        "shared_expert_intermediate_size": moe.shared_intermediate_size,
        "mlp_only_layers": list(range(dense)),
    }
