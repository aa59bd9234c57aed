"""The whole story in a real terminal: start, run, drop the terminal, come back, finish, read the card."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.tmux import ROOT, Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux"),
]


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    """Terminals a test opened; all are gone afterwards."""
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.drop()


def runs() -> list[dict[str, object]]:
    """`scaler-wizard runs --json`."""
    result = subprocess.run(
        [sys.executable, "-m", "scaler_tui", "runs", "--json"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_a_run_survives_its_terminal_and_ends_in_a_card(terminals: list[Terminal]) -> None:
    first = Terminal(["--demo"])
    terminals.append(first)
    first.wait("Fine-tune the demo model now")
    first.press("1")
    first.wait("Enter starts it in the background")
    first.press("Enter")
    first.wait(lambda screen: "training" in screen and "loss" in screen, seconds=90)
    first.drop()

    (run,) = runs()
    assert run["state"] in ("running", "evaluating", "saving")

    second = Terminal([])
    terminals.append(second)
    second.wait("Re-attach to the run that is working")
    second.press("1")
    second.wait(str(run["id"]))
    second.wait("Finished", seconds=240)
    second.press("o")
    card = second.wait("Exact match")
    assert "before" in card.lower()
    second.press("q")
    second.wait("EXIT=0")

    (run,) = runs()
    assert run["state"] == "finished"
