"""Specs survive the trip through their text form, and mistakes in them are named by file, line and key."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.jobs import spec as spec_module
from engine.jobs.spec import JobSpec, Task, TrainingSection
from engine.jobs.spec_export import Destination
from engine.jobs.spec_toml import dump_spec, load_spec, spec_hash, with_absolute_paths

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
FRACTION = st.floats(min_value=0.0, max_value=0.999)
COUNT = st.integers(0, 2**53)

SECTIONS = {
    "model": st.builds(spec_module.ModelSection, source=TEXT, revision=TEXT),
    "data": st.builds(
        spec_module.DataSection,
        train=TEXT,
        heldout=TEXT,
        heldout_fraction=FRACTION,
        base_text=TEXT,
        max_length=st.integers(8, 10**6),
        packing=st.booleans(),
        train_on=st.sampled_from(spec_module.TrainOn),
    ),
    "adapter": st.builds(
        spec_module.AdapterSection,
        rank=st.integers(1, 1024),
        alpha=st.one_of(POSITIVE, st.integers(1, 10**6)),
        dropout=FRACTION,
        targets=st.lists(TEXT, max_size=4).map(tuple),
        rslora=st.booleans(),
    ),
    "training": st.builds(
        spec_module.TrainingSection,
        epochs=st.floats(min_value=1e-300, max_value=10_000),
        learning_rate=POSITIVE,
        seed=COUNT,
        optimizer=st.sampled_from(spec_module.Optimizer),
    ),
    "evaluation": st.builds(spec_module.EvaluationSection, sample_prompts=st.lists(TEXT, max_size=3).map(tuple)),
    "prediction": st.builds(spec_module.PredictionSection, memory_bytes_high=COUNT, machine=TEXT),
}
SPECS = st.builds(JobSpec, name=TEXT, **SECTIONS)


@given(spec=SPECS)
@settings(max_examples=150, deadline=None)
def test_any_spec_is_read_back_equal_and_with_the_same_hash(
    tmp_path_factory: pytest.TempPathFactory, spec: JobSpec
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-spec.toml"
    path.write_text(dump_spec(spec), encoding="utf-8", newline="")
    assert load_spec(path) == spec
    assert spec_hash(load_spec(path)) == spec_hash(spec)
    assert dump_spec(load_spec(path)) == dump_spec(spec)


def test_every_described_key_is_explained_in_the_file() -> None:
    text = dump_spec(JobSpec())
    lines = text.splitlines()
    assert lines[lines.index("rank = 16") - 1] == "# Width of the adapter; capacity and memory grow with it."
    assert all(len(line) <= 120 for line in lines)


def test_the_hash_ignores_the_prediction_and_sees_everything_else() -> None:
    plain = JobSpec()
    promised = JobSpec(prediction=spec_module.PredictionSection(seconds_likely=90.0))
    assert spec_hash(promised) == spec_hash(plain)
    assert spec_hash(JobSpec(training=spec_module.TrainingSection(seed=18))) != spec_hash(plain)
    assert spec_hash(JobSpec(task=spec_module.Task.LORA)) != spec_hash(plain)


def test_the_hash_does_not_care_whether_a_float_was_written_as_an_integer() -> None:
    assert spec_hash(JobSpec(adapter=spec_module.AdapterSection(alpha=32))) == spec_hash(
        JobSpec(adapter=spec_module.AdapterSection(alpha=32.0))
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('version = 1\n[adapter]\nrank = "sixteen"\n', ("line 3", "adapter.rank")),
        ("version = 1\n\n[training]\nlearning_rte = 1e-4\n", ("line 4", "learning_rte")),
        ("version = 1\n[data]\nmax_length = 2\n", ("line 3", "data.max_length")),
        ("version = 1\n[data\n", ("line 2",)),
        ("[training]\nlearning_rate = inf\n", ("line 2", "training.learning_rate", "finite", "above 0")),
        ("[cost]\nusd_per_hour = nan\n", ("line 2", "cost.usd_per_hour", "finite")),
        ('[[sources]]\nname = "a"\npath = "a"\nweight = inf\n', ("line 4", "sources[1].weight", "finite")),
        ("[[stages]]\nweights = { a = 1e999 }\n", ("line 2", "stages[1].weights.a", "finite")),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(tmp_path: Path, text: str, wanted: tuple[str, ...]) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(text)
    with pytest.raises(EngineError) as caught:
        load_spec(path)
    message = f"{caught.value.what} {caught.value.cause}"
    assert str(path) in message
    for part in wanted:
        assert part in message


@pytest.mark.parametrize("text", ["", "\n \t\n", "# task = 'full'\n\n  # and nothing else", "\ufeff", "\ufeff# a\n"])
def test_a_file_without_any_key_is_no_spec_although_every_key_may_be_left_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EngineError) as caught:
        load_spec(path)
    assert caught.value.code == "spec.empty"
    assert str(path) in caught.value.what
    assert "scaler-wizard plan demo -o FILE" in caught.value.next_step
    path.write_text(f"{text}\n[model]\n", encoding="utf-8")
    assert load_spec(path) == JobSpec()


def test_a_byte_order_mark_is_no_part_of_the_spec_and_moves_no_line(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text('task = "lora"\n', encoding="utf-8-sig")
    assert load_spec(path).task is Task.LORA
    path.write_text('task = "qlora"\nquantization.kind = "none"\n', encoding="utf-8-sig")
    with pytest.raises(EngineError) as caught:
        load_spec(path)
    assert caught.value.what.startswith(f"{path}: line 1: ")


def test_a_contradiction_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text('task = "qlora"\n[quantization]\nkind = "none"\n')
    with pytest.raises(EngineError) as caught:
        load_spec(path)
    assert caught.value.code == "spec.conflict"
    assert str(path) in caught.value.what


def test_a_value_outside_its_limits_is_refused_when_written_too() -> None:
    with pytest.raises(EngineError, match="outside its limits"):
        dump_spec(JobSpec(adapter=spec_module.AdapterSection(rank=0)))


def test_a_number_without_an_end_is_refused_when_written_too() -> None:
    for rate in (float("inf"), float("nan")):
        with pytest.raises(EngineError) as refused:
            dump_spec(JobSpec(training=TrainingSection(learning_rate=rate)))
        assert (refused.value.code, refused.value.key) == ("spec.value", "training.learning_rate")


def test_file_names_become_absolute_and_hub_ids_stay(tmp_path: Path) -> None:
    spec = JobSpec(
        model=spec_module.ModelSection(source="Qwen/Qwen3-0.6B"),
        data=spec_module.DataSection(train="rows.jsonl", heldout="", base_text="demo"),
    )
    absolute = with_absolute_paths(spec, tmp_path)
    assert absolute.data.train == str(tmp_path / "rows.jsonl")
    assert (absolute.data.heldout, absolute.data.base_text) == ("", "demo")
    assert absolute.model.source == "Qwen/Qwen3-0.6B"
    (tmp_path / "Qwen/Qwen3-0.6B").mkdir(parents=True)
    assert with_absolute_paths(spec, tmp_path).model.source == str(tmp_path / "Qwen/Qwen3-0.6B")


def test_a_name_that_is_no_unicode_is_refused_clearly() -> None:
    with pytest.raises(EngineError, match="not valid Unicode"):
        dump_spec(JobSpec(data=spec_module.DataSection(train="rows-\udcff.jsonl")))


def _tables(tree: dict[str, object]) -> dict[str, set[str]]:
    return {name: set(table) for name, table in tree.items() if isinstance(table, dict)}


def test_every_field_of_every_section_is_written() -> None:
    evaluation = spec_module.EvaluationSection(
        lengths=(256, 1024), needle_prompts=2, tasks=("demo",), tasks_every_steps=5, tasks_limit=9, tasks_part=8
    )
    rows = JobSpec(
        context=spec_module.ContextSection(length=1024),
        training=spec_module.TrainingSection(
            gradient_checkpointing=True, offload_activations=True, loss_chunk_tokens=512, tokens_per_step=4096
        ),
        evaluation=evaluation,
        stop=spec_module.StopSection(hours=2),
        distributed=spec_module.DistributedSection(processes=2),
        export=spec_module.ExportSection(to=(Destination.GGUF,)),
    )
    taught = JobSpec(distillation=spec_module.DistillationSection(teacher="self"))
    mixed = JobSpec(
        task=spec_module.Task.MIX,
        mix=spec_module.MixSection(rank=8),
        adapters=(spec_module.MixedAdapter(path="a"), spec_module.MixedAdapter(path="b")),
    )
    streamed = JobSpec(
        task=spec_module.Task.FULL,
        sources=(spec_module.SourceSection(name="web", path="web.txt"),),
        stream=spec_module.StreamSection(deduplicate="near"),
        training=spec_module.TrainingSection(
            max_tokens=1_000_000, ramp_from=1, ramp_ratio=0.5, trainable=("*.mlp.*",),
            schedule=spec_module.Schedule.WSD, decay_ratio=0.5, final_rate_ratio=0.1,
        ),
    )  # fmt: skip
    written: dict[str, set[str]] = {}
    for spec in (rows, streamed, taught, mixed, JobSpec(task=spec_module.Task.FULL)):
        for name, keys in _tables(tomllib.loads(dump_spec(spec))).items():
            written[name] = written.get(name, set()) | keys
    assert written == _tables(msgspec.to_builtins(rows))


def test_an_adapter_job_is_written_without_a_word_about_growth_and_keeps_its_hash() -> None:
    written = tomllib.loads(dump_spec(JobSpec()))
    assert "expansion" not in written
    assert "stages" not in written
    assert "unfreeze_after" not in written["training"]
    # What the program computed before there was growth: runs of then are still resumed.
    assert spec_hash(JobSpec()) == "a35815514517fc58dad226ce368570a9a68956f1b6cae88a42389327f0f2c0c1"
