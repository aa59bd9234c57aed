"""A run on two machines: one launcher here and one over a real ssh connection, meeting at the first one's address."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from engine.jobs import events as ev
from engine.jobs import layout
from engine.jobs.crew import SSH
from engine.jobs.journal import JournalTail
from engine.jobs.launch import launch
from engine.jobs.store import create_run, load_state
from tests.support import sshd
from tests.train.conftest import SpecMaker
from tests.train.spawn import worker_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(sshd.missing()), reason=sshd.missing() or "there is a server"),
]

PATIENCE_SECONDS = 300.0


def test_two_machines_train_one_run(make_spec: SpecMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    for name in os.environ.keys() - worker_environment().keys():
        monkeypatch.delenv(name)
    spec = make_spec(
        "lora",
        training={"max_steps": 3, "batch_size": 2},
        data={"base_text": ""},
        evaluation={"sample_prompts": ["Say amber"], "max_new_tokens": 2},
        distributed={"nodes": 2},
    )
    run_dir = create_run(spec)
    (run_dir / layout.HOSTS).write_text("localhost:1\n127.0.0.1:1  # the same machine, reached by ssh\n")
    server = sshd.Server(tmp_path / "sshd")
    known = f"-o UserKnownHostsFile={server.place}/known_hosts -o IdentitiesOnly=yes -o BatchMode=yes"
    monkeypatch.setenv(SSH, f"ssh -p {server.port} -i {server.place}/key {known}")
    try:
        launch(run_dir)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while load_state(run_dir).state.is_live and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        server.stop()
    logs = [path.read_text()[-1500:] for path in (run_dir / "worker.log", *run_dir.glob("ranks/*.log"))]
    events: list[Any] = JournalTail(run_dir).read_new()
    assert [event.step for event in events if isinstance(event, ev.Step)] == [1, 2, 3], logs
    assert [event.outcome for event in events if isinstance(event, ev.End)] == ["finished"], logs
    (met,) = [event for event in events if isinstance(event, ev.Ranks)]
    assert (met.world, len(met.hosts)) == (2, 2)
