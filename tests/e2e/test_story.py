"""The whole story in a real terminal: start, run, drop the terminal, come back, finish, read the card."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.jobs.state import RunPhase
from engine.jobs.store import Follower, find_run
from tests.support.tmux import ROOT, Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux"),
]


def runs() -> list[dict[str, object]]:
    """`scaler-wizard runs --json`."""
    result = subprocess.run(
        [sys.executable, "-m", "scaler_tui", "runs", "--json"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_a_run_survives_its_terminal_and_ends_in_a_card(terminals: list[Terminal]) -> None:
    """The demo: review, start, terminal gone in the middle, back again, finished, before/after card."""
    first = Terminal(["--demo"])
    terminals.append(first)
    first.wait("Fine-tune the demo model now")
    first.press("1")
    first.wait("Enter starts it in the background")
    first.press("Enter")
    first.wait(lambda screen: "training" in screen and "loss" in screen, seconds=120)
    first.drop()

    (run,) = runs()
    assert run["state"] in ("running", "evaluating", "saving")

    second = Terminal([])
    terminals.append(second)
    second.wait("Re-attach to the run that is working")
    second.press("1")
    second.wait(str(run["id"]))
    second.wait("Finished", seconds=400)
    second.press("o")
    card = second.wait("exact answers")
    assert "before" in card.lower()
    second.press("q")
    second.wait("EXIT=0")

    (run,) = runs()
    assert run["state"] == "finished"
    page = Path(str(run["directory"])) / "card.html"
    assert "<svg" in page.read_text(encoding="utf-8")


def test_answers_kill_9_of_the_app_and_of_the_worker_lose_nothing(terminals: list[Terminal]) -> None:
    """Every question answered; the app killed with -9, then the worker; one key resumes; the run finishes."""
    terminal = Terminal(["--demo"])
    terminals.append(terminal)
    terminal.wait("Plan something new")
    terminal.press("2")
    for step in range(1, 10):
        terminal.wait(f"step {step} of 9")
        terminal.press("Enter")
    terminal.wait("compare approaches")
    terminal.press("Up", "Enter")
    terminal.wait("Enter starts it in the background")
    terminal.press("Enter")
    terminal.wait(lambda screen: "training" in screen and "loss" in screen, seconds=120)

    os.kill(terminal.app_pid(), signal.SIGKILL)
    terminal.wait("EXIT=137")
    (run,) = runs()
    assert run["state"] in ("running", "evaluating", "saving")

    run_dir = find_run(str(run["id"]))
    follower = Follower(run_dir)
    wait_until(lambda: bool(follower.poll().checkpoints), seconds=200)
    worker = follower.poll().worker_pid
    again = Terminal(["attach"])
    terminals.append(again)
    again.wait(str(run["id"]))
    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    again.wait("killed", seconds=10)
    assert time.monotonic() - killed < 10
    again.press("r")
    wait_until(lambda: follower.poll().state is RunPhase.FINISHED, seconds=400)
    assert follower.poll().attempt == 2
    again.press("q")
    again.wait("EXIT=0")


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    """Wait for a condition; fails loudly."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
