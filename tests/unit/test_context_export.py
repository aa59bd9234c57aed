"""The safe export rule: which keys an extended config has, in both forms, and that both read back as the plan."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.context.export import config_after
from engine.context.lints import cache_goes_stale
from engine.context.method import Options
from engine.context.methods import METHODS
from engine.context.plan import ContextPlan
from engine.context.planner import applicable, plan_context, read_rotaries, read_window
from engine.context.scaling import inverse_frequencies, unscaled
from engine.errors import EngineError
from tests.support.published_configs import PUBLISHED
from tests.support.rope_configs import GEMMA3, OLMO3, SHAPES, rope, small

LLAMA = small("llama", hidden_size=128)
EXPORTED = [method.id for method in METHODS.values() if method.exported]


def planned(config: dict[str, Any], method: str, factor: int = 4, **options: Any) -> ContextPlan:
    pairs = read_rotaries(config)[0].pairs
    if METHODS[method].needs_search and "long_divisors" not in options:
        options["long_divisors"] = tuple(1 + 0.25 * pair for pair in range(pairs))
    return plan_context(config, factor * read_window(config), method, Options(**options))


def old_form(config: dict[str, Any]) -> dict[str, Any]:
    """What a reader of transformers 4.x sees."""
    return {key: value for key, value in config.items() if key != "rope_parameters"}


def new_form(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers 5 saves again."""
    return {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}


@pytest.mark.parametrize("method", EXPORTED)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_exported_config_reads_back_as_its_plan_in_every_form(shape: str, method: str) -> None:
    plan = planned(SHAPES[shape], method)
    after = json.loads(json.dumps(config_after(SHAPES[shape], plan)))
    for form in (after, old_form(after), new_form(after)):
        assert read_window(form) == plan.target
        for written, was in zip(read_rotaries(form), plan.rotaries, strict=True):
            scaling = written.present or unscaled(written)
            assert written.layer_type == was.rotary.layer_type
            assert inverse_frequencies(written, scaling.divisors) == pytest.approx(
                inverse_frequencies(was.rotary, was.scaling.divisors), rel=1e-12
            )
            assert scaling.attention_factor == pytest.approx(was.scaling.attention_factor, rel=1e-12)


@pytest.mark.parametrize("method", EXPORTED)
def test_the_window_is_the_original_length_times_a_float_factor(method: str) -> None:
    after = config_after(LLAMA, planned(LLAMA, method))
    settings = after["rope_parameters"]
    assert after["max_position_embeddings"] == 1024
    assert settings["rope_theta"] == after["rope_theta"]
    if settings["rope_type"] == "default":
        assert "rope_scaling" not in after
        return
    assert type(settings["factor"]) is float
    assert settings["factor"] * 256 == 1024
    assert after["rope_scaling"] == {key: value for key, value in settings.items() if key != "rope_theta"}
    if settings["rope_type"] != "linear":
        assert settings["original_max_position_embeddings"] == 256
    assert after.get("original_max_position_embeddings") == (256 if settings["rope_type"] == "longrope" else None)


def test_dynamic_is_never_exported() -> None:
    with pytest.raises(EngineError) as caught:
        config_after(LLAMA, planned(LLAMA, "dynamic"))
    assert caught.value.code == "context.not_exported"
    assert "max_position_embeddings" in caught.value.cause
    assert "cache" in caught.value.cause


def test_the_source_config_is_left_as_it_was() -> None:
    before = copy.deepcopy(GEMMA3)
    config_after(GEMMA3, planned(GEMMA3, "yarn"))
    assert before == GEMMA3


def test_other_keys_are_kept() -> None:
    after = config_after(LLAMA | {"custom": {"a": 1}}, planned(LLAMA, "yarn"))
    assert after["custom"] == {"a": 1}
    assert after["model_type"] == "llama"


@pytest.mark.parametrize("config", [GEMMA3, OLMO3], ids=["gemma-3", "olmo-3"])
@pytest.mark.parametrize("method", ["yarn", "abf", "llama3"])
def test_only_layers_over_the_whole_text_are_scaled(config: dict[str, Any], method: str) -> None:
    plan = planned(config, method)
    after = config_after(config, plan)
    assert [one.changed for one in plan.rotaries] == [True, False]
    assert after["rope_parameters"]["sliding_attention"] == config["rope_parameters"]["sliding_attention"]
    assert after["rope_parameters"]["full_attention"] != config["rope_parameters"]["full_attention"]
    assert any("sliding-attention layers keep" in note for note in plan.notes)


