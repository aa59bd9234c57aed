"""What cannot be extended is refused with the reason and a way out; values that cannot be never reach a formula."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.context.export import config_after
from engine.context.method import Options
from engine.context.planner import applicable, plan_context, read_rotaries, read_window
from engine.errors import EngineError
from tests.support.published_configs import PUBLISHED
from tests.support.rope_configs import GEMMA3, rope, small

LLAMA = small("llama", hidden_size=128)
NAN = float("nan")


def refusal(config: dict[str, Any], target: int = 1024, method: str = "ntk", **options: Any) -> EngineError:
    with pytest.raises(EngineError) as caught:
        plan_context(config, target, method, Options(**options))
    error = caught.value
    assert error.next_step, "a refusal names a way out"
    return error


def scaled_config(**settings: Any) -> dict[str, Any]:
    return LLAMA | {"rope_parameters": {"rope_theta": 1e4, **settings}}


GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024, "vocab_size": 96}
FALCON = small("falcon", alibi=True, hidden_size=256)
DEEPSEEK = small("deepseek_v3", kv_lora_rank=16, qk_rope_head_dim=8)


@pytest.mark.parametrize(
    ("config", "code", "said"),
    [
        (GPT2, "context.not_rotary", "trained table"),
        (FALCON, "context.not_rotary", "ALiBi"),
        ({"model_type": "bloom", "n_embed": 64, "n_layer": 2, "n_head": 4}, "context.not_rotary", "ALiBi"),
        ({"model_type": "mpt", "d_model": 64, "n_layers": 2, "n_heads": 4}, "context.not_rotary", "ALiBi"),
        ({"model_type": "mamba", "hidden_size": 64}, "context.not_rotary", "recurrent"),
        ({"model_type": "gptj", "n_embd": 64, "rotary_dim": 16}, "context.not_rotary", "fixed constants"),
        ({"model_type": "something_new", "hidden_size": 64}, "context.not_rotary", "no rotary settings"),
        (DEEPSEEK, "context.latent_attention", "latent attention"),
        (small("cohere2", sliding_window=64), "context.local_rotary", "limited window"),
        (small("zamba2", attention_head_dim=32), "context.head_dim", "attention_head_dim"),
        (small("llama", partial_rotary_factor=0.5), "context.partial_rotary", "partial_rotary_factor"),
        (small("llama", head_dim=31), "context.head_dim", "31 rotated dimensions"),
        (small("llama", head_dim=2), "context.head_dim", "2 rotated dimensions"),
        (small("llama", theta=1.0), "context.theta", "no slow pairs"),
        (small("llama", theta=NAN), "model.config_value", "rope_theta"),
        (small("llama", theta="many"), "model.config_value", "rope_theta"),  # type: ignore[arg-type]
        (small("llama", theta=-5.0), "model.config_value", "rope_theta"),
        (scaled_config(rope_type="proportional"), "context.rope_type", "proportional"),
        (scaled_config(rope_type="axial"), "context.rope_type", "axial"),
        (scaled_config(rope_type=["yarn"]), "model.config_value", "rope_type"),
        (scaled_config(rope_type="yarn", factor=NAN), "model.config_value", "factor"),
        (scaled_config(rope_type="yarn"), "model.config_incomplete", "factor"),
        (scaled_config(rope_type="linear", factor=0.5), "model.config_value", "factor"),
        (scaled_config(rope_type="yarn", factor=2.0, beta_fast=0.5), "context.option", "beta_fast"),
        (scaled_config(rope_type="longrope", factor=2.0, short_factor=[1.0]), "model.config_value", "long_factor"),
        (scaled_config(rope_type="longrope", short_factor=[1.0] * 3, long_factor=[2.0] * 3), "context.option", "16"),
        (scaled_config(hybrid=rope(1e4)), "context.layer_types", "hybrid"),
    ],
)
def test_models_that_cannot_be_extended_are_refused(config: dict[str, Any], code: str, said: str) -> None:
    error = refusal(config)
    assert error.code == code
    assert said in f"{error.what} {error.cause}"


@pytest.mark.parametrize("target", [0, -5, 255, 256])
def test_a_target_within_the_window_is_refused(target: int) -> None:
    error = refusal(LLAMA, target)
    assert error.code == "context.target"
    assert "256" in error.what


@pytest.mark.parametrize(
    ("config", "target", "code"),
    [
        (LLAMA, 64 * 256 + 1, "context.factor"),
        (LLAMA | {"max_position_embeddings": 1 << 20}, (1 << 22) + 1, "context.target"),
    ],
)
def test_absurd_lengths_are_refused(config: dict[str, Any], target: int, code: str) -> None:
    assert refusal(config, target).code == code


@pytest.mark.parametrize("factor", [0.5, 1.0, 0.0, -4.0, NAN, float("inf"), 1e6])
def test_a_factor_that_stretches_nothing_or_everything_is_refused(factor: float) -> None:
    assert refusal(LLAMA, factor=factor).code == "context.factor"


def test_a_factor_that_contradicts_the_length_is_refused_where_the_config_states_both() -> None:
    error = refusal(LLAMA, 1024, "yarn", factor=8.0)
    assert error.code == "context.factor"
    assert "2,048" in error.next_step
    assert plan_context(LLAMA, 1024, "yarn", Options(factor=4.0)).factor == 4
    assert plan_context(LLAMA, 1024, "ntk", Options(factor=8.0)).scaled.scaling.divisors[-1] == pytest.approx(8)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("abf", {"theta": 5e3}),
        ("abf", {"theta": 0.0}),
        ("abf", {"theta": NAN}),
        ("abf", {"theta": float("inf")}),
        ("ntk-critical", {"critical_pair": 0}),
        ("ntk-critical", {"critical_pair": 16}),
        ("yarn", {"beta_fast": 1.0}),
        ("yarn", {"beta_slow": NAN}),
        ("yarn", {"attention_factor": 0.0}),
        ("yarn", {"attention_factor": NAN}),
        ("llama3", {"high_freq_factor": 1.0}),
        ("llama3", {"low_freq_factor": 0.0}),
        ("longrope", {"long_divisors": (2.0,) * 15}),
        ("longrope", {"long_divisors": (2.0,) * 15 + (NAN,)}),
        ("longrope", {"long_divisors": (2.0,) * 15 + (0.0,)}),
        ("longrope", {"long_divisors": (2.0,) * 16, "short_divisors": (1.0,)}),
        ("longrope2", {"long_divisors": (4.0,) * 15 + (3.0,)}),
        ("longrope2", {"long_divisors": (-4.0,) * 10}),
    ],
)
def test_options_out_of_range_are_refused(method: str, options: dict[str, Any]) -> None:
    assert refusal(LLAMA, 1024, method, **options).code == "context.option"


@pytest.mark.parametrize("method", ["longrope", "longrope2"])
def test_searched_methods_ask_for_the_search(method: str) -> None:
    error = refusal(LLAMA, 1024, method)
    assert error.code == "context.needs_search"
    assert "ntk-critical" in error.next_step


def test_an_unknown_method_is_refused_with_those_that_exist() -> None:
    error = refusal(LLAMA, 1024, "magic")
    assert error.code == "context.method"
    assert "yarn" in error.next_step


@pytest.mark.parametrize(
    ("settings", "method", "alternative"),
    [
        (
            {"rope_type": "longrope", "long_factor": [2.0] * 16, "short_factor": [1.0] * 16},
            "yarn",
            "before its scaling",
        ),
        ({"rope_type": "dynamic", "factor": 2.0}, "ntk", "before its scaling"),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}, "abf", "Take yarn"),
        ({"rope_type": "linear", "factor": 2.0}, "yarn", "Take linear or abf"),
        (
            {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 128},
            "yarn",
            "Take abf or llama3",
        ),
    ],
)
def test_a_scaled_model_is_refused_with_what_can_take_it_further(
    settings: dict[str, Any], method: str, alternative: str
) -> None:
    error = refusal(scaled_config(**settings), 1024, method)
    assert error.code == "context.already_scaled"
    assert alternative in error.next_step


KEYS = (
    "rope_type",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
)
MORE_KEYS = ("mscale_all_dim", "truncate", "short_factor", "long_factor", "low_freq_factor", "rope_theta", "head_dim")
JUNK = (None, 0, -1, 2.5, NAN, float("inf"), 1e308, 10**400, "x", "", [], [1], [None], {}, {"a": 1}, True, [1.0] * 16)
PLACES = (*KEYS, *MORE_KEYS, "partial_rotary_factor", "max_position_embeddings", "rope_parameters", "full_attention")


@given(
    name=st.sampled_from(sorted(PUBLISHED)),
    written=st.dictionaries(st.sampled_from(PLACES), st.sampled_from(JUNK), min_size=1, max_size=3),
    inside=st.booleans(),
    method=st.sampled_from(["linear", "by-parts", "yarn", "llama3"]),
)
def test_no_value_in_a_config_ends_in_a_traceback(
    name: str, written: dict[str, Any], inside: bool, method: str
) -> None:
    config = PUBLISHED[name]
    scaling = config.get("rope_scaling") or {"rope_type": "yarn", "factor": 2.0}
    config = config | ({"rope_scaling": scaling | written} if inside else written)
    with contextlib.suppress(EngineError):
        plan = plan_context(config, 2 * read_window(config), method)
        assert read_window(config_after(config, plan)) == plan.target


def test_phimoe_is_offered_base_changes_only() -> None:
    config = small("phimoe", head_dim=32, num_local_experts=2)
    assert refusal(config, 1024, "yarn").code == "context.rope_type"
    assert plan_context(config, 1024, "ntk").factor == 4


def test_every_method_is_listed_with_the_reason_where_it_does_not_apply() -> None:
    assert {method.id: reason for method, reason in applicable(LLAMA, 1024) if reason} == {}
    yarned = scaled_config(rope_type="yarn", factor=2.0, original_max_position_embeddings=128)
    open_methods = [method.id for method, reason in applicable(yarned, 1024) if not reason]
    assert open_methods == ["yarn"]
    with pytest.raises(EngineError):
        applicable(LLAMA, 128)


def test_a_model_with_global_layers_without_positions_has_nothing_to_scale() -> None:
    config = GEMMA3 | {"rope_parameters": {"full_attention": None, "sliding_attention": rope(1e4)}}
    with pytest.raises(EngineError) as caught:
        read_rotaries(config)
    assert caught.value.code == "context.local_rotary"
