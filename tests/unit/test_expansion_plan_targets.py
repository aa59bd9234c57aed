"""The matrix's grown shapes are the planner's: the same sizes, also where only a model's shape is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.advise.targets import deeper, deeper_to, space_of, wider
from engine.expansion.planner import Source, plans_for
from engine.models.analyze import analyze
from engine.models.architecture import Architecture
from engine.models.config import text_part
from engine.models.model_profiles import load_model_profiles
from engine.models.resolve import resolve_model

KNOWN = tuple(profile.id for profile in load_model_profiles())


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_shape_is_explained_to_the_last_parameter(name: str) -> None:
    architecture = analyze(name)
    assert space_of(architecture).offset == 0
    assert wider(architecture, 2 * architecture.parameters).parameters == pytest.approx(
        2 * architecture.parameters, rel=0.05
    )


SOME = ("llama-3.2-3b", "phi-3-mini", "gemma-2-2b", "pythia-1b", "qwen3-30b-a3b", "olmo-2-7b")
NO_HEADS = {"attention_heads": 0, "key_value_heads": 0, "head_dim": 0}


@pytest.mark.parametrize("name", SOME)
def test_the_matrix_and_the_planner_speak_of_the_same_model(name: str) -> None:
    from engine.expansion.layouts import layout_for

    architecture = analyze(name)
    config, _ = text_part(dict(resolve_model(name).config))
    source = Source.of(layout_for(config, name), config)
    assert source.parameters == architecture.parameters
    target = 2 * architecture.parameters
    choices = {choice.id: choice for choice in plans_for(source, target)}
    for name_of_plan, grown in (("wider", wider(architecture, target)), ("deeper", deeper_to(architecture, target))):
        plan = choices[name_of_plan]
        assert grown.parameters == plan.parameters
        after = plan.plan.after
        assert (grown.layers, grown.hidden_size, grown.attention_heads) == (after.layers, after.hidden, after.heads)


def test_layers_are_added_in_whole_periods() -> None:
    assert deeper(analyze("llama-3.2-3b"), 1.25).layers == 35
    assert deeper(analyze("gemma-2-2b"), 1.25).layers == 32, (
        "26 layers that alternate: 6.5 more would break the pattern"
    )
    assert deeper(analyze("gemma-3-1b"), 1.01).layers == 32, "at least one period of 6"


def unknown(architecture: Architecture, **sizes: int) -> Architecture:
    return replace(architecture, family="unknown", known=False, **sizes)


@pytest.mark.parametrize("sizes", [{}, NO_HEADS, {"intermediate_size": 0}])
def test_an_unknown_family_still_has_a_rough_shape_to_estimate(sizes: dict[str, int]) -> None:
    architecture = unknown(analyze("demo"), **sizes)
    for grown in (wider(architecture, 2 * architecture.parameters), deeper(architecture, 1.25)):
        assert grown.parameters > architecture.parameters
