"""Arms are sized so that each spends the budget, whatever it costs to take a step of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.lab.lab_file import Lab
from engine.lab.sizing import Counter, Sizes, sizes_of, spec_for
from tests.support.labs import small_lab

GROWN = """
[[arms]]
name = "grown"
spec.task = "full"
spec.expansion = { layers = 12, operators = ["layers=identity"] }

[[arms]]
name = "staged"
spec.task = "full"
spec.stages = [{ max_steps = 30 }, { max_steps = 10, layers = 12, operators = ["layers=identity"] }]

[[arms]]
name = "random"
start = "random"
spec.task = "full"
spec.expansion = { layers = 12, operators = ["layers=identity"] }
"""


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, Counter]:
    lab = small_lab(tmp_path_factory.mktemp("lab"), lambda text: text + GROWN)
    return lab, Counter(lab)


def sizes(found: tuple[Lab, Counter]) -> Sizes:
    return sizes_of(*found)


def test_every_arm_spends_the_operations_to_half_a_step(grown: tuple[Lab, Counter]) -> None:
    for size in sizes(grown).arms:
        step = max(stage.flops for stage in size.stages)
        assert abs(size.flops - 1e11) <= len(size.stages) * step / 2
        assert size.flops == size.flops_at(size.steps)
        assert size.tokens == size.tokens_at(size.steps)


def test_cheaper_steps_give_more_of_them(grown: tuple[Lab, Counter]) -> None:
    found = sizes(grown)
    assert found.of("LoRA").steps > found.of("full").steps > found.of("grown").steps
    assert found.of("random").stages == found.of("grown").stages, "the same shape costs the same"
    assert found.of("grown").parameters > found.of("full").parameters


def test_stages_keep_their_proportions_and_each_costs_what_its_shape_costs(grown: tuple[Lab, Counter]) -> None:
    found = sizes(grown)
    first, second = found.of("staged").stages
    assert first.steps == pytest.approx(3 * second.steps, abs=3)
    assert first.flops == pytest.approx(found.of("full").stages[0].flops)
    assert second.flops == pytest.approx(found.of("grown").stages[0].flops)


def test_a_budget_of_tokens_gives_equal_steps_and_one_in_seconds_goes_by_measured_steps(tmp_path: Path) -> None:
    lab = small_lab(
        tmp_path, lambda text: text.replace('kind = "flops"\namount = 1e11', 'kind = "tokens"\namount = 9000')
    )
    lora, full = sizes_of(lab, Counter(lab)).arms
    assert lora.steps == full.steps == round(9000 / lora.stages[0].tokens)
    timed = small_lab(
        tmp_path, lambda text: text.replace('kind = "flops"\namount = 1e11', 'kind = "wall-clock"\namount = 60')
    )
    found = sizes_of(timed, Counter(timed), {"LoRA": 0.5, "full": 2.0})
    assert (found.of("LoRA").steps, found.of("full").steps) == (120, 30)
    assert "measured" in found.how


def test_a_budget_below_one_step_is_refused(tmp_path: Path) -> None:
    lab = small_lab(tmp_path, lambda text: text.replace("amount = 1e11", "amount = 1e6"))
    with pytest.raises(EngineError) as caught:
        sizes_of(lab, Counter(lab))
    assert caught.value.code == "lab.budget"
    assert "LoRA" in caught.value.what


def test_a_run_has_the_seed_for_its_data_and_its_growth_and_is_evaluated_as_often_as_the_others(
    grown: tuple[Lab, Counter], tmp_path: Path
) -> None:
    lab, _ = grown
    found = sizes(grown)
    by_name = {arm.name: arm for arm in lab.arms}
    for name in ("LoRA", "grown"):
        size = found.of(name)
        spec = spec_for(lab, by_name[name], size, 7, None)
        assert (spec.training.seed, spec.expansion.seed) == (7, 7)
        assert spec.training.max_steps == size.steps
        assert size.steps // spec.evaluation.every_steps in (4, 5)
    random = spec_for(lab, by_name["random"], found.of("random"), 7, tmp_path)
    assert random.model.source == str(tmp_path)
    assert not random.grows, "it has the grown shape already"
    staged = spec_for(lab, by_name["staged"], found.of("staged"), 7, None)
    assert [stage.max_steps for stage in staged.stages] == [stage.steps for stage in found.of("staged").stages]
