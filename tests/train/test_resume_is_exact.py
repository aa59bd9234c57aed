"""Killed at random moments and resumed, a run is the run it would have been: bit for bit, on the CPU."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from engine.jobs import events as ev
from engine.jobs import layout
from engine.jobs.journal import JournalTail
from engine.jobs.store import create_run
from tests.support.forked_workers import ForkedWorkers
from tests.train.conftest import Finished, RunWorker, SpecMaker

KILLS = 6
STEPS = 16


def losses(run_dir: Path) -> dict[int, tuple[float, float, float]]:
    """Loss, learning rate and gradient norm by step, steps that a resume voided left out."""
    kept: dict[int, tuple[float, float, float]] = {}
    for event in JournalTail(run_dir).read_new():
        if isinstance(event, ev.Start):
            kept = {step: value for step, value in kept.items() if step <= event.resumed_step}
        elif isinstance(event, ev.Step):
            assert event.step not in kept
            kept[event.step] = (event.loss, event.learning_rate, event.grad_norm)
    return kept


def kill_at_random(workers: ForkedWorkers, run_dir: Path, generator: random.Random) -> str:
    """Start the worker, let it come some random way, kill it with -9; returns where."""
    tail = JournalTail(run_dir)
    tail.read_new()
    worker = workers.start(run_dir)
    wanted_steps = generator.randint(0, 5)
    seen_steps = 0
    last = "nothing"
    training = False
    while workers.is_alive(worker) and not (training and seen_steps >= wanted_steps):
        for event in tail.read_new():
            training = training or (isinstance(event, ev.Phase) and event.name == "training")
            seen_steps += isinstance(event, ev.Step)
            last = type(event).__name__
        time.sleep(0.001)
    time.sleep(generator.uniform(0, 0.12))  # anywhere: in a step, an evaluation, a half-written checkpoint
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    workers.wait()
    return f"{seen_steps} steps, last {last}"


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_no_bit(
    make_spec: SpecMaker, run_worker: RunWorker, workers: ForkedWorkers
) -> None:
    seed = int(os.environ.get("SCALER_WIZARD_KILL_SEED", "0")) or time.time_ns() % 10**9
    generator = random.Random(seed)
    spec = make_spec(
        training={"max_steps": STEPS, "gradient_accumulation": 2, "batch_size": 2, "threads": 2},
        adapter={"dropout": 0.1},
        evaluation={"every_steps": 5},
        checkpoint={"every_steps": 3},
    )
    unbroken = run_worker(spec)
    assert unbroken.end.outcome == "finished", unbroken.log[-2000:]
    assert list(losses(unbroken.run_dir)) == list(range(1, STEPS + 1))

    broken = create_run(spec)
    moments = [kill_at_random(workers, broken, generator) for _ in range(KILLS)]
    resumed = run_worker(broken)

    context = f"seed {seed}; killed after {moments}"
    assert resumed.end.outcome == "finished", context + resumed.log[-2000:]
    assert losses(broken) == losses(unbroken.run_dir), context
    assert adapter_bytes(resumed) == adapter_bytes(unbroken), context
    assert len(resumed.of(ev.Start)) >= 2, context


def adapter_bytes(finished: Finished) -> bytes:
    return (finished.run_dir / layout.OUTPUT / "adapter" / "adapter_model.safetensors").read_bytes()
