"""A longer window, the whole story: questions, a race that is stopped, the choice, a detached run, its card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.context.certificate import read_certificate
from engine.jobs.race_lines import RaceRow, RaceStarted, decode_line
from engine.jobs.spec import Task
from engine.jobs.spec_toml import load_spec
from scaler_tui.window import RaceKey
from tests.support.cli import cli
from tests.support.tmux import Terminal

pytestmark = pytest.mark.slow


def to_window(terminal: Terminal) -> None:
    """From the welcome screen to the longer window of the demo model."""
    terminal.wait("Plan something new")
    terminal.wait("none yet")
    terminal.press("2")
    terminal.wait("Which model do you want to start from?")
    terminal.wait("Approach")
    terminal.press("1")
    terminal.wait("What is the true goal?")
    terminal.press("5")
    terminal.wait("step 3 of 9")
    for step in range(4, 10):
        terminal.press("Enter")
        terminal.wait(f"step {step} of 9")
    terminal.press("Enter")
    terminal.wait("compare approaches")
    terminal.wait("Context scaling: ")
    terminal.press("Enter")
    terminal.wait("longer window: demo 256", seconds=60)
    terminal.wait("ntk-critical", seconds=60)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_from_the_questions_to_the_card_with_its_heat_map(terminals: list[Terminal]) -> None:
    """The demo model reads twice its window; figures come from real processes, whatever becomes of the terminal."""
    first = Terminal(["--demo"])
    terminals.append(first)
    to_window(first)
    first.press("m")
    first.wait("measuring none", seconds=120)
    first.wait("depth", seconds=120)
    first.press("Escape")
    first.wait("stopped; ", seconds=30)
    key = RaceKey("demo", 1024)
    lines = [decode_line(text) for text in key.log.read_bytes().splitlines()]
    assert any(isinstance(line, RaceRow | RaceStarted) for line in lines), "what was measured is kept"
    first.press("b")
    first.wait("auto")
    first.press("4", "Up", "1")
    first.wait("2 times the window of 256")
    first.press("Down", "Down", "4")
    first.wait("no training")
    first.press("Enter")
    first.wait("Window    to 512 tokens; by ntk-critical", seconds=60)
    first.press("Enter")
    first.wait("measuring lengths", seconds=120)
    first.drop()

    (run,) = cli("runs", "--json").json
    assert run["task"] == "extend"
    second = Terminal(["attach", run["id"]])
    terminals.append(second)
    second.wait("o shows what it changed", seconds=300)
    second.press("o")
    screen = second.wait("orks to 512", seconds=60)
    assert "By length" in screen
    second.press("PageDown")
    screen = second.wait("right answers:", seconds=30)
    assert "█ 100" in screen
    second.press("q")
    second.wait("EXIT=0")

    folder = Path(run["directory"]) / "output" / "model"
    certificate = read_certificate(folder)
    assert certificate is not None
    assert certificate.plan.method == "ntk-critical"
    assert certificate.report is not None
    assert {cell.length for cell in certificate.report.needles} >= {256, 512}
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 512
    page = (Path(run["directory"]) / "card.html").read_text()
    assert 'class="heat"' in page


TO_THE_MATRIX = ["1", "5", *[""] * 7]
"""The demo model, longer documents as the goal, then every suggestion; what follows is the choice of an approach."""


def test_the_plain_wizard_asks_the_same_and_writes_the_same_spec(tmp_path: Path) -> None:
    lines = [*TO_THE_MATRIX, "", "100", "2", "6", "8", "2", "1", "plain.toml"]
    result = cli("--plain", stdin="".join(f"{line}\n" for line in lines), cwd=tmp_path)
    assert result.code == 0, result.text
    for expected in (
        "Its window is 256",
        "4 times the window of 256",
        "dynamic is not possible",
        "PoSE. short sequences with skipped positions",
        "Who reads the result.",
        "transformers 5, exact",
        "Window: to 1,024 tokens; by yarn.",
    ):
        assert expected in result.out, expected
    assert "100" in result.out.partition("Its window is 256")[2], "a window that is not longer is refused, not taken"
    spec = load_spec(tmp_path / "plain.toml")
    assert spec.task is not Task.EXTEND
    assert (spec.context.length, spec.context.method, spec.context.window) == (1024, "yarn", "pose")
