"""Runs that follow texts and a benchmark: journal, card, the gate that ends a run, and the one that holds a result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.jobs import events as ev
from engine.jobs.card import Card
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run
from engine.resources import demo_dir
from tests.support.forked_workers import ForkedWorkers
from tests.train.conftest import Finished, SpecMaker, write_jsonl

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

PIECES = 12
"""Documents of the text that is watched."""


@pytest.fixture
def demo(make_spec: SpecMaker, tmp_path: Path) -> Callable[..., JobSpec]:
    """An adapter on the demo model, trained on one word over and over: what it could say before is soon lost."""
    said = (demo_dir() / "finetune" / "base_text.jsonl").read_text().splitlines()[:PIECES]
    (tmp_path / "prose.jsonl").write_text("".join(f"{row}\n" for row in said))
    rows = write_jsonl(tmp_path / "one.jsonl", [{"text": "dune " * (8 + number)} for number in range(16)])

    def make(limit: dict[str, Any], **sections: Any) -> JobSpec:
        data = {"train": str(rows), "heldout": "", "heldout_fraction": 0.0, "base_text": "", "max_length": 32}
        spec = make_spec("lora", model={"source": "demo"}, data=data, **sections)
        suites = [{"name": "prose", "path": str(tmp_path / "prose.jsonl")}]
        return msgspec.convert({**msgspec.to_builtins(spec), "suites": suites, "retention": [limit]}, JobSpec)

    return make


def finished(workers: ForkedWorkers, run_dir: Path) -> Finished:
    return Finished(run_dir, workers.run(run_dir))


def card_of(done: Finished) -> Card:
    return msgspec.json.decode((done.run_dir / "card.json").read_bytes(), type=Card)


def test_a_result_that_lost_too_much_is_held_and_everything_is_on_the_card(
    demo: Callable[..., JobSpec], workers: ForkedWorkers
) -> None:
    spec = demo(
        {"on": "prose", "most_lost": 0.05, "action": "hold"},
        training={"max_steps": 4, "learning_rate": 0.05, "warmup_ratio": 0.0},
        evaluation={"every_steps": 2, "tasks": ("demo",), "tasks_every_steps": 2, "tasks_part": 2, "tasks_limit": 3},
        output={"merge": True},
    )
    done = finished(workers, create_run(spec))
    assert done.end.outcome == "finished", done.log[-3000:]
    assert [(event.step, event.suite) for event in done.of(ev.SuiteScore)] == [(n, "prose") for n in (0, 2, 4)]
    asked = [(one.step, one.part, one.questions) for one in done.of(ev.BenchmarkScore) if one.task == "demo"]
    assert asked == [(0, False, 15), (2, True, 10), (4, False, 15)]
    looks = {event.step: event for event in done.of(ev.Retention)}
    assert list(looks) == [2, 4]
    assert {report.on for report in looks[2].reports} >= {"prose", "demo", "demo_arithmetic"}

    card = card_of(done)
    assert card.before is not None
    assert card.after is not None
    assert [suite.name for suite in card.after.suites] == ["prose"]
    scores = [{one.task: one.value for one in side.benchmarks} for side in (card.before, card.after)]
    assert scores[0]["demo"] == 1.0, "the demo knows its own skills"
    assert scores[1]["demo"] < 0.5
    lost = {report.on: report for report in card.retention}["prose"]
    assert (lost.verdict, lost.pairs) == ("lost", PIECES)
    assert {curve.name: [point.step for point in curve.points] for curve in card.curves}["prose"] == [0, 2, 4]
    assert card.held.startswith(lost.words)
    assert card.adapter.path == "output/held/adapter"
    assert (done.run_dir / card.adapter.path / "adapter_model.safetensors").is_file()
    assert not (done.run_dir / "output/adapter").exists()
    assert card.merged is None
    assert f"Not promoted: {lost.words}" in done.end.what
    assert "Not promoted." in (done.run_dir / "card.html").read_text()


def test_a_broken_limit_ends_the_run_at_the_last_checkpoint_that_kept_it(
    demo: Callable[..., JobSpec], workers: ForkedWorkers
) -> None:
    """The rate grows from nothing to far too much, so that the first looks are passed."""
    spec = demo(
        {"on": "prose", "most_lost": 0.05, "action": "stop"},
        training={"max_steps": 20, "learning_rate": 0.02, "warmup_ratio": 0.9},
        evaluation={"every_steps": 1},
        checkpoint={"every_steps": 100},
    )
    done = finished(workers, create_run(spec))
    assert done.end.outcome == "stopped", done.log[-3000:]
    last = max(event.step for event in done.of(ev.Step))
    good = done.end.step
    assert 1 <= good == last - 1
    assert f"A retention limit is broken at step {last}" in done.end.what
    assert f"The result is that of step {good}" in done.end.what
    kept = (done.run_dir / "good/adapter_model.safetensors").read_bytes()
    assert (done.run_dir / "output/adapter/adapter_model.safetensors").read_bytes() == kept
    assert not (done.run_dir / "output/held").exists()


def test_stages_are_compared_with_the_parent_and_a_kill_costs_no_figure(
    make_spec: SpecMaker, workers: ForkedWorkers
) -> None:
    """Killed after the parent was measured, then resumed: nothing of step 0 is measured or told twice."""
    spec = make_spec(
        "full",
        training={"max_steps": 1, "learning_rate": 1e-3},
        checkpoint={"every_steps": 1},
    )
    stages = [{"name": "first"}, {"name": "wider", "ffn": 160}]
    run_dir = create_run(msgspec.convert({**msgspec.to_builtins(spec), "stages": stages}, JobSpec))
    _kill_at_first_step(workers, run_dir)
    done = finished(workers, run_dir)
    assert done.end.outcome == "finished", done.log[-3000:]
    assert len([event for event in done.of(ev.SuiteScore) if event.step == 0]) == 1
    cells = [json.loads(line)["cell"] for line in (run_dir / "evaluation.jsonl").read_text().splitlines()]
    assert cells.count("00000000/suite/base_text") == 1
    card = card_of(done)
    assert [(stage.stage, stage.name, stage.step) for stage in card.stages] == [(1, "first", 1), (2, "wider", 2)]
    assert [report.on for report in card.stages[0].reports] == ["base_text"]
    assert card.retention == card.stages[1].reports


def _kill_at_first_step(workers: ForkedWorkers, run_dir: Path) -> None:
    workers.kill_when(run_dir, lambda event: isinstance(event, ev.Step))
