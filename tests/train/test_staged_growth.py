"""Staged growth: train, expand, train again as one job. Killed anywhere, it ends as it would have; moments go along."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.jobs import events as ev
from engine.jobs.card_io import read_card
from engine.jobs.journal import JournalTail
from engine.jobs.spec import JobSpec, StageSection
from engine.jobs.store import create_run, load_state
from tests.train.conftest import RunWorker, SpecMaker
from tests.train.spawn import worker_command, worker_environment
from tests.train.test_grown_training import QUICK, UNPROVEN, stored
from tests.train.test_resume_is_exact import losses

SLOW_SECONDS = 900
"""A worker imports its libraries for a minute where other processes hold the cores."""
STAGES = (
    {"name": "small", "max_steps": 3},
    {"name": "wide", "task": "new_coordinates", "hidden": 96, "layers": 3, "max_steps": 4, "unfreeze_after": 2.0},
)


def staged_spec(make_spec: SpecMaker) -> JobSpec:
    spec = make_spec(
        "full",
        expansion=UNPROVEN,
        training={"learning_rate": 1e-3, "new_learning_rate": 3e-3, "weight_decay": 0.01},
        evaluation=QUICK,
        checkpoint={"every_steps": 2},
    )
    return msgspec.structs.replace(spec, stages=msgspec.convert(STAGES, tuple[StageSection, ...]))


def kill_when(run_dir: Path, wanted: Callable[[Any], bool]) -> None:
    """Start the worker and kill it with -9 as soon as such an event is in the journal."""
    tail = JournalTail(run_dir)
    tail.read_new()
    process = subprocess.Popen(
        worker_command(run_dir), env=worker_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not any(wanted(event) for event in tail.read_new()):
        time.sleep(0.001)
    process.kill()
    process.wait()


def steps_behind(run_dir: Path) -> set[tuple[int, int]]:
    """(old entries', new entries') steps of every widened matrix, as the last checkpoint has them."""
    import torch

    tree = torch.load(run_dir / "checkpoints" / "step-00000007" / "optimizer.pt", weights_only=True)
    return {(int(one["step"]), int(one["new_step"])) for one in tree["state"].values() if "new_step" in one}


@pytest.mark.slow
def test_killed_in_its_growth_and_in_its_second_stage_a_staged_job_changes_no_bit(
    make_spec: SpecMaker, run_worker: RunWorker
) -> None:
    spec = staged_spec(make_spec)
    unbroken = run_worker(spec, timeout_seconds=SLOW_SECONDS)
    assert unbroken.end.outcome == "finished", unbroken.log[-2000:]
    assert sorted(losses(unbroken.run_dir)) == list(range(1, 8)), "steps are counted over all stages"
    begun = [(event.index, event.name) for event in unbroken.of(ev.Stage) if event.state == "begin"]
    assert begun == [(1, "small"), (2, "wide")]

    assert steps_behind(unbroken.run_dir) == {(5, 4)}, "3 steps of the first stage, 2 after joining; 4 of new entries"

    broken = create_run(spec)
    kill_when(broken, lambda event: isinstance(event, ev.Growth) and event.phase == "writing")
    kill_when(broken, lambda event: isinstance(event, ev.Step) and event.step == 6)
    resumed = run_worker(broken, timeout_seconds=SLOW_SECONDS)
    assert resumed.end.outcome == "finished", resumed.log[-2000:]
    starts = [event.resumed_step for event in resumed.of(ev.Start)]
    assert starts[0] == 0
    assert starts[1] == 3
    assert starts[2] in (4, 6)
    assert losses(broken) == losses(unbroken.run_dir)
    one, other = stored(unbroken.run_dir / "output" / "model"), stored(broken / "output" / "model")
    assert all(bool((one[name] == other[name]).all()) for name in one)
    card = read_card(broken)
    assert (card.steps, card.growths[0].stage) == (7, 2)
    assert sorted(path.name for path in (broken / "stages" / "02").iterdir()) == ["expansion.json", "growth.json"]
    state = load_state(broken)
    assert (state.stage_index, state.stage_count, state.step, state.total_steps) == (2, 2, 7, 7)


@pytest.mark.slow
def test_a_growth_job_that_was_killed_and_paused_goes_on_where_it_was(
    make_spec: SpecMaker, run_worker: RunWorker, tmp_path: Path
) -> None:
    out = tmp_path / "grown"
    spec = make_spec("expand", expansion={**UNPROVEN, "ffn": 256, "layers": 4, "shard_gb": 1e-4, "out": str(out)})
    run_dir = create_run(spec)
    kill_when(run_dir, lambda event: isinstance(event, ev.Growth) and event.phase == "writing")
    assert not out.exists()
    (run_dir / "control" / "pause").touch()
    paused = run_worker(run_dir)
    assert paused.end.outcome == "paused"
    assert not out.exists()
    done = run_worker(run_dir)
    assert done.end.outcome == "finished", done.log[-2000:]
    state = load_state(run_dir)
    assert state.growth is not None
    assert state.growth.phase == "done"
    assert (out / "expansion.json").is_file()
    assert len(list(out.glob("model-*.safetensors"))) > 1
    card = read_card(run_dir)
    assert card.adapter.path == str(out)
    assert card.before is None
    again = run_worker(create_run(spec))
    assert again.end.outcome == "failed"
    assert "exists already" in again.end.what