def test_truncation_is_written_where_it_is_read() -> None:
    after = config_after(GEMMA3, planned(GEMMA3, "yarn", truncate=False))
    assert after["rope_parameters"]["truncate"] is False
    assert config_after(LLAMA, planned(LLAMA, "yarn", truncate=False))["rope_parameters"]["truncate"] is False


def test_layers_without_positions_stay_without() -> None:
    config = SHAPES["smollm3"]
    plan = planned(config, "yarn")
    assert config_after(config, plan)["no_rope_layers"] == config["no_rope_layers"]
    assert any("1 of the 6 layers have no rotary positions; they are left alone" in note for note in plan.notes)
    silent = GEMMA3["rope_parameters"] | {"linear_attention": None}
    kept = config_after(GEMMA3 | {"rope_parameters": silent}, planned(GEMMA3, "yarn"))["rope_parameters"]
    assert kept["linear_attention"] is None


def test_a_multimodal_config_is_changed_in_its_language_part() -> None:
    config = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": GEMMA3}
    after = config_after(config, planned(config, "yarn"))
    assert after["text_config"]["max_position_embeddings"] == 1024
    assert after["text_config"]["rope_parameters"]["full_attention"]["rope_type"] == "yarn"
    assert "rope_parameters" not in after
    assert config["text_config"]["max_position_embeddings"] == 256


def test_phi3_carries_every_static_scheme_as_longrope() -> None:
    config = SHAPES["phi-3"]
    plan = planned(config, "yarn")
    after = config_after(config, plan)
    settings = after["rope_parameters"]
    assert settings["rope_type"] == "longrope"
    assert tuple(settings["long_factor"]) == tuple(settings["short_factor"]) == plan.scaled.scaling.divisors
    assert settings["attention_factor"] == plan.scaled.scaling.attention_factor
    assert after["original_max_position_embeddings"] == settings["original_max_position_embeddings"] == 4096
    assert "attention_factor" in after["rope_scaling"], "without it readers would take another m silently"
    su = config_after(config, planned(config, "longrope"))["rope_scaling"]
    assert set(su) == {"type", "short_factor", "long_factor"}, "the only form that 4.x takes"


def test_a_base_change_of_phi3_does_not_ask_for_a_dropped_cache() -> None:
    config = SHAPES["phi-3"]
    after = config_after(config, planned(config, "ntk"))
    assert after["original_max_position_embeddings"] == after["max_position_embeddings"] == 4 * 4096


def test_mistral_and_mixtral_get_their_head_size_written_out() -> None:
    assert config_after(SHAPES["mixtral"], planned(SHAPES["mixtral"], "yarn"))["head_dim"] == 16
    assert config_after(PUBLISHED["mistral-v0.1"], planned(PUBLISHED["mistral-v0.1"], "yarn"))["head_dim"] == 128
    assert "head_dim" not in config_after(LLAMA, planned(LLAMA, "yarn"))


def test_a_sliding_window_that_covered_everything_does_not_begin_to_cut() -> None:
    covered = small("mistral", head_dim=32, sliding_window=256)
    assert config_after(covered, planned(covered, "ntk"))["sliding_window"] is None
    cutting = small("mistral", head_dim=32, sliding_window=64)
    plan = planned(cutting, "ntk")
    assert config_after(cutting, plan)["sliding_window"] == 64
    assert any("Every layer sees only the last 64 tokens" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (small("gemma2", head_dim=32, sliding_window=256), 1024),
        (small("mistral", head_dim=32, sliding_window=300, layer_types=["sliding_attention"] * 6), 1024),
        (small("qwen2", sliding_window=256, use_sliding_window=True, max_window_layers=3), None),
        (GEMMA3 | {"sliding_window": 256}, 256),
        (OLMO3 | {"sliding_window": 256}, 256),
    ],
    ids=["gemma-2", "listed layers", "qwen2", "gemma-3", "olmo-3"],
)
def test_classes_with_sliding_layers_keep_a_window_that_they_can_compute_with(
    config: dict[str, Any], window: int | None
) -> None:
    """Of one table for all layers it grows with the target; sliding layers with a table of their own keep theirs."""
    assert config_after(config, planned(config, "yarn"))["sliding_window"] == window


