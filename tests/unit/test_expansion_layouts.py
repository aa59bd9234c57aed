"""Layouts: what a config must say, what is refused by name, and what every family's rules have in common."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import EngineError
from engine.expansion.axes import Axis, Dim, Role, Side
from engine.expansion.layout import Layout, Rule
from engine.expansion.layouts import known_families, layout_for, refused_families

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
ALL = known_families()


def layout_of(model_type: str, **more: Any) -> Layout:
    return layout_for({"model_type": model_type, **SIZES, **more}, "model")


def refusal(config: dict[str, Any]) -> EngineError:
    with pytest.raises(EngineError) as refused:
        layout_for(config, "org/model")
    assert "org/model" in refused.value.what
    assert refused.value.next_step
    return refused.value


def test_the_listed_families_are_described() -> None:
    listed = (
        "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 smollm3 olmo2 olmo3 granite glm4 mixtral qwen3_moe"
    )
    more = "stablelm gpt_neox phi falcon starcoder2 cohere"
    assert set(f"{listed} {more}".split()) <= set(ALL)


@pytest.mark.parametrize("model_type", ["", "deepseek_v9", "my_own"])
def test_an_unknown_family_is_refused_and_the_known_ones_are_named(model_type: str) -> None:
    error = refusal({"model_type": model_type, **SIZES})
    assert error.code == "expansion.family"
    assert "llama" in error.next_step


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mamba2", "state-space"),
        ("lfm2", "linear-attention"),
        ("qwen3_next", "linear-attention"),
        ("deepseek_v3", "MLA"),
        ("t5", "encoder"),
        ("whisper", "encoder"),
        ("gemma3n_text", "share"),
        ("diffllama", "layer's number"),
        ("bitnet", "ternary"),
    ],
)
def test_families_beyond_reach_are_refused_with_the_reason(model_type: str, reason: str) -> None:
    error = refusal({"model_type": model_type, **SIZES})
    assert error.code == "expansion.family"
    assert reason in error.cause
    assert model_type in error.cause.lower()


def test_no_family_is_both_described_and_refused() -> None:
    assert not set(ALL) & set(refused_families())


def test_a_multimodal_config_is_refused_with_the_way_out() -> None:
    error = refusal({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **SIZES}})
    assert error.code == "expansion.family"
    assert "save_pretrained" in error.next_step


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("mistral", "attention_bias", True),
        ("qwen2", "use_qk_norm", True),
        ("gemma3_text", "use_bidirectional_attention", True),
        ("olmoe", "clip_qkv", 8.0),
        ("llama", "alibi", True),
        ("ernie4_5_moe", "use_bias", True),
        ("qwen3_moe", "num_nextn_predict_layers", 1),
    ],
)
def test_a_switch_that_no_rule_covers_ends_in_a_refusal(model_type: str, key: str, value: object) -> None:
    error = refusal({"model_type": model_type, **SIZES, key: value})
    assert error.code == "expansion.trait"
    assert key in error.cause
    assert layout_of(model_type, **{key: None}).family


@pytest.mark.parametrize("model_type", ALL)
def test_every_family_can_close_its_branches_and_end_its_stream(model_type: str) -> None:
    layout = layout_of(model_type)
    roles = {rule.role for rule in layout.rules}
    assert Role.EMBEDDING in roles
    assert any(rule.closes for rule in layout.rules)
    closing = {Role.WRITE, Role.WRITE_BIAS, Role.POST_GAIN}
    assert {rule.role for rule in layout.rules if rule.closes} <= closing
    if layout.traits.placement in ("post", "sandwich"):
        assert all(rule.closes == (rule.role is Role.POST_GAIN) for rule in layout.rules)


def touches_stream(rule: Rule, side: Side) -> bool:
    return any(isinstance(axis, Axis) and axis.dim is Dim.HIDDEN and axis.side is side for axis in rule.axes)


@pytest.mark.parametrize("model_type", ALL)
def test_what_a_tensor_does_with_the_stream_agrees_with_its_role(model_type: str) -> None:
    layout = layout_of(model_type)
    patterns = [rule.pattern for rule in layout.rules]
    assert len(patterns) == len(set(patterns))
    for rule in layout.rules:
        if rule.role in (Role.WRITE, Role.WRITE_BIAS, Role.EMBEDDING, Role.POSITIONS):
            assert touches_stream(rule, Side.OUT), rule
        if rule.role in (Role.READ, Role.RAW_READ, Role.ROUTER, Role.HEAD):
            assert touches_stream(rule, Side.IN), rule
        if rule.role in (Role.PRE_GAIN, Role.POST_GAIN, Role.FINAL_GAIN):
            assert touches_stream(rule, Side.ALONG), rule
        if rule.role is Role.INNER and "hidden" not in layout.unsupported:
            assert not any(touches_stream(rule, side) for side in Side), rule


@pytest.mark.parametrize("model_type", ALL)
def test_per_layer_lists_have_an_entry_for_every_layer(model_type: str) -> None:
    layout = layout_of(model_type)
    assert set(layout.traits.per_layer_keys) == set(layout.per_layer)
    assert all(len(entries) == layout.dims.layers for entries in layout.per_layer.values())


def test_a_list_of_another_length_than_the_layers_is_refused() -> None:
    error = refusal({"model_type": "qwen2", **SIZES, "layer_types": ["full_attention"] * 3})
    assert error.code == "model.config_value"
    assert "layer_types" in error.what


def test_long_context_factors_tie_phi_3_to_its_head_size() -> None:
    rope = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}
    assert layout_of("phi3").traits.head_dim_key
    assert not layout_of("phi3", rope_scaling=rope).traits.head_dim_key


def test_a_checkpoint_without_the_head_class_prefix_is_understood() -> None:
    found = layout_of("qwen3").find("layers.2.self_attn.q_norm.weight")
    assert found is not None
    assert (found.layer, found.rule.role) == (2, Role.HEAD_GAIN)
