"""Layouts read a config as transformers does: defaults, derived lists, and the sizes its classes refuse."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from engine.errors import EngineError
from engine.expansion.layout import Layout
from engine.expansion.layouts import known_families, layout_for
from tests.support.rms_nets import NETS

RMS_FAMILIES = sorted({net.model_type for net in NETS.values()})
INCOMPLETE = {"dots1": "n_routed_experts", "glm4_moe": "num_attention_heads"}
"""Families whose class has no default for a size, and the key that must be named then."""
FIELDS = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "vocab": ("vocab_size",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "experts_per_token": ("num_experts_per_tok", "moe_topk", "moe_k"),
}


def meant(config: Any, field: str) -> int:
    return next((int(getattr(config, key)) for key in FIELDS[field] if getattr(config, key, None) is not None), 0)


@pytest.mark.parametrize("model_type", [name for name in RMS_FAMILIES if name not in INCOMPLETE])
def test_an_empty_config_means_what_the_class_means(model_type: str) -> None:
    config = transformers.AutoConfig.for_model(model_type)
    layout = layout_for({"model_type": model_type}, model_type)
    sizes = {field: getattr(layout.dims, field) for field in FIELDS}
    assert sizes == {field: meant(config, field) if sizes[field] else 0 for field in FIELDS}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert layout.dims.head_dim == head_dim
    assert layout.traits.tied == config.tie_word_embeddings
    assert layout.epsilon == config.rms_norm_eps
    for key, entries in layout.per_layer.items():
        assert list(entries) == list(getattr(config, key)), key
    assert (layout.dims.ffn or layout.dims.expert_ffn) in (
        config.intermediate_size if hasattr(config, "intermediate_size") else 0,
        getattr(config, "moe_intermediate_size", 0),
    )


@pytest.mark.parametrize(("model_type", "key"), INCOMPLETE.items())
def test_a_size_without_a_default_is_named(model_type: str, key: str) -> None:
    with pytest.raises(EngineError) as missing:
        layout_for({"model_type": model_type}, model_type)
    assert key in missing.value.what


def refuses_odd_hidden(model_type: str, layout: Layout) -> bool:
    """Whether the class refuses a hidden size that its heads do not divide, the head size being given."""
    sizes = {"hidden_size": 8 * 5 + 1, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8}
    more = {"n_shared_experts": 1} if model_type == "dots1" else {}
    try:
        transformers.AutoConfig.for_model(model_type, **sizes, **more)
    except Exception as error:
        return "multiple" in str(error)
    return False


@pytest.mark.parametrize("model_type", RMS_FAMILIES)
def test_the_divisor_rule_of_the_config_class_is_known(model_type: str) -> None:
    net = next(net for net in NETS.values() if net.model_type == model_type)
    layout = layout_for(transformers.AutoConfig.for_model(model_type, **net.options).to_dict(), model_type)
    assert layout.traits.heads_divide_hidden == refuses_odd_hidden(model_type, layout)


def test_every_decoder_of_this_transformers_is_described_or_refused_with_a_reason() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS

    from engine.expansion.layouts import refused_families

    assert set(known_families()) <= set(DECODERS)
    assert not set(known_families()) & set(refused_families())
    silent = set(DECODERS) - set(known_families()) - set(refused_families())
    for model_type in silent:
        with pytest.raises(EngineError, match="cannot be expanded"):
            layout_for({"model_type": model_type}, model_type)
