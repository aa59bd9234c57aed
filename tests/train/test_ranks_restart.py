"""A process of several that dies or hangs is named, and the run goes on from its last checkpoint: the real runner, the
real launcher, a real kill -9 and a real SIGSTOP."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.jobs import control, ranks
from engine.jobs import events as ev
from engine.jobs.journal import JournalTail
from engine.jobs.launch import launch
from engine.jobs.state import RunPhase
from engine.jobs.store import create_run, load_state
from tests.train.conftest import SpecMaker
from tests.train.spawn import worker_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HANG_SECONDS = 8.0
PATIENCE_SECONDS = 240.0


def wait_for(what: Callable[[], Any], run_dir: Path) -> Any:
    """The first true answer; fails with the logs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if answer := what():
            return answer
        time.sleep(0.1)
    logs = [path.read_text()[-1500:] for path in (run_dir / "worker.log", *run_dir.glob("ranks/*.log"))]
    raise AssertionError(logs)


@pytest.fixture
def run_dir(make_spec: SpecMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path))
    for name in os.environ.keys() - worker_environment().keys():
        monkeypatch.delenv(name)
    spec = make_spec(
        "lora",
        training={"max_steps": 100_000, "batch_size": 2, "gradient_accumulation": 2},
        evaluation={"sample_prompts": ["Say amber"], "max_new_tokens": 2},
        checkpoint={"every_steps": 5},
        distributed={"processes": 2, "hang_seconds": HANG_SECONDS, "restarts": 2},
    )
    made = create_run(spec)
    yield made
    left = [load_state(made).runner_pid, *(sign.pid for sign in ranks.read_signs(made, 2))]
    for pid in left:  # whatever a failed test leaves at work
        with contextlib.suppress(OSError):
            if pid and str(made).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def test_a_dead_and_a_hung_process_are_named_and_the_run_goes_on(run_dir: Path) -> None:
    def events(kind: type) -> list[Any]:
        return [event for event in JournalTail(run_dir).read_new() if isinstance(event, kind)]

    def stepping(attempt: int) -> bool:
        """Attempt `attempt` has made a checkpoint of its own."""
        starts = [event.t for event in events(ev.Start)]
        return len(starts) == attempt and any(one.t > starts[-1] for one in events(ev.Checkpoint))

    def in_a_step() -> ranks.Sign | None:
        """Rank 1, once its sign (one a second) says that it trains."""
        sign = ranks.read_sign(run_dir, 1)
        return sign if sign is not None and sign.step > 0 else None

    launch(run_dir)
    wait_for(lambda: stepping(1), run_dir)
    victim = wait_for(in_a_step, run_dir)
    os.kill(victim.pid, signal.SIGKILL)
    lost: ev.Recovery = wait_for(lambda: events(ev.Recovery), run_dir)[0]
    assert lost.trouble == "process lost"
    assert f"Rank 1 (pid {victim.pid} on " in lost.what
    assert "step" in lost.what, "what it was doing"
    assert lost.back_to_step >= 5
    assert load_state(run_dir).state.is_live

    wait_for(lambda: stepping(2), run_dir)
    assert events(ev.Start)[-1].resumed_step == lost.back_to_step
    victim = ranks.read_sign(run_dir, 1)
    assert victim is not None
    stopped_at = time.monotonic()
    os.kill(victim.pid, signal.SIGSTOP)
    hung: ev.Recovery = wait_for(lambda: events(ev.Recovery)[1:], run_dir)[0]
    assert time.monotonic() - stopped_at < 30
    assert hung.trouble == "process hung"
    assert f"Rank 1 (pid {victim.pid} on " in hung.what
    assert "no sign of life" in hung.what

    wait_for(lambda: stepping(3), run_dir)
    control.request(run_dir, "stop")
    wait_for(lambda: load_state(run_dir).state is RunPhase.STOPPED, run_dir)
    state = load_state(run_dir)
    assert state.attempt == 3
    assert [one.trouble for one in state.findings.recoveries] == ["process lost", "process hung"]
    assert state.findings.ranks is not None
    assert state.findings.ranks.world == 2
    assert (run_dir / "output/adapter/adapter_model.safetensors").is_file()
    for sign in ranks.read_signs(run_dir, 2):
        wait_for(lambda pid=sign.pid: not Path(f"/proc/{pid}").exists(), run_dir)
