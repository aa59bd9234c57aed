"""Growth and stages in a spec: what is written is read back, and what contradicts itself is refused with a way out."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from engine.errors import EngineError
from engine.jobs.spec import (
    ExpansionSection,
    JobSpec,
    Optimizer,
    OutputSection,
    QuantizationSection,
    StageSection,
    Task,
    TrainingSection,
)
from engine.jobs.spec_toml import dump_spec, load_spec, spec_hash, with_absolute_paths

GROWN = [Task.FULL, Task.NEW_BLOCKS, Task.NEW_COORDINATES, Task.QLORA_GROWN]
STAGED = JobSpec(
    task=Task.FULL,
    training=TrainingSection(max_steps=100, learning_rate=1e-4),
    expansion=ExpansionSection(seed=5, proof_text="words.txt", out="grown"),
    stages=(
        StageSection(name="warm"),
        StageSection(hidden=96, ffn=256, operators=("zero-pad",), task=Task.NEW_COORDINATES, max_steps=40),
        StageSection(to="9M", task=Task.EXPAND),
        StageSection(learning_rate=3e-5, new_learning_rate=2e-4, carry_moments=False),
    ),
)


def test_a_staged_spec_is_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(dump_spec(STAGED))
    assert load_spec(path) == STAGED
    assert spec_hash(load_spec(path)) == spec_hash(STAGED)


def test_the_comments_of_stages_stand_at_the_first_one_only() -> None:
    text = dump_spec(STAGED)
    assert text.count("# Query heads. 0 leaves it as it is.") == 2  # [expansion] and the first stage
    assert text.count("\n[[stages]]\n") == 4
    assert "# max_steps =" in text
    assert [stage.get("max_steps") for stage in tomllib.loads(text)["stages"]] == [None, 40, None, None]


def test_every_stage_is_a_job_of_its_own_with_its_overrides() -> None:
    jobs = STAGED.staged()
    assert [job.task for job in jobs] == [Task.FULL, Task.NEW_COORDINATES, Task.EXPAND, Task.FULL]
    assert [job.expansion.grows for job in jobs] == [False, True, True, False]
    assert [job.training.max_steps for job in jobs] == [100, 40, 100, 100]
    assert [job.training.learning_rate for job in jobs] == [1e-4, 1e-4, 1e-4, 3e-5]
    assert all(job.expansion.seed == 5 and job.expansion.proof_text == "words.txt" for job in jobs)
    assert not any(job.stages for job in jobs)


def test_a_job_without_stages_is_its_own_only_stage() -> None:
    spec = JobSpec(task=Task.NEW_BLOCKS, expansion=ExpansionSection(layers=12))
    assert spec.staged() == (spec,)


def test_a_stage_changes_the_hash() -> None:
    other = msgspec.structs.replace(STAGED, stages=STAGED.stages[:-1])
    assert spec_hash(other) != spec_hash(STAGED)


def test_only_a_job_that_trains_needs_data() -> None:
    assert not JobSpec(task=Task.EXPAND, expansion=ExpansionSection(to="7B")).needs_data
    assert not JobSpec(task=Task.FULL, stages=(StageSection(to="7B", task=Task.EXPAND),)).needs_data
    assert STAGED.needs_data
    assert JobSpec().needs_data


def test_files_of_growth_are_made_absolute(tmp_path: Path) -> None:
    absolute = with_absolute_paths(STAGED, tmp_path)
    assert absolute.expansion.proof_text == str(tmp_path / "words.txt")
    assert absolute.expansion.out == str(tmp_path / "grown")
    plain = with_absolute_paths(JobSpec(task=Task.FULL), tmp_path)
    assert (plain.expansion.proof_text, plain.expansion.out) == ("demo", "")


@pytest.mark.parametrize("task", [Task.EXPAND, *GROWN])
def test_a_job_of_growth_survives_the_file(task: Task, tmp_path: Path) -> None:
    spec = JobSpec(task=task, expansion=ExpansionSection(to="7B"))
    path = tmp_path / "spec.toml"
    path.write_text(dump_spec(spec))
    assert load_spec(path) == spec


def test_only_the_consumer_route_packs_the_old_part() -> None:
    assert JobSpec(task=Task.QLORA_GROWN).quantization_kind == "nf4"
    assert {JobSpec(task=task).quantization_kind for task in GROWN[:3]} == {"none"}


REFUSED = [
    (lambda: JobSpec(task=Task.EXPAND), "spec.no_growth", "expansion.to"),
    (lambda: JobSpec(expansion=ExpansionSection(layers=9)), "spec.conflict", "grow first"),
    (lambda: JobSpec(training=TrainingSection(new_learning_rate=1e-4)), "spec.conflict", "new_learning_rate"),
    (
        lambda: JobSpec(task=Task.EXPAND, expansion=ExpansionSection(to="7B", hidden=4096)),
        "spec.conflict",
        "expansion.hidden",
    ),
    (lambda: JobSpec(task=Task.FULL, output=OutputSection(merge=True)), "spec.conflict", "output.merge"),
    (
        lambda: JobSpec(task=Task.NEW_BLOCKS, quantization=QuantizationSection(kind="nf4")),
        "spec.conflict",
        "qlora_grown",
    ),
    (
        lambda: JobSpec(task=Task.QLORA_GROWN, quantization=QuantizationSection(kind="none")),
        "spec.conflict",
        "new_blocks",
    ),
    (
        lambda: JobSpec(task=Task.NEW_COORDINATES, training=TrainingSection(optimizer=Optimizer.ADAMW_8BIT)),
        "spec.conflict",
        "adamw",
    ),
    (lambda: JobSpec(stages=(StageSection(layers=9),)), "spec.conflict", "stages"),
    (lambda: JobSpec(task=Task.FULL, stages=(StageSection(task=Task.LORA),)), "spec.conflict", "stages[1]"),
    (lambda: JobSpec(task=Task.FULL, stages=(StageSection(task=Task.EXPAND),)), "spec.no_growth", "stages[1]"),
    (
        lambda: JobSpec(task=Task.FULL, expansion=ExpansionSection(layers=9), stages=(StageSection(),)),
        "spec.conflict",
        "[[stages]]",
    ),
    (
        lambda: JobSpec(task=Task.FULL, stages=(StageSection(to="1B", ffn=64),)),
        "spec.conflict",
        "stages[1].ffn",
    ),
]


@pytest.mark.parametrize(("make", "code", "named"), REFUSED, ids=[f"{named}" for _, _, named in REFUSED])
def test_a_contradiction_is_refused_with_the_keys_and_a_way_out(make, code: str, named: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EngineError) as caught:
        make()
    error = caught.value
    assert error.code == code
    assert named in f"{error.what} {error.cause} {error.next_step}"
    assert error.next_step


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('[expansion]\nto = "big"', "expansion.to"),
        ("[expansion]\nhidden = -1", "expansion.hidden"),
        ('[expansion]\ndtype = "int8"', "expansion.dtype"),
        ("[expansion]\nwidth = 9", "expansion.width"),
        ("[[stages]]\nmax_steps = -1", "max_steps"),
        ('[[stages]]\ntask = "sft"', "task"),
    ],
)
def test_a_mistake_in_a_file_is_named(line: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(f'task = "full"\n{line}\n')
    with pytest.raises(EngineError) as caught:
        load_spec(path)
    assert named in f"{caught.value.what} {caught.value.cause}"
