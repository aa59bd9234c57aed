"""[context] in a spec: what is written is read back, and what contradicts itself is refused with a way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.context.methods import METHODS
from engine.errors import EngineError
from engine.jobs.spec import ContextSection, JobSpec, Task
from engine.jobs.spec_context import SEARCHED
from engine.jobs.spec_toml import dump_spec, load_spec, spec_hash, with_absolute_paths

EXTENDED = {"context": {"length": 1024}}


def spec_of(**tree: Any) -> JobSpec:
    return msgspec.convert(tree, JobSpec)


def test_a_context_job_is_read_back_equal(tmp_path: Path) -> None:
    spec = spec_of(
        task="lora",
        data={"max_length": 1024},
        training={"gradient_checkpointing": True, "offload_activations": True, "tokens_per_step": 4096},
        context={"length": 1024, "method": "yarn", "curriculum": [256, 512, 1024], "max_short_loss": 0.05},
        evaluation={"every_steps": 5, "lengths": [256, 1024]},
    )
    path = tmp_path / "spec.toml"
    path.write_text(dump_spec(spec))
    assert load_spec(path) == spec
    assert spec_hash(load_spec(path)) == spec_hash(spec)
    assert "curriculum = [256, 512, 1024]" in path.read_text()


def test_a_file_of_factors_is_named_relative_to_the_spec(tmp_path: Path) -> None:
    spec = spec_of(context={"length": 1024, "method": "longrope", "factors": "found.csv"})
    assert with_absolute_paths(spec, tmp_path).context.factors == str(tmp_path / "found.csv")


def test_a_model_that_is_extended_already_may_be_trained_in_any_window() -> None:
    """Without context.length its config's own window is the target."""
    for window in ("pose", "mixed"):
        spec = spec_of(task="lora", data={"max_length": 1024}, context={"window": window, "train_length": 256})
        assert not spec.context.extends
    assert spec_of(task="extend", **EXTENDED).context.extends


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"task": "full", **EXTENDED}, "context", 'task = "extend"'),
    ({"task": "full", "expansion": {"layers": 9}, **EXTENDED}, "[expansion] and [context]", "Extend first"),
    (
        {"task": "full", "stages": [{"layers": 9}], **EXTENDED},
        "[expansion] and [context]",
        "Extend first",
    ),
    ({"task": "extend"}, "context.length", "context.length = 32768"),
    ({"task": "extend", "stages": [{"task": "full"}], **EXTENDED}, "[[stages]]", "Leave out the stages"),
    ({"task": "full", "stages": [{"task": "extend"}]}, "stages[1].task", "Extend first"),
    ({"task": "extend", "context": {"length": 1024, "window": "pose"}}, "context.window", "lora or qlora"),
    ({"task": "extend", "context": {"length": 1024, "curriculum": [64, 128]}}, "context.curriculum", "Leave it out"),
    ({"task": "extend", "quantization": {"kind": "nf4"}, **EXTENDED}, "quantization.kind", '"none"'),
    ({"context": {"length": 1024, "method": "dynamic"}}, "dynamic", '"yarn"'),
    ({"context": {"length": 1024, "method": "longrope2"}}, "context.factors", "scaler-wizard extend"),
    ({"context": {"length": 1024, "method": "yarn", "factors": "f.csv"}}, "context.factors", "longrope2"),
    ({"context": {"length": 1024, "method": "yarn", "theta": 5e5}}, "context.theta", '"abf"'),
    ({"data": {"max_length": 2048}, **EXTENDED}, "data.max_length = 2048", "Raise context.length"),
    ({"context": {"length": 1024, "train_length": 128}}, "context.train_length", '"pose"'),
    (
        {"data": {"max_length": 256}, "context": {"length": 1024, "window": "pose", "train_length": 512}},
        "context.train_length = 512",
        "data.max_length",
    ),
    (
        {"data": {"max_length": 256}, "context": {"length": 1024, "window": "mixed", "train_length": 256}},
        "data.max_length is 256",
        "raise data.max_length",
    ),
    (
        {"context": {"length": 1024, "window": "pose", "train_length": 8, "pose_chunks": 8}},
        "context.pose_chunks",
        "lower context.pose_chunks",
    ),
    (
        {"data": {"max_length": 1024}, "context": {"length": 1024, "window": "mixed", "curriculum": [256, 1024]}},
        "context.curriculum",
        "curriculum = []",
    ),
    (
        {"data": {"max_length": 1024}, "context": {"length": 1024, "curriculum": [512, 256]}},
        "must rise",
        "Sort it",
    ),
    ({"data": {"max_length": 512}, "context": {"length": 1024, "curriculum": [256, 1024]}}, "ends at 1024", "Raise"),
    ({"context": {"length": 1024, "max_short_loss": 0.05}}, "evaluation.every_steps", "evaluation.every_steps"),
    (
        {
            "data": {"base_text": ""},
            "evaluation": {"every_steps": 5},
            "context": {"length": 1024, "max_short_loss": 0.05},
        },
        "data.base_text",
        '"general"',
    ),
    ({"training": {"offload_activations": True}}, "gradient_checkpointing", "gradient_checkpointing = true"),
    (
        {"training": {"tokens_per_step": 4096, "gradient_accumulation": 4}},
        "training.tokens_per_step",
        "gradient_accumulation = 1",
    ),
    ({"task": "full", "evaluation": {"lengths": [256, 512]}}, "evaluation.lengths", "scaler-wizard eval"),
    ({"task": "full", "training": {"tokens_per_step": 4096}}, "training.tokens_per_step", "lora or qlora"),
]


@pytest.mark.parametrize(("tree", "named", "way_out"), REFUSED)
def test_contradictions_are_refused_with_the_key_and_the_way_out(
    tree: dict[str, Any], named: str, way_out: str
) -> None:
    with pytest.raises(EngineError) as refused:
        spec_of(**tree)
    assert refused.value.code == "spec.conflict"
    assert named in refused.value.what
    assert way_out in refused.value.next_step


def test_a_job_without_context_is_written_without_a_word_about_it() -> None:
    assert "[context]" not in dump_spec(JobSpec(task=Task.LORA))
    assert "[context]" in dump_spec(JobSpec(task=Task.LORA, context=ContextSection(length=1024)))


def test_the_methods_that_take_factors_are_those_that_need_a_search() -> None:
    assert {method.id for method in METHODS.values() if method.needs_search} == set(SEARCHED)
