"""Runs that follow texts and a benchmark: journal, card, the gate that ends a run, and the one that holds a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.jobs import events as ev
from engine.jobs.card import Card
from engine.jobs.journal import JournalTail
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run
from tests.train.conftest import WORDS, Finished, RunWorker, SpecMaker, write_jsonl
from tests.train.spawn import worker_command, worker_environment

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

CAPITALS = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: question
doc_to_target: answer
target_delimiter: ""
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def followed(tmp_path: Path) -> dict[str, Any]:
    """Two texts and a benchmark of one's own."""
    rows = [{"question": f"Say {word}", "answer": " " + word} for word in WORDS * 2]
    data = write_jsonl(tmp_path / "capitals.jsonl", rows)
    (tmp_path / "capitals.yaml").write_text(CAPITALS.format(data=data))
    words = [{"text": " ".join(WORDS[number:] + WORDS[:number])} for number in range(10)]
    prose = [{"text": f"The {word} stood at the fjord, and nobody knew why it was number {word}."} for word in WORDS]
    suites = [
        {"name": name, "path": str(write_jsonl(tmp_path / f"{name}.jsonl", rows))}
        for name, rows in (("words", words), ("prose", prose))
    ]
    return {"suites": suites, "tasks": (str(tmp_path / "capitals.yaml"),)}


@pytest.fixture
def one_word(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "one.jsonl", [{"text": "dune " * (8 + number)} for number in range(24)])


def spec_of(make_spec: SpecMaker, followed: dict[str, Any], *limits: dict[str, Any], **sections: Any) -> JobSpec:
    evaluation = {"every_steps": 2, "tasks": followed["tasks"], "tasks_every_steps": 4, "tasks_part": 5}
    evaluation |= sections.pop("evaluation", {})
    spec = make_spec(sections.pop("task", "lora"), evaluation=evaluation, **sections)
    tree = {**msgspec.to_builtins(spec), "suites": followed["suites"], "retention": list(limits)}
    return msgspec.convert(tree, JobSpec)


def card_of(done: Finished) -> Card:
    return msgspec.json.decode((done.run_dir / "card.json").read_bytes(), type=Card)


def test_a_result_that_lost_too_much_is_held_and_everything_is_on_the_card(
    make_spec: SpecMaker, run_worker: RunWorker, followed: dict[str, Any], one_word: Path
) -> None:
    """One word over and over at a rate that is far too high: other text gets much worse, and no limit allows it."""
    spec = spec_of(
        make_spec,
        followed,
        {"on": "prose", "most_lost": 0.02, "action": "hold"},
        data={"train": str(one_word)},
        training={"max_steps": 6, "learning_rate": 0.2},
        output={"merge": True},
    )
    done = run_worker(spec)
    assert done.end.outcome == "finished", done.log[-3000:]
    texts = [(event.step, event.suite) for event in done.of(ev.SuiteScore)]
    names = ("words", "prose", "base_text")
    assert texts == [(step, name) for step in (0, 2, 4, 6) for name in names]
    asked = [(event.step, event.task, event.part, event.questions) for event in done.of(ev.BenchmarkScore)]
    assert asked == [(0, "capitals", False, 20), (4, "capitals", True, 5), (6, "capitals", False, 20)]
    looks = {event.step: event for event in done.of(ev.Retention)}
    assert list(looks) == [2, 4, 6]
    assert {report.on for report in looks[4].reports} == {*names, "capitals"}

    card = card_of(done)
    assert card.before is not None
    assert card.after is not None
    assert [suite.name for suite in card.after.suites] == list(names)
    assert card.before.benchmarks[0].questions == card.after.benchmarks[0].questions == 20
    lost = {report.on: report for report in card.retention}["prose"]
    assert lost.verdict == "lost"
    assert lost.pairs == len(WORDS)
    assert card.held.startswith(lost.words)
    assert {curve.name: [point.step for point in curve.points] for curve in card.curves}["prose"] == [0, 2, 4, 6]
    assert card.adapter.path == "output/held/adapter"
    assert (done.run_dir / card.adapter.path / "adapter_model.safetensors").is_file()
    assert not (done.run_dir / "output/adapter").exists()
    assert card.merged is None
    assert "Not promoted" in done.end.what
    assert lost.words in done.end.what
    assert "Not promoted." in (done.run_dir / "card.html").read_text()


def test_a_broken_limit_ends_the_run_at_the_last_checkpoint_that_kept_it(
    make_spec: SpecMaker, run_worker: RunWorker, followed: dict[str, Any], one_word: Path
) -> None:
    """The rate grows from nothing to far too much, so that the first looks are passed."""
    spec = spec_of(
        make_spec,
        followed,
        {"on": "prose", "most_lost": 0.05, "action": "stop"},
        data={"train": str(one_word)},
        training={"max_steps": 40, "learning_rate": 0.05, "warmup_ratio": 0.5},
        evaluation={"every_steps": 1, "tasks": (), "tasks_every_steps": 0},
        checkpoint={"every_steps": 100},
    )
    done = run_worker(spec)
    assert done.end.outcome == "stopped", done.log[-3000:]
    last = max(event.step for event in done.of(ev.Step))
    good = done.end.step
    assert 1 <= good == last - 1
    assert "A retention limit is broken at step" in done.end.what
    assert f"The result is that of step {good}" in done.end.what
    kept = (done.run_dir / "good/adapter_model.safetensors").read_bytes()
    assert (done.run_dir / "output/adapter/adapter_model.safetensors").read_bytes() == kept
    assert not (done.run_dir / "output/held").exists()


def test_stages_are_compared_with_the_parent_and_a_kill_costs_no_figure(
    make_spec: SpecMaker, run_worker: RunWorker, followed: dict[str, Any]
) -> None:
    """Killed after the parent was measured, then resumed: nothing of step 0 is measured or told twice."""
    spec = spec_of(
        make_spec,
        followed,
        task="full",
        training={"max_steps": 2, "learning_rate": 1e-3},
        evaluation={"every_steps": 1, "tasks_limit": 4},
        checkpoint={"every_steps": 1},
    )
    tree = {**msgspec.to_builtins(spec), "stages": [{"name": "first"}, {"name": "wider", "ffn": 160}]}
    run_dir = create_run(msgspec.convert(tree, JobSpec))
    _kill_at_first_step(run_dir)
    done = run_worker(run_dir)
    assert done.end.outcome == "finished", done.log[-3000:]
    firsts = [event.suite for event in done.of(ev.SuiteScore) if event.step == 0]
    assert sorted(firsts) == ["base_text", "prose", "words"]
    cells = [json.loads(line)["cell"] for line in (run_dir / "evaluation.jsonl").read_text().splitlines()]
    assert len([cell for cell in cells if cell.startswith("00000000/suite")]) == 3
    card = card_of(done)
    assert [(stage.stage, stage.name, stage.step) for stage in card.stages] == [(1, "first", 2), (2, "wider", 4)]
    assert {report.on for report in card.stages[0].reports} == {"words", "prose", "base_text", "capitals"}
    assert card.retention == card.stages[1].reports


def _kill_at_first_step(run_dir: Path) -> None:
    process = subprocess.Popen(worker_command(run_dir, ""), env=worker_environment(), stdout=subprocess.DEVNULL)
    try:
        tail = JournalTail(run_dir)
        until = time.monotonic() + 150
        while not any(isinstance(event, ev.Step) for event in tail.read_new()):
            assert process.poll() is None, (run_dir / "worker.log").read_text()[-3000:]
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
