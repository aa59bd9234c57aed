"""What other programs make of an extended folder: the whole matrix, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.context.method import Options
from engine.context.plan import ContextPlan
from engine.context.planner import plan_context, read_rotaries
from engine.context.portability import CONSUMERS, LLAMA_CPP, TRANSFORMERS_5, VLLM, portability
from engine.errors import EngineError
from engine.extension.losses import consumers_named, refuse_losses, travelling
from engine.resources import demo_model_dir

SIZES = {
    "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 6,
    "intermediate_size": 1024, "vocab_size": 1000, "max_position_embeddings": 4096,
}  # fmt: skip
BY_LAYER = {
    "sliding_window": 512,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500_000.0},
    },
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"rope_theta": 1e4}),
    "mistral": ("MistralForCausalLM", {"rope_theta": 1e4}),
    "granite": ("GraniteForCausalLM", {"rope_theta": 1e4}),
    "qwen2": ("Qwen2ForCausalLM", {"rope_theta": 1e4}),
    "qwen3": ("Qwen3ForCausalLM", {"rope_theta": 1e4, "head_dim": 64}),
    "gemma2": ("Gemma2ForCausalLM", {"rope_theta": 1e4, "head_dim": 64}),
    "gemma3_text": ("Gemma3ForCausalLM", {**BY_LAYER, "head_dim": 64}),
    "olmo3": ("Olmo3ForCausalLM", BY_LAYER),
    "phi3": ("Phi3ForCausalLM", {"rope_theta": 1e4}),
    "smollm3": ("SmolLM3ForCausalLM", {"rope_theta": 1e4}),
    "cohere": ("CohereForCausalLM", {"rope_theta": 1e4}),
    "glm4": ("Glm4ForCausalLM", {"rope_theta": 1e4, "head_dim": 64, "partial_rotary_factor": 0.5}),
    "gpt_neox": ("GPTNeoXForCausalLM", {"rotary_emb_base": 1e4, "rotary_pct": 0.25}),
}
KINDS = ("abf", "linear", "yarn", "yarn, own m", "by-parts", "llama3", "longrope", "longrope, own m", "switching")
# Per kind the verdicts of transformers 5, transformers 4.57, vLLM and llama.cpp by their first letters; "!" is silent.
MATRIX = {
    "llama": "eeee eeee eeee eeaa eeaa eeee eeel! eeal! aaal!",
    "mistral": "eeee eeee eeee eeaa eeaa eeee eeel! eeal! aaal!",
    "granite": "eeee eeee eeee eeaa eeaa eeee eeel! eeal! aaal!",
    "qwen2": "eeee eeee eeee eeaa eeaa eeel! eeel! eeal! aaal!",
    "qwen3": "eeee eeee eeee eeaa eeaa eeel! eeel! eeal! aaal!",
    "gemma2": "eeel! eeel! eeel! eeal! eeal! eeel! eeel! eeal! aaal!",
    "gemma3_text": "eeee eeee eeee eeaa eeaa eeel! eeel! eeal! aaal!",
    "olmo3": "eaee eeee eeee eeaa eeaa eeel! eeel! eeal! aaal!",
    "phi3": "eeee elaa elaa elaa elaa elaa eeee elaa elaa",
    "smollm3": "eeee eeee eeee eeaa eeaa eeel eeel! eeal! aaal!",
    "cohere": "eeee eeel! eeel! eeal! eeal! eeel! eell! eell! aall!",
    "glm4": "eeee eeee eeee eeaa eeaa eeel! eell! eell! aall!",
    "gpt_neox": "eeel! eeel! eeel! eeal! eeal! eeel! eeel! eeal! aaal!",
}


def config_of(family: str) -> dict[str, Any]:
    causal, extra = FAMILIES[family]
    return {**SIZES, "model_type": family, "architectures": [causal], **extra}


def plan_of(config: dict[str, Any], kind: str) -> ContextPlan:
    pairs = next(one.pairs for one in read_rotaries(config) if one.layer_type in ("", "full_attention"))
    searched = tuple(1 + 3 * pair / (pairs - 1) for pair in range(pairs))
    method, options = {
        "yarn, own m": ("yarn", Options(attention_factor=1.3)),
        "longrope": ("longrope", Options(long_divisors=searched)),
        "longrope, own m": ("longrope", Options(long_divisors=searched, attention_factor=1.3)),
        "switching": ("longrope2", Options(long_divisors=searched, short_divisors=(1.0,) * pairs)),
    }.get(kind, (kind, Options()))
    return plan_context(config, 16384, method, options)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_kind_has_its_verdicts(family: str) -> None:
    config = config_of(family)
    found = []
    for kind in KINDS:
        readers = portability(config, plan_of(config, kind))
        assert tuple(one.consumer for one in readers) == CONSUMERS
        assert all(one.why.endswith(".") and one.why.count(". ") == 0 for one in readers), "one sentence each"
        assert all(one.verdict == "lost" for one in readers if one.silent)
        found.append("".join(one.verdict[0] + "!" * one.silent for one in readers))
    assert " ".join(found) == MATRIX[family]


def test_a_base_change_travels_wherever_anything_does() -> None:
    for family in FAMILIES:
        config = config_of(family)
        losses = {kind: {one.consumer for one in portability(config, plan_of(config, kind)) if one.verdict == "lost"}
                  for kind in KINDS}  # fmt: skip
        assert all(losses["abf"] <= lost for lost in losses.values())


def test_what_is_not_written_to_a_folder_is_lost_everywhere() -> None:
    config = config_of("llama")
    readers = portability(config, plan_context(config, 16384, "dynamic"))
    assert {one.verdict for one in readers} == {"lost"}
    assert not any(one.silent for one in readers), "nothing is written that could be misread"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("options", [Options(beta_fast=16.0), Options(beta_slow=2.0), Options(truncate=False)])
def test_llama_cpp_loses_a_yarn_ramp_of_its_own_without_an_error(family: str, options: Options) -> None:
    config = config_of(family)
    readers = portability(config, plan_context(config, 16384, "yarn", options))
    (lost,) = (one for one in readers if one.silent)
    assert lost.consumer == LLAMA_CPP
    assert ("export gguf" in lost.why) == (family == "llama")


@pytest.mark.parametrize(
    ("kind", "families"),
    [
        ("longrope", {"llama", "mistral"}),
        ("yarn, own m", {"llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"}),
        ("yarn", {"gemma2", "phi3"}),
    ],
)
def test_the_exporter_is_named_for_the_families_whose_scaling_it_carries(kind: str, families: set[str]) -> None:
    found = {family: portability(config_of(family), plan_of(config_of(family), kind))[-1] for family in FAMILIES}
    assert {family for family, one in found.items() if "export gguf" in one.why} == families


@pytest.mark.parametrize("factor", [2, 4])
def test_old_vllm_announces_a_linear_folder_by_its_factor(factor: int) -> None:
    config = config_of("llama")
    vllm = portability(config, plan_context(config, 4096 * factor, "linear"))[2]
    assert vllm.consumer == VLLM
    assert f"announce {factor} times the length" in vllm.why
    assert f"--max-model-len {4096 * factor}." in vllm.why


def test_only_yarn_is_said_to_turn_otherwise_in_old_transformers_4() -> None:
    config = config_of("llama")
    said = {kind: portability(config, plan_of(config, kind))[1].why for kind in ("yarn", "linear", "llama3")}
    assert "older versions take the new window for the old one" in said["yarn"]
    assert said["linear"] == said["llama3"] == "It reads the copy in rope_scaling."


# ── what is done about losses ─────────────────────────────────────────────────────────────────────────────────────
def losing() -> tuple[ContextPlan, Any]:
    config = config_of("qwen3")
    plan = plan_of(config, "longrope")
    return plan, portability(config, plan)


def test_a_silent_loss_is_refused_with_both_ways_out() -> None:
    plan, readers = losing()
    with pytest.raises(EngineError) as refused:
        refuse_losses(plan, readers, (), ())
    assert refused.value.code == "context.loss"
    assert LLAMA_CPP in refused.value.what
    assert "no per-pair factors" in refused.value.cause
    assert "--allow-loss llama.cpp" in refused.value.next_step
    assert "--for transformers,transformers-4,vllm" in refused.value.next_step


def test_it_is_accepted_by_flag_by_answer_or_where_nobody_runs_it() -> None:
    plan, readers = losing()
    asked = []
    assert refuse_losses(plan, readers, (), (LLAMA_CPP,)) == (LLAMA_CPP,)
    assert refuse_losses(plan, readers, (), ("all",)) == (LLAMA_CPP,)
    assert refuse_losses(plan, readers, (), (), lambda _, told: bool(asked.extend(told)) or True) == (LLAMA_CPP,)
    assert [one.consumer for one in asked] == [LLAMA_CPP]
    assert refuse_losses(plan, readers, (TRANSFORMERS_5, VLLM), ()) == ()
    with pytest.raises(EngineError, match=r"llama\.cpp"):
        refuse_losses(plan, readers, (), (), lambda *_: False)
    with pytest.raises(EngineError, match=r"llama\.cpp"):
        refuse_losses(plan, readers, (), (VLLM,))


def test_where_it_will_run_a_loss_with_an_error_message_counts_too() -> None:
    config = config_of("smollm3")
    plan = plan_of(config, "llama3")
    readers = portability(config, plan)
    assert refuse_losses(plan, readers, (), ()) == ()
    with pytest.raises(EngineError, match=r"llama\.cpp"):
        refuse_losses(plan, readers, (LLAMA_CPP,), ())


def test_a_choice_by_measuring_is_among_what_reaches_the_named_programs() -> None:
    config = config_of("qwen3")
    assert "llama3" not in travelling(config, 16384, (), (LLAMA_CPP,))
    assert {"yarn", "abf", "ntk-critical"} <= set(travelling(config, 16384, (), (LLAMA_CPP, VLLM)))
    assert travelling(config, 16384, ("llama3", "yarn"), (LLAMA_CPP,)) == ("yarn",)
    with pytest.raises(EngineError, match="No method of those reaches"):
        travelling(config_of("gemma2"), 16384, (), (LLAMA_CPP,))


def test_programs_are_named_as_people_do() -> None:
    assert consumers_named("vllm, llama.cpp,transformers,vLLM") == (VLLM, LLAMA_CPP, TRANSFORMERS_5)
    assert consumers_named("") == ()
    with pytest.raises(EngineError) as wrong:
        consumers_named("lama.cpp")
    assert "Did you mean llama.cpp?" in wrong.value.next_step


def test_the_demo_model_goes_anywhere_with_any_method_that_needs_no_search() -> None:
    config = json.loads((demo_model_dir() / "config.json").read_text())
    for method in ("linear", "ntk", "ntk-critical", "abf", "yarn", "llama3"):
        assert {one.verdict for one in portability(config, plan_context(config, 1024, method))} == {"exact"}
