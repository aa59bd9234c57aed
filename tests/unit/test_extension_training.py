"""Training as a part of an extension: the spec it ends in, several files as one, and what is taken from the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.context.certificate import Certificate, Training, encode_certificate
from engine.context.factors import read_factors
from engine.context.method import Options
from engine.context.plan import ContextPlan
from engine.context.planner import plan_context
from engine.errors import EngineError
from engine.extension.extend import new_order
from engine.extension.staging import Order
from engine.extension.training import check_data, mix_report, take_merged, training_spec
from engine.jobs.spec import Task
from engine.resources import demo_model_dir
from scaler_tui.mix_text import made_lines

CONFIG = json.loads((demo_model_dir() / "config.json").read_text())
DIVISORS = tuple(1 + 4 * pair / 15 for pair in range(16))


def order(**fields: Any) -> Order:
    known = {"target": 1024, "method": "yarn", "options": Options(), "train": ("demo-long",), "steps": 30}
    return new_order(demo_model_dir(), "demo", **{**known, **fields})


def plan(method: str = "yarn", **options: Any) -> ContextPlan:
    return plan_context(CONFIG, 1024, method, Options(**options))


def test_the_spec_trains_the_planned_window_and_merges(tmp_path: Path) -> None:
    spec = training_spec(order(), plan(), tmp_path)
    assert spec.task in (Task.LORA, Task.QLORA)
    assert (spec.model.source, spec.data.train) == ("demo", "demo-long")
    assert (spec.context.length, spec.context.method, spec.context.factors) == (1024, "yarn", "")
    assert (spec.training.max_steps, spec.training.seed) == (30, 17)
    assert spec.output.merge is True
    assert spec.evaluation.lengths == (256, 1024)
    assert list(tmp_path.iterdir()) == []


def test_searched_factors_reach_the_run_by_a_file(tmp_path: Path) -> None:
    searched = plan("longrope2", long_divisors=DIVISORS, attention_factor=1.1)
    spec = training_spec(order(method="longrope2"), searched, tmp_path)
    found = read_factors(Path(spec.context.factors))
    assert found.long == pytest.approx(DIVISORS)
    assert (found.short, found.attention_factor) == ((), 1.1)


def test_several_files_are_mixed_into_one(tmp_path: Path) -> None:
    names = []
    for number, word in enumerate(("copper", "quartz")):
        path = tmp_path / f"{number}.txt"
        path.write_text(f"The key of {word} is island. " * 600)
        names.append(str(path))
    spec = training_spec(order(train=tuple(names)), plan(), tmp_path)
    assert spec.data.train == str(tmp_path / "train.jsonl")
    text = Path(spec.data.train).read_text()
    assert "copper" in text
    assert "quartz" in text
    again = training_spec(order(train=tuple(names)), plan(), tmp_path)
    assert again.data.train == spec.data.train, "after an interruption the same file is used"


def test_a_mix_keeps_its_report_of_what_was_cut_and_dropped(tmp_path: Path) -> None:
    assert mix_report(tmp_path) is None
    names = []
    for number, text in enumerate(("The key of copper is island. " * 900, "Short and alone.", "Short and alone.")):
        path = tmp_path / f"{number}.txt"
        path.write_text(text)
        names.append(str(path))
    training_spec(order(train=tuple(names)), plan(), tmp_path)
    found = mix_report(tmp_path)
    assert found is not None
    assert (found.window, found.context, found.cut.documents, found.duplicates) == (256, 1024, 1, 1)
    assert found.rows == len((tmp_path / "train.jsonl").read_text().splitlines())
    said = "\n".join(made_lines(found))
    assert "Cut       1 documents longer than the target" in said
    assert str(tmp_path / "train.jsonl") not in said, "it goes with the unfinished folder"


def test_an_interruption_before_the_report_mixes_anew(tmp_path: Path) -> None:
    (tmp_path / "0.txt").write_text("The key of quartz is island. " * 900)
    (tmp_path / "train.jsonl").write_text("")
    spec = training_spec(order(train=(str(tmp_path / "0.txt"),)), plan(), tmp_path)
    assert "quartz" in Path(spec.data.train).read_text()
    assert mix_report(tmp_path) is not None


def test_files_that_are_not_there_are_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_text("text")
    assert check_data(("demo-long", str(tmp_path / "here.txt"))) == ("demo-long", str(tmp_path / "here.txt"))
    with pytest.raises(EngineError, match="to train on"):
        check_data((str(tmp_path / "missing.txt"),))


def test_the_merged_model_is_taken_over_with_its_training(tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    shutil.copytree(demo_model_dir(), merged)
    with pytest.raises(EngineError, match="no merged model"):
        take_merged(merged, tmp_path / "model")
    training = Training(run="r", window="full", steps=30, tokens=1000, seconds=1.0)
    (merged / "extension.json").write_bytes(
        encode_certificate(Certificate(source="demo", plan=plan(), training=training))
    )
    take_merged(merged, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").samefile(merged / "model.safetensors")
    assert not (tmp_path / "model" / "config.json").samefile(merged / "config.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "model"]
