"""A lab file is read whole or refused, naming the line; arms are specs laid over what all share."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.jobs.spec import Task
from engine.lab.lab_file import load_lab, merged
from engine.lab.ready import find_lab, ready_labs
from tests.support.labs import SMALL, small_lab


def refusal(folder: Path, old: str, new: str) -> EngineError:
    assert old in SMALL
    with pytest.raises(EngineError) as caught:
        small_lab(folder, lambda text: text.replace(old, new))
    return caught.value


def line_with(text: str, wanted: str, nth: int = 1) -> int:
    return [number for number, line in enumerate(text.splitlines(), 1) if wanted in line][nth - 1]


def test_an_arm_is_what_all_share_with_its_own_keys_laid_over(tmp_path: Path) -> None:
    lab = small_lab(tmp_path)
    lora, full = lab.arms
    assert (lora.spec.task, full.spec.task) == (Task.LORA, Task.FULL)
    assert lora.spec.data == full.spec.data
    assert full.spec.data.max_length == 128
    assert merged({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}, "d": 4}) == {"a": {"b": 1, "c": [3]}, "d": 4}


@pytest.mark.parametrize(
    ("old", "new", "line_of", "words"),
    [
        ("batch_size = 2", "batch_sise = 2", "batch_sise", "batch_sise"),
        ("batch_size = 2", "batch_size = 0", "batch_size", "from 1 to 4,096"),
        ("batch_size = 2", "max_steps = 2", "max_steps", "decided by the lab"),
        ('spec.task = "lora"', 'spec.task = "lora"\nspec.adapter.rank = 0', "spec.adapter.rank", "arm 'LoRA'"),
        ('spec.task = "lora"', 'spec.task = "lora"\nspec.output.merge = 3', "spec.output.merge", "output.merge"),
        ('spec.task = "lora"', 'spec.task = "lora"\nstart = "random"', 'start = "random"', 'task = "full"'),
        ('task = "full"', 'task = "expand"\nexpansion.to = "2x"', 'task = "expand"', "trains nothing"),
        ('name = "full"', 'name = "LoRA"', 'name = "LoRA"', "two arms"),
        ("seeds = [1, 2, 3]", "seeds = [1, 2, 1]", "seeds", "twice"),
        ('figure = "task_loss"', 'figure = "loss"', 'figure = "loss"', "no figure"),
        ('figure = "task_loss"', 'figure = "suite:web"', "suite:web", "called 'web'"),
        ('figure = "task_loss"', 'figure = "benchmark:arc"', "benchmark:arc", "evaluation.tasks"),
        ('figure = "task_loss"', 'figure = "retention:web"', "retention:web", "called 'web'"),
        ('figure = "task_loss"', 'figure = "base_perplexity"', "base_perplexity", "data.base_text"),
        ('task = "full"', 'task = "full"\ndata.heldout = "b.jsonl"', 'data.heldout = "b', "another data.heldout than"),
        ('spec.task = "lora"', 'spec.task = "lora"\nspec.data.max_length = 32', "max_length = 32", "data.max_length"),
        ('task = "full"', 'task = "full"\nmodel.source = "other"', 'model.source', "another model.source than"),
        ('task = "full"', 'task = "full"\nevaluation.tasks = ["demo"]', 'evaluation.tasks', "evaluation.tasks"),
        ("points = 4", 'points = 4\ndifferent = ["training"]', "different", "nothing that arms share"),
        ('figure = "task_loss"', 'figure = "usd"', 'figure = "usd"', "usd_per_hour"),
        ('figure = "task_loss"', 'figure = "task_loss"\nreach = 1.0', "reach", "goes with a cost"),
        ('kind = "flops"', 'kind = "money"', "kind", "wall-clock"),
        ("amount = 1e11", "amount = 0", "amount", "above 0"),
        ("amount = 1e11", "amount = inf", "amount", "finite"),
        ('task = "lora"', 'task = "lora"\nspec.training.learning_rate = inf', "learning_rate = inf", "finite"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, old: str, new: str, line_of: str, words: str) -> None:
    error = refusal(tmp_path, old, new)
    text = (tmp_path / "small.toml").read_text()
    nth = 2 if "two arms" in words else 1
    assert f"line {line_with(text, line_of, nth)}, " in error.what
    assert words in f"{error.what} {error.cause} {error.next_step}"
    assert str(tmp_path / "small.toml") in error.what


@pytest.mark.parametrize("stated", ["data.max_length", "data"])
def test_arms_may_differ_in_what_the_lab_states(tmp_path: Path, stated: str) -> None:
    lab = small_lab(
        tmp_path,
        lambda text: text.replace("points = 4", f'points = 4\ndifferent = ["{stated}"]').replace(
            'task = "full"', 'task = "full"\ndata.max_length = 32'
        ),
    )
    assert [arm.spec.data.max_length for arm in lab.arms] == [128, 32]


@pytest.mark.parametrize("figure", ["benchmark:arc", "retention:demo_artihmetic", "benchmark:web"])
def test_a_goal_on_what_no_arm_is_asked_is_refused(tmp_path: Path, figure: str) -> None:
    def change(text: str) -> str:
        text = text.replace("exact_match_rows = 4", 'exact_match_rows = 4\ntasks = ["demo"]')
        text = text.replace("[[goals]]", '[[spec.suites]]\nname = "web"\npath = "general"\n\n[[goals]]', 1)
        return text.replace('figure = "task_loss"', f'figure = "{figure}"')

    with pytest.raises(EngineError) as caught:
        small_lab(tmp_path, change)
    text = (tmp_path / "small.toml").read_text()
    assert f"line {line_with(text, figure)}, " in caught.value.what
    small_lab(tmp_path, lambda text: change(text).replace(figure, f"{figure.partition(':')[0]}:demo_arithmetic"))


def test_a_conflict_inside_a_spec_names_the_arm(tmp_path: Path) -> None:
    error = refusal(tmp_path, 'task = "full"', 'task = "full"\noutput.merge = true')
    assert error.code == "spec.conflict"
    assert "arm 'full'" in error.what
    assert "line " in error.what


def test_stages_need_steps_to_be_scaled(tmp_path: Path) -> None:
    staged = 'task = "full"\n\n[[arms.spec.stages]]\nmax_steps = 5\n\n[[arms.spec.stages]]\nlayers = 9\n'
    error = refusal(tmp_path, 'task = "full"\n', staged)
    assert "stage 2 needs max_steps" in error.what


def test_stages_take_steps_from_the_lab_alone(tmp_path: Path) -> None:
    staged = 'task = "full"\n\n[[arms.spec.stages]]\nmax_steps = 5\nepochs = 2.0\n'
    error = refusal(tmp_path, 'task = "full"\n', staged)
    assert "stages[1].epochs is decided by the lab" in error.what
    assert f"line {line_with((tmp_path / 'small.toml').read_text(), 'epochs')}, " in error.what


def test_one_arm_alone_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="arms"):
        small_lab(tmp_path, lambda text: text[: text.index('[[arms]]\nname = "full"')])


@pytest.mark.parametrize("lab", ready_labs(), ids=lambda lab: lab.file.name)
def test_ready_labs_are_for_the_demo_with_three_seeds_and_named_as_their_file(lab) -> None:  # type: ignore[no-untyped-def]
    assert lab.path.stem == lab.file.name
    assert lab.file.question
    assert len(lab.file.seeds) >= 3
    assert {arm.spec.model.source for arm in lab.arms} == {"demo"}


def test_a_lab_is_found_by_name_or_by_file_and_a_near_miss_is_guessed(tmp_path: Path) -> None:
    assert find_lab("demo-lora-baseline").file.name == "demo-lora-baseline"
    small = small_lab(tmp_path)
    assert find_lab(str(small.path)).file == small.file
    with pytest.raises(EngineError) as caught:
        find_lab("demo-lora-base")
    assert "demo-lora-baseline" in caught.value.next_step
    with pytest.raises(EngineError, match="Cannot read"):
        load_lab(tmp_path / "none.toml")
