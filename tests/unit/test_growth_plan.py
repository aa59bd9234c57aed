"""The [expansion] of a spec becomes the plan that is carried out, for one growth and for a row of them."""

from __future__ import annotations

import pytest

from engine.advise.growth_plan import architecture_after, new_layers, plan_growth, shape_of
from engine.errors import EngineError
from engine.jobs.spec import ExpansionSection
from engine.models.analyze import analyze_model
from engine.models.resolve import resolve_model
from engine.resources import demo_dir

DEMO = demo_dir() / "model"


def test_named_sizes_are_the_plans_and_the_rest_stays() -> None:
    growth = plan_growth(ExpansionSection(ffn=768, layers=10, seed=9, dtype="float32"), shape_of(DEMO))
    plan = growth.choice.plan
    assert (plan.after.ffn, plan.after.layers, plan.after.hidden) == (768, 10, plan.before.hidden)
    assert (plan.seed, plan.dtype) == (9, "float32")
    assert growth.choice.parameters > growth.before.parameters
    assert new_layers(growth) == 2


def test_a_wanted_size_takes_the_recommended_plan() -> None:
    growth = plan_growth(ExpansionSection(to="2x"), shape_of(DEMO))
    assert growth.choice.recommended
    assert growth.choice.parameters == pytest.approx(2 * growth.before.parameters, rel=0.25)


def test_a_second_growth_is_planned_from_a_model_that_does_not_exist_yet() -> None:
    first = plan_growth(ExpansionSection(hidden=288), shape_of(DEMO))
    assert first.after.parameters == first.choice.parameters
    second = plan_growth(ExpansionSection(layers=10), first.after)
    assert second.choice.plan.before.hidden == 288
    assert second.choice.plan.after.layers == 10
    architecture = architecture_after(second, analyze_model(resolve_model("demo")))
    assert (architecture.hidden_size, architecture.layers) == (288, 10)
    assert architecture.parameters == second.choice.parameters


def test_what_cannot_be_is_refused_with_a_way_out() -> None:
    with pytest.raises(EngineError) as caught:
        plan_growth(ExpansionSection(hidden=64), shape_of(DEMO))
    assert caught.value.code.startswith("expansion.")
    assert caught.value.next_step
