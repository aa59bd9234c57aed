"""What `inspect` says can grow: from traits, and a refusal with the reason for what no rule understands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineError
from engine.expansion.checks import Wish, plan_for
from engine.expansion.layouts import layout_for, refused_families
from engine.expansion.support import AXES, expansion_support
from scaler_tui.cli import main

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
NEOX = LLAMA | {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}
GEMMA = LLAMA | {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 16}
MIXTURE = LLAMA | {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def test_every_axis_of_a_llama_can_grow_exactly() -> None:
    found = expansion_support(LLAMA, "model")
    assert found.refused == ""
    for axis in AXES:
        support = getattr(found, axis)
        assert support.supported, axis
        assert support.exact, axis
        assert support.constraint, axis


def test_constraints_follow_the_traits() -> None:
    assert "multiples of the number of heads" in expansion_support(LLAMA, "x").hidden.constraint
    assert "together with heads: multiples of the head size 16" in expansion_support(NEOX, "x").hidden.constraint
    assert "periods of 2" in expansion_support(GEMMA, "x").depth.constraint
    assert "whole multiples of 4" in expansion_support(MIXTURE, "x").experts.constraint
    assert "mixtral" in expansion_support(LLAMA, "x").experts.constraint


def test_what_cannot_grow_has_a_reason() -> None:
    assert "attention_bias" in expansion_support(LLAMA | {"attention_bias": True}, "x").experts.reason
    found = expansion_support(GEMMA, "x").experts
    assert not found.supported
    assert "no family of mixtures" in found.reason


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        (LLAMA | {"model_type": "hal9000"}, None, "hal9000"),
        (LLAMA | {"residual_multiplier": 0.2}, None, "residual_multiplier"),
        (LLAMA | {"clip_qkv": 8.0}, None, "clip_qkv"),
        (LLAMA | {"quantization_config": {"quant_method": "awq"}}, None, "quantised"),
        (LLAMA, ("model.norm.weight", "model.layers.0.self_attn.sinks"), "model.layers.0.self_attn.sinks"),
        ({"model_type": "gemma3", "text_config": GEMMA}, None, "multimodal"),
        (LLAMA | {"num_attention_heads": 0}, None, "num_attention_heads"),
    ],
)
def test_what_no_rule_understands_is_refused_whole(
    config: dict[str, Any], tensors: tuple[str, ...] | None, words: str
) -> None:
    found = expansion_support(config, "model", tensors)
    assert words in found.refused
    assert not any(getattr(found, axis).supported for axis in AXES)


PUBLISHED: list[dict[str, Any]] = [
    LLAMA
    | {"model_type": "phi3", "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "embd_pdrop": 0.1,
       "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "partial_rotary_factor": 0.75},
    LLAMA
    | {"model_type": "starcoder2", "mlp_type": "default", "norm_type": "layer_norm", "norm_epsilon": 1e-5,
       "rms_norm_eps": 1e-5, "use_bias": True, "sliding_window": 64, "attention_softmax_in_fp32": True},
    GEMMA
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "cache_implementation": "hybrid",
       "query_pre_attn_scalar": 16, "sliding_window": 64, "sliding_window_size": 64, "_attn_implementation": "eager"},
    LLAMA
    | {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "fp16"},
       "unsloth_version": "2025.1", "_name_or_path": "x", "pretraining_tp": 1, "torch_dtype": "bfloat16"},
    LLAMA | {"model_type": "granite", "attention_multiplier": 0.1, "residual_multiplier": 0.2, "logits_scaling": 8.0,
             "embedding_multiplier": 12.0},
]  # fmt: skip
"""Keys as models on the hub have them."""


@pytest.mark.parametrize("config", PUBLISHED, ids=lambda config: config["model_type"])
def test_keys_of_published_models_are_no_reason_to_refuse(config: dict[str, Any]) -> None:
    assert expansion_support(config, "model").hidden.supported, expansion_support(config, "model").refused


def test_families_refused_by_name_say_why() -> None:
    assert refused_families()
    for name, reason in refused_families().items():
        found = expansion_support({"model_type": name}, "model")
        assert reason.lower()[:30] in found.refused.lower()


@pytest.mark.parametrize("config", [LLAMA, NEOX, GEMMA, MIXTURE])
def test_the_planner_keeps_what_support_promises(config: dict[str, Any]) -> None:
    layout, found = layout_for(config, "x"), expansion_support(config, "x")
    wishes = {
        "hidden": Wish(hidden=128),
        "ffn": Wish(ffn=256),
        "heads": Wish(heads=8),
        "depth": Wish(layers=8),
        "experts": Wish(experts=8),
    }
    for axis, wish in wishes.items():
        support = getattr(found, axis)
        if support.supported:
            assert plan_for(layout, wish, config).exact == support.exact, axis
        else:
            with pytest.raises(EngineError):
                plan_for(layout, wish, config)


def write_model(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_inspect_shows_growth_in_json_and_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "demo", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["expansion"]) == set(AXES)
    assert set(document["expansion"]["hidden"]) == {"supported", "exact", "constraint", "reason"}
    assert document["hidden_size"] == 192, "what was there before is still there"
    assert main(["inspect", "demo"]) == 0
    assert "Growth      hidden: exact" in capsys.readouterr().out
    assert main(["inspect", write_model(tmp_path / "odd", LLAMA | {"residual_multiplier": 0.2})]) == 0
    assert "not possible" in capsys.readouterr().out
