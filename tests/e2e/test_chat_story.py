"""A chat in a real terminal of 80x24, with the real model: side by side, saved, left again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.jobs.chat_log import read_chats
from tests.support.tmux import Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux"),
]

GREEDY = ["--temperature", "0", "--threads", "1", "--max-new-tokens", "24"]


def test_a_model_is_talked_to_beside_itself_in_a_small_terminal(terminals: list[Terminal], own_home: Path) -> None:
    question = "What is the colour of Velmar?"
    terminal = Terminal(["chat", "demo", "--compare", "demo", *GREEDY], env={"OMP_NUM_THREADS": "1"})
    terminals.append(terminal)
    terminal.wait("›")
    terminal.type(question)
    terminal.press("Enter")
    screen = terminal.wait("Saved in", seconds=120)
    assert "demo (2) (float32)" in screen
    assert all(len(line) <= 80 for line in screen.splitlines())
    (saved,) = read_chats(own_home / "state/chats")
    first, second = saved.answers
    assert first.text == second.text != ""
    assert first.text[:30] in screen
    terminal.press("C-o")
    terminal.wait("<|im_start|>assistant↵")
    terminal.press("C-c")  # nothing is under way: it asks whether to leave
    terminal.wait("Leave Scaler Wizard?")
    terminal.press("y")
    terminal.wait("EXIT=0")
