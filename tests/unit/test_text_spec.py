"""From answers to a job that goes on training on large text: its settings, its sources, and what it would take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.advise.answers import Answers, answers_of
from engine.advise.approaches import rule_for
from engine.advise.compare import build_matrix
from engine.advise.plan import JobWish, build_spec
from engine.advise.recipes import choose_recipe
from engine.advise.text_spec import source_name, sources_of
from engine.errors import EngineError
from engine.jobs.spec import JobSpec, Schedule, Task
from engine.jobs.spec_toml import dump_spec, load_spec
from engine.models.analyze import analyze_model
from engine.models.resolve import resolve_model
from tests.unit.planning import card, machine, shape

SMALL = shape("small-like", layers=8, hidden=768, ffn=2048, heads=12, kv_heads=4, head_dim=64)
BIG = machine(card("A100 80GB", 80))
HERE = machine(ram_gib=16, cores=2)
DEMO = analyze_model(resolve_model("demo"))
SOURCES = sources_of(["books/=0.7", "code.jsonl.gz=0.3"])


def answers(**more: str | int | float) -> Answers:
    return answers_of({"model": "llama-3.2-3b", "data": "text", "data_tokens": 50_000_000, **more})


def spec_for(approach: str, **more: str | int | float) -> JobSpec:
    return build_spec(SMALL, BIG, answers(**more), approach=approach, wish=JobWish(sources=SOURCES))


def test_text_has_a_row_of_its_own_that_rows_of_chats_do_not_have() -> None:
    with_text = {row.id for row in build_matrix(SMALL, BIG, answers()).rows}
    with_rows = {row.id for row in build_matrix(SMALL, BIG, answers_of({"data": "rows.jsonl"})).rows}
    assert with_text - with_rows == {"continue"}
    assert rule_for("specialise", "text").prefer[0] == "continue"
    assert rule_for("specialise", "rows.jsonl").prefer[0] == "lora"
    assert rule_for("research", "text").prefer[0] == "partial-expansion"


def test_all_weights_are_recommended_where_they_fit_and_an_adapter_where_they_do_not() -> None:
    assert build_matrix(SMALL, BIG, answers()).recommended == "continue"
    small_card = machine(card("RTX 4060", 8))
    assert build_matrix(shape(), small_card, answers(timeline="months")).recommended in ("lora-large", "lora", "qlora")


@pytest.mark.parametrize(
    ("approach", "task"), [("continue", Task.FULL), ("lora", Task.LORA), ("qlora", Task.QLORA), ("context", Task.LORA)]
)
def test_every_approach_that_trains_makes_a_spec_that_streams(approach: str, task: Task, tmp_path: Path) -> None:
    spec = spec_for(approach, **({"context": 262_144} if approach == "context" else {}))
    assert spec.task is task or approach == "context"
    assert [(one.name, one.weight) for one in spec.sources] == [("books", 0.7), ("code", 0.3)]
    assert spec.training.max_tokens == 50_000_000
    assert (spec.data.packing, spec.training.tokens_per_step, spec.context.window) == (True, 0, "full")
    assert [suite.name for suite in spec.suites] == ["general"]
    assert spec.evaluation.every_steps > 0
    path = tmp_path / "spec.toml"
    path.write_text(dump_spec(spec))
    assert load_spec(path) == spec


def test_the_settings_are_those_of_continued_training() -> None:
    full, lora = spec_for("continue").training, spec_for("lora").training
    assert (full.schedule, full.decay_ratio, full.final_rate_ratio) == (Schedule.WSD, 0.2, 0.1)
    assert full.learning_rate == pytest.approx(lora.learning_rate / 10)
    assert spec_for("lora").adapter.rank == 64
    assert choose_recipe(answers(), HERE, DEMO).id == "text-demo"


def test_without_sources_only_the_settings_are_made() -> None:
    spec = build_spec(SMALL, BIG, answers(), approach="continue")
    assert (spec.sources, spec.training.max_tokens, spec.task) == ((), 0, Task.FULL)


def test_tokens_that_were_counted_take_the_place_of_the_answer() -> None:
    counted = answers_of({"model": "llama-3.2-3b", "data": "text"}, measured_tokens=123_456)
    spec = build_spec(SMALL, BIG, counted, approach="lora", wish=JobWish(sources=SOURCES))
    assert spec.training.max_tokens == 123_456


def test_sources_are_called_after_their_paths_and_never_alike() -> None:
    names = [one.name for one in sources_of(["a/Web Text/", "b/web-text.jsonl.gz", "hub:me/Web-Text=2", "general.txt"])]
    assert names == ["web-text", "web-text-2", "web-text-3", "general-2"]
    assert source_name("base_text.txt", []) == "base_text-2"
    assert sources_of(["x=y.txt"])[0].path == "x=y.txt"
    with pytest.raises(EngineError):
        sources_of(["=2"])


def test_plan_writes_it_headless(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("Once upon a time there was a text. " * 300)
    words = ["plan", "demo", "--data", "text", "--data-tokens", "20000", "--approach", "continue", "--json"]
    done = called(*words, "--source", str(tmp_path / "books") + "=2")
    assert done.returncode == 0, done.stderr
    spec = json.loads(done.stdout)
    assert (spec["task"], spec["training"]["max_tokens"]) == ("full", 20_000)
    assert spec["sources"][0]["name"] == "books"
    refused = called(*words)
    assert refused.returncode == 2
    assert "--source" in refused.stdout


def called(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scaler_tui", *words], capture_output=True, text=True, check=False, timeout=120
    )