def test_a_window_that_is_switched_off_is_not_warned_about() -> None:
    config = small("qwen2", sliding_window=64, use_sliding_window=False, max_window_layers=3)
    assert not any("layers see" in note for note in planned(config, "ntk").notes)
    on = config | {"use_sliding_window": True}
    assert any("3 of 6 layers see only the last 64 tokens" in note for note in planned(on, "ntk").notes)


@pytest.mark.parametrize(
    ("settings", "window", "length", "kind"),
    [
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}, 256, 128, "linear"),
        (
            {
                "rope_theta": 1e6,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            },
            512,
            128,
            "yarn",
        ),
        ({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 1024, 256, "yarn"),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                }
            },
            256,
            16,
            "llama3",
        ),
    ],
)
def test_files_of_transformers_4_are_read_alike(settings: dict[str, Any], window: int, length: int, kind: str) -> None:
    config = {key: value for key, value in LLAMA.items() if key != "rope_parameters"} | settings
    (rotary,) = read_rotaries(config)
    assert (read_window(config), rotary.length, rotary.present_kind) == (window, length, kind)
    flat = dict(settings["rope_scaling"])
    flat["rope_type"] = flat.pop("type", flat.get("rope_type"))
    fifth = LLAMA | {"rope_parameters": {"rope_theta": settings.get("rope_theta", 1e4), **flat}}
    assert read_rotaries(fifth) == (rotary,)


READ = {
    "llama-3.1": (131072, 8192, 128, "llama3"),
    "llama-3.2": (131072, 8192, 64, "llama3"),
    "qwen2.5-yarn": (131072, 32768, 128, "yarn"),
    "qwen3": (40960, 40960, 128, "default"),
    "gemma-3-4b": (131072, 32768, 256, "linear"),
    "olmo-3": (65536, 8192, 128, "yarn"),
    "smollm3": (65536, 65536, 128, "default"),
    "phi-3-mini-4k": (4096, 4096, 96, "default"),
    "stablelm-2": (4096, 4096, 16, "default"),
    "pythia": (2048, 2048, 16, "default"),
    "phi-2": (2048, 2048, 32, "default"),
    "mistral-v0.1": (32768, 32768, 128, "default"),
    "mixtral": (32768, 32768, 128, "default"),
    "gpt-oss": (131072, 4096, 64, "yarn"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read_and_taken_to_twice_their_window(name: str) -> None:
    config = PUBLISHED[name]
    window, length, dim, kind = READ[name]
    rotary = read_rotaries(config)[0]
    assert (read_window(config), rotary.length, rotary.dim, rotary.present_kind) == (window, length, dim, kind)
    methods = [one.id for one, why in applicable(config, 2 * window) if not why and one.exported]
    assert ("abf" in methods, "yarn" in methods) == (kind != "yarn", kind in ("default", "yarn"))
    for method in (one for one in methods if not METHODS[one].needs_search):
        plan = plan_context(config, 2 * window, method)
        after = json.loads(json.dumps(config_after(config, plan)))
        part = after.get("text_config", after)
        settings = part["rope_parameters"].get("full_attention", part["rope_parameters"])
        assert part["max_position_embeddings"] == read_window(after) == 2 * window
        if settings["rope_type"] == "yarn":
            assert settings["original_max_position_embeddings"] * settings["factor"] == 2 * window
        now = read_rotaries(after)[0]
        assert inverse_frequencies(now, (now.present or unscaled(now)).divisors) == pytest.approx(
            inverse_frequencies(plan.scaled.rotary, plan.scaled.scaling.divisors), rel=1e-9
        )


def test_gemma_3_of_transformers_4_has_two_embeddings() -> None:
    config = {key: value for key, value in GEMMA3.items() if key != "rope_parameters"}
    config |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    full, sliding = read_rotaries(config)
    assert (full.layer_type, full.theta, full.present_kind) == ("full_attention", 1e6, "linear")
    assert (sliding.layer_type, sliding.theta, sliding.present_kind) == ("sliding_attention", 1e4, "default")


@pytest.mark.parametrize(
    ("settings", "method", "factor"),
    [
        ({"rope_type": "linear", "factor": 2.0}, "linear", 4.0),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}, "yarn", 4.0),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            "llama3",
            16.0,
        ),
    ],
)
def test_a_scaled_model_is_taken_further_by_its_own_type(settings: dict[str, Any], method: str, factor: float) -> None:
    config = LLAMA | {"rope_parameters": {"rope_theta": 1e4, **settings}}
    plan = planned(config, method, factor=2)
    after = config_after(config, plan)
    assert (plan.original, plan.target, after["max_position_embeddings"]) == (256, 512, 512)
    assert after["rope_parameters"]["factor"] == factor
    slowest = read_rotaries(config)[0].present
    assert slowest is not None
    assert plan.scaled.scaling.divisors[-1] == pytest.approx(2 * slowest.divisors[-1])


