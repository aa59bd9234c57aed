"""LayerNorm families: variants that no rule covers are refused by the key that asks for them; names without prefix."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import EngineError
from engine.expansion.axes import Role
from engine.expansion.layouts import layout_for

SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "opt", **SIZES, "do_layer_norm_before": False}, "do_layer_norm_before"),
        ({"model_type": "opt", **SIZES, "word_embed_proj_dim": 32}, "word_embed_proj_dim"),
        ({"model_type": "opt", **SIZES, "_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        ({"model_type": "bloom", **SIZES, "apply_residual_connection_post_layernorm": True}, "post_layernorm"),
        ({"model_type": "falcon", **SIZES, "new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
        ({"model_type": "gpt2", "n_embd": 64, "n_head": 4, "add_cross_attention": True}, "add_cross_attention"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_variant_without_rules_is_refused_by_its_key(config: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError) as caught:
        layout_for(config, "model")
    assert caught.value.code == "expansion.trait"
    assert words in caught.value.cause


def test_a_net_that_normalises_the_stream_itself_is_refused_by_name() -> None:
    with pytest.raises(EngineError) as caught:
        layout_for({"model_type": "openai-gpt", "n_embd": 64}, "model")
    assert caught.value.code == "expansion.family"
    assert "normalises the stream itself" in caught.value.cause
    assert "openai-gpt" in caught.value.cause.lower()


def test_a_wrong_list_of_attention_types_is_refused() -> None:
    config = {"model_type": "gpt_neo", "hidden_size": 64, "num_layers": 4, "num_heads": 4}
    with pytest.raises(EngineError, match="attention_types"):
        layout_for(config | {"attention_types": [[["global"], 3]]}, "model")
    layout = layout_for(config | {"attention_types": [[["global", "local"], 2]]}, "model")
    assert layout.per_layer["attention_layers"] == ("global", "local", "global", "local")
    assert layout.traits.layer_period == 2


def test_names_are_found_with_and_without_their_prefix() -> None:
    layout = layout_for({"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4}, "model")
    whole, bare = layout.find("transformer.h.1.attn.c_attn.weight"), layout.find("h.1.attn.c_attn.weight")
    assert whole is not None
    assert bare is not None
    assert (bare.layer, bare.rule.role, bare.rule.pattern) == (1, Role.READ, "h.{i}.attn.c_attn.weight")
    assert layout.is_ignored("h.0.attn.bias")
    assert not layout.is_ignored("h.0.attn.c_attn.bias")


def test_norms_of_single_heads_are_counted_by_their_heads() -> None:
    config = {"model_type": "stablelm", **SIZES, "num_key_value_heads": 2, "intermediate_size": 96}
    match = layout_for(config | {"qk_layernorm": True}, "model").find(
        "model.layers.1.self_attn.k_layernorm.norms.1.weight"
    )
    assert match is not None
    assert (match.layer, match.head, match.rule.counted, match.rule.role) == (1, 1, "kv_heads", Role.HEAD_GAIN)
