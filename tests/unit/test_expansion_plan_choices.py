"""Plans near a wanted size: near enough, different, priced, and one of them recommended for a reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.expansion.checks import Wish
from engine.expansion.costs import TrainingQuestion
from engine.expansion.layouts import layout_for
from engine.expansion.planner import PlanChoice, Source, parse_target, plans_for
from engine.expansion.portability import is_aligned
from engine.expansion.shape_rules import Rules
from engine.models.analyze import analyze
from engine.units import GIB

LLAMA_3B = "meta-llama/Llama-3.2-3B"
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
              "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True},
    "phi3": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
             "num_key_value_heads": 32, "vocab_size": 32064},
    "qwen2": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
              "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "qwen3": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
              "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True},
    "gemma2": {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
               "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000},
    "gemma3_text": {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
                    "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144},
    "gpt_neox": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 8,
                 "vocab_size": 50304},
    "qwen3_moe": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32,
                  "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
                  "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True},
}  # fmt: skip


def source(family: str) -> Source:
    config = {"model_type": family, **CONFIGS[family]}
    return Source.of(layout_for(config, family), config)


def by_id(choices: tuple[PlanChoice, ...]) -> dict[str, PlanChoice]:
    return {choice.id: choice for choice in choices}


@pytest.mark.parametrize("family", CONFIGS)
def test_twice_the_size_has_three_or_more_plans_of_which_one_is_recommended(family: str) -> None:
    model = source(family)
    choices = plans_for(model, 2 * model.parameters)
    assert len(choices) >= 3
    assert len({choice.plan.after for choice in choices}) == len(choices)
    assert [choice.recommended for choice in choices].count(True) == 1
    best = next(choice for choice in choices if choice.recommended)
    assert best.exact
    assert abs(best.deviation) < 0.05
    assert all(choice.reason.startswith(choice.title) for choice in choices)


@given(st.sampled_from(sorted(CONFIGS)), st.floats(1.2, 4.0))
@settings(max_examples=40, deadline=None)
def test_every_plan_obeys_the_rules_of_its_family(family: str, factor: float) -> None:
    model = source(family)
    for choice in plans_for(model, round(factor * model.parameters)):
        assert Rules(model.layout).problem(choice.plan.after) == ""
        assert choice.exact
        assert is_aligned(choice.plan.after) or not is_aligned(choice.plan.before)
        period = model.layout.traits.layer_period
        assert (choice.plan.after.layers - choice.plan.before.layers) % period == 0


def test_widening_a_3b_to_7b_costs_no_cache_and_deepening_doubles_it() -> None:
    model = source("llama")
    target = parse_target("7B", model.parameters)
    choices = by_id(plans_for(model, target))
    assert set(choices) == {"wider", "feed-forward", "deeper", "mixed", "experts"}
    assert choices["wider"].kv_cache_bytes_per_token == 114_688
    assert choices["deeper"].kv_cache_factor > 2
    assert choices["wider"].recommended
    assert "114" not in choices["wider"].reason
    assert "112 KiB" in choices["wider"].reason
    for name in ("wider", "feed-forward", "deeper", "mixed"):
        assert abs(choices[name].deviation) < 0.02, name
    experts = choices["experts"]
    assert experts.plan.target_family == "mixtral"
    assert experts.active_parameters < experts.parameters
    assert experts.disk_bytes == 2 * experts.parameters


def test_training_decides_where_only_one_plan_fits() -> None:
    model = source("llama")
    architecture = analyze(LLAMA_3B)
    target = round(1.25 * model.parameters)
    choices = by_id(plans_for(model, target, TrainingQuestion(architecture)))
    full, blocks = choices["wider"].memory, choices["deeper"].memory
    assert full is not None
    assert blocks is not None
    assert blocks.likely < 0.7 * full.likely, "old layers are frozen: no gradients and no optimizer states for them"
    between = (full.likely + blocks.likely) / 2
    question = TrainingQuestion(architecture, free_bytes=between)
    best = next(choice for choice in plans_for(model, target, question) if choice.recommended)
    assert best.id == "deeper"
    assert "frozen" in best.reason
    roomy = plans_for(model, target, TrainingQuestion(architecture, free_bytes=200 * GIB))
    assert next(c for c in roomy if c.recommended).id == "wider"


def test_hours_are_estimated_when_a_device_is_named() -> None:
    from engine.estimate.cards import device_speed
    from engine.hardware.detect import detect
    from engine.hardware.simulate import simulate

    machine = simulate("RTX 4090", detect())
    model = source("llama")
    question = TrainingQuestion(analyze(LLAMA_3B), device=device_speed(machine), tokens=1e9)
    choices = by_id(plans_for(model, 2 * model.parameters, question))
    hours = {name: choice.hours.likely for name, choice in choices.items() if choice.hours is not None}
    assert set(hours) == set(choices)
    assert all(24 < each < 24 * 60 for each in hours.values()), "a billion tokens on one card: days to weeks"


@pytest.mark.parametrize(
    ("text", "parameters"),
    [("7B", 7e9), ("6.6e9", 6.6e9), ("2x", 6e9), ("1.76x", 5.28e9), ("6_600_000_000", 6.6e9), ("4000M", 4e9)],
)
def test_targets_are_read_as_people_write_them(text: str, parameters: float) -> None:
    assert parse_target(text, 3_000_000_000) == round(parameters)


@pytest.mark.parametrize("text", ["", "big", "x", "-7B", "3B", "2B", "0.5x", "1x", "1000x", "7e99", "nan", "inf"])
def test_targets_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(EngineError) as caught:
        parse_target(text, 3_000_000_000)
    assert caught.value.code == "expansion.target"
    assert caught.value.next_step


@pytest.mark.parametrize(("family", "experts"), [("llama", 3), ("qwen3", 4), ("qwen3_moe", 256)])
def test_a_number_of_experts_holds_for_every_plan(family: str, experts: int) -> None:
    model = source(family)
    target = 4 * model.parameters
    choices = plans_for(model, target, wish=Wish(experts=experts))
    assert len(choices) >= 3
    for choice in choices:
        after = choice.plan.after
        assert after.experts == experts
        assert choice.exact
        assert after.expert_ffn == (after.ffn if not model.layout.dims.experts else after.expert_ffn)
        if choice.id != "experts":
            assert abs(choice.deviation) < 0.05


def test_operators_of_the_wish_are_used_and_lost_exactness_is_said() -> None:
    model = source("llama")
    choices = by_id(plans_for(model, 2 * model.parameters, wish=Wish(operators=("layers=stack",), seed=5)))
    assert not choices["deeper"].exact
    assert choices["deeper"].plan.seed == 5
    assert not choices["deeper"].recommended
    assert "wider" not in choices, "an operator without effect would be a misunderstanding"


def test_a_family_that_cannot_grow_says_why() -> None:
    from dataclasses import replace

    model = source("llama")
    reasons = {axis: "not here" for axis in ("hidden", "ffn", "heads", "kv_heads", "depth", "experts")}
    stuck = Source.of(replace(model.layout, unsupported=reasons), model.config)
    with pytest.raises(EngineError) as caught:
        plans_for(stuck, 2 * model.parameters)
    assert "not here" in caught.value.cause


def test_planning_takes_a_blink() -> None:
    from time import perf_counter

    model = source("llama")
    begin = perf_counter()
    sum(i * i for i in range(200_000))
    yardstick = perf_counter() - begin
    begin = perf_counter()
    plans_for(model, 2 * model.parameters)
    assert perf_counter() - begin < 40 * yardstick