def test_its_own_ramp_and_sharpening_are_taken_along() -> None:
    yarn = {
        "rope_type": "yarn",
        "factor": 2.0,
        "beta_fast": 8.0,
        "truncate": False,
        "original_max_position_embeddings": 128,
    }
    config = LLAMA | {"rope_parameters": {"rope_theta": 1e4, **yarn}}
    settings = config_after(config, planned(config, "yarn", factor=2))["rope_parameters"]
    assert (settings["beta_fast"], settings["truncate"]) == (8.0, False)
    assert "attention_factor" not in settings
    fixed = LLAMA | {"rope_parameters": {"rope_theta": 1e4, **yarn, "attention_factor": 1.0}}
    assert config_after(fixed, planned(fixed, "yarn", factor=2))["rope_parameters"]["attention_factor"] == 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "linear", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
    ids=["linear", "llama3"],
)
def test_a_larger_base_can_stand_on_a_scaling(settings: dict[str, Any]) -> None:
    config = LLAMA | {"rope_parameters": {"rope_theta": 1e4, **settings}}
    plan = planned(config, "abf", factor=2, theta=1e5)
    after = config_after(config, plan)
    assert after["rope_parameters"] == {"rope_theta": 1e5, **settings}
    assert after["max_position_embeddings"] == 512
    (written,) = read_rotaries(after)
    assert written.present is not None
    assert inverse_frequencies(written, written.present.divisors) == pytest.approx(
        inverse_frequencies(plan.scaled.rotary, plan.scaled.scaling.divisors), rel=1e-12
    )


def test_sections_of_multimodal_positions_are_carried() -> None:
    config = LLAMA | {"rope_parameters": rope(1e4, mrope_section=[4, 6, 6])}
    settings = config_after(config, planned(config, "yarn"))["rope_parameters"]
    assert settings["mrope_section"] == [4, 6, 6]


def test_a_base_under_the_bound_is_noted() -> None:
    low = planned(LLAMA, "abf", factor=16, theta=1.2e4)
    assert any("under the bound" in note for note in low.notes)
    assert not any("under the bound" in note for note in planned(LLAMA, "abf", factor=16).notes)


def test_coarse_angles_and_large_factors_are_noted() -> None:
    long = LLAMA | {"max_position_embeddings": 1 << 19}
    assert any("float32 rounds" in note for note in planned(long, "abf").notes)
    assert any("train after" in note for note in planned(LLAMA, "yarn", factor=8).notes)


def test_a_cache_that_would_go_stale_is_announced() -> None:
    switching = planned(LLAMA, "longrope", short_divisors=(1.0,) * 16)
    assert cache_goes_stale(switching, "llama")
    assert any("with a KV cache gives wrong text" in note for note in switching.notes)
    assert any("for the whole batch" in note for note in switching.notes)
    assert any("multiplied by" in note for note in switching.notes)
    assert cache_goes_stale(planned(LLAMA, "dynamic"), "llama")
    assert not cache_goes_stale(switching, "phi3")
    assert not cache_goes_stale(planned(LLAMA, "longrope2"), "llama")


@given(
    method=st.sampled_from(["linear", "ntk", "ntk-critical", "by-parts", "yarn", "llama3"]),
    window=st.sampled_from([256, 2048, 4096, 40960, 32768]),
    theta=st.floats(1e3, 1e7),
    head_dim=st.sampled_from([16, 32, 64, 128]),
    factor=st.sampled_from([2, 3, 4, 16]),
)
@settings(max_examples=60)
def test_any_export_reads_back_as_its_plan(method: str, window: int, theta: float, head_dim: int, factor: int) -> None:
    config = small("llama", theta, head_dim=head_dim, max_position_embeddings=window)
    plan = planned(config, method, factor)
    after = json.loads(json.dumps(config_after(config, plan)))
    (written,) = read_rotaries(after)
    scaling = written.present or unscaled(written)
    assert read_window(after) == plan.target == factor * window
    assert inverse_frequencies(written, scaling.divisors) == pytest.approx(
        inverse_frequencies(plan.scaled.rotary, plan.scaled.scaling.divisors), rel=1e-9
    )
