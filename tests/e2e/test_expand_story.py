"""Growing a model, the whole story: questions, plans, warnings, a detached run, its proof; and the plain wizard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.expansion.certificate import read_certificate
from engine.jobs.spec import Task
from engine.jobs.spec_toml import load_spec
from tests.support.cli import cli
from tests.support.tmux import Terminal

pytestmark = pytest.mark.slow


def to_plans(terminal: Terminal) -> None:
    """From the welcome screen to the plans of a block expansion."""
    terminal.wait("Plan something new")
    terminal.wait("none yet")
    terminal.press("2")
    terminal.wait("Which model do you want to start from?")
    terminal.wait("Approach")
    terminal.press("1")
    terminal.wait("What is the true goal?")
    terminal.press("7")
    terminal.wait("How large should the grown model be?")
    for _ in range(8):
        before = terminal.screen()
        terminal.press("Enter")
        terminal.wait(lambda screen, before=before: screen != before)  # type: ignore[misc]
    terminal.wait("compare approaches")
    terminal.press(*["k"] * 9)
    terminal.wait("QLoRA: ")
    terminal.press(*["j"] * 4)
    terminal.wait("Block expansion: ")
    terminal.press("Enter")
    terminal.wait("grow demo", seconds=60)
    terminal.wait("Recommended.", seconds=60)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_from_the_questions_to_the_proof(terminals: list[Terminal]) -> None:
    """The demo model is grown and proven by a run of its own, whatever becomes of the terminal."""
    first = Terminal(["--demo"])
    terminals.append(first)
    to_plans(first)
    first.wait("only the added blocks")
    for expected in ("frozen in 4 bits", "every parameter", "nothing: the model is grown"):
        first.press("l")
        first.wait(expected)
    first.press("Enter")
    first.wait("Before you start: read this")
    first.press("Enter")
    first.wait("not agreed to yet")
    first.press("Escape")
    first.wait(lambda screen: "not agreed to yet" not in screen)
    first.press("a")
    first.wait("nothing is trained")
    first.press("Enter")
    first.wait("growing", seconds=120)
    first.drop()

    second = Terminal([])
    terminals.append(second)
    second.wait("runs")
    (run,) = cli("runs", "--json").json
    assert run["task"] == "expand"
    third = Terminal(["attach", run["id"]])
    terminals.append(third)
    third.wait("v Proof", seconds=300)
    third.wait("inished", seconds=120)
    third.press("v")
    screen = third.wait("The same function", seconds=60)
    assert "largest difference" in screen
    assert "identical" in screen
    third.press("q")
    third.wait("EXIT=0")

    folder = Path(run["directory"]) / "output" / "model"
    certificate = read_certificate(folder)
    assert certificate is not None
    assert certificate.proof is not None
    assert certificate.proof.passed
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 10


TO_THE_MATRIX = ["1", "7", *[""] * 8]
"""The demo model, growth as the goal, then every suggestion; what follows is the choice of an approach."""


def test_the_plain_wizard_asks_the_same_and_writes_the_same_spec(tmp_path: Path) -> None:
    lines = [*TO_THE_MATRIX, "5", "", "1", "yes", "1", "plain.toml"]
    result = cli("--plain", stdin="".join(f"{line}\n" for line in lines), cwd=tmp_path)
    assert result.code == 0, result.text
    for expected in (
        "Ways to grow demo",
        "recommended",
        "the function is kept exactly",
        "Before you start:",
        "Instead.",
    ):
        assert expected in result.out
    flags = ("--approach", "block-expansion", "--goal", "research", "-o", "flags.toml")
    again = cli("plan", "demo", *flags, cwd=tmp_path)
    assert again.code == 0, "what was agreed to in one place is agreed to everywhere"
    plain, planned = load_spec(tmp_path / "plain.toml"), load_spec(tmp_path / "flags.toml")
    assert plain.task is Task.NEW_BLOCKS
    assert (plain.task, plain.expansion, plain.training) == (planned.task, planned.expansion, planned.training)


def test_the_plain_wizard_starts_nothing_before_the_warnings_are_agreed_to(tmp_path: Path) -> None:
    lines = [*TO_THE_MATRIX, "5", "", "1", "no"]
    result = cli("--plain", stdin="".join(f"{line}\n" for line in lines), cwd=tmp_path)
    assert result.code == 1
    assert "Nothing was started." in result.out
    assert list(tmp_path.glob("*.toml")) == []


def test_plan_needs_the_agreement_once(tmp_path: Path) -> None:
    words = ("plan", "demo", "--approach", "partial-expansion", "--growth", "wider")
    refused = cli(*words, "-o", "spec.toml", cwd=tmp_path)
    assert refused.code == 2
    assert "--understood" in refused.err
    assert "Instead: " in refused.err
    assert not (tmp_path / "spec.toml").exists()
    assert cli(*words, "--understood", "-o", "spec.toml", cwd=tmp_path).code == 0
    once = cli(*words, "-o", "again.toml", cwd=tmp_path)
    assert once.code == 0
    assert len(once.err.strip().splitlines()) == 1, "afterwards one line is enough"
    spec = load_spec(tmp_path / "again.toml")
    assert spec.task is Task.FULL
    assert spec.expansion.hidden > 192
