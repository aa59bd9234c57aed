"""The wizard in a real terminal: questions, wrong keys, resizes, leaving and coming back."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.tmux import ROOT, Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux"),
]

Opener = Callable[..., Terminal]


@pytest.fixture
def terminal() -> Iterator[Opener]:
    """Opens terminals; all are gone afterwards."""
    opened: list[Terminal] = []

    def open_one(*arguments: str, size: tuple[int, int] = (80, 24), env: dict[str, str] | None = None) -> Terminal:
        opened.append(Terminal(list(arguments), size=size, env=env))
        return opened[-1]

    yield open_one
    for each in opened:
        each.drop()


def seconds_until(one: Terminal, key: str, text: str) -> float:
    """From a key to its effect."""
    began = time.monotonic()
    one.press(key)
    one.wait(text)
    return time.monotonic() - began


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_the_questions_survive_resizes_wrong_keys_and_leaving(terminal: Opener, size: tuple[int, int]) -> None:
    first = terminal("--demo", size=size)
    first.wait("Plan something new")
    first.wait("none yet")
    first.press("2")
    first.wait("step 1 of 9")
    first.wait("Approach")
    first.press("z", "0", "9", "F7", "y")
    first.press("1")
    first.wait("step 2 of 9")
    first.resize(60, 20)
    first.wait(lambda screen: "What is the true goal?" in screen and len(screen.splitlines()[0]) <= 60)
    first.resize(20, 5)
    first.wait("Need 40x12. q leaves")
    first.resize(*size)
    first.wait("What is the true goal?")
    first.press("7")
    first.wait("step 3 of 10")
    first.wait("How large should the grown model be?")
    first.press("b")
    first.wait("step 2 of 10")
    first.press("1")
    first.wait("step 3 of 9")
    first.press("2")
    first.wait("step 4 of 9")
    first.wait("Where should the model run in the end?")
    first.press("1")
    first.wait("step 5 of 9")
    first.press("t")
    first.type("/no/such/file.jsonl")
    first.press("Enter")
    first.wait("There is no file /no/such/file.jsonl")
    first.press("Escape")
    first.wait("b Back")
    first.press("q")
    first.wait("Your answers are kept. Go on: scaler-wizard")
    first.wait("EXIT=0")

    second = terminal("--demo", size=size)
    second.wait("Continue the wizard  at step 5 of 9")
    second.press("2")
    second.wait("step 5 of 9")
    for step in range(6, 10):
        second.press("Enter")
        second.wait(f"step {step} of 9")
    second.press("Enter")
    second.wait("compare approaches")
    second.press("e")
    second.wait("activations")
    second.press("e", "Enter")
    second.wait("Approach")
    second.wait("rows kept")
    second.press("C-c")
    second.wait("Leave Scaler Wizard?")
    second.press("C-c")
    second.wait("EXIT=0", seconds=60)


def test_a_hanging_nvidia_smi_delays_no_key(terminal: Opener, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    one = terminal("--demo", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    one.wait("Plan something new")
    taken = [seconds_until(one, "2", "Which model do you want to start from?")]
    taken += [seconds_until(one, "1", "What is the true goal?"), seconds_until(one, "b", "Which model do you want")]
    assert max(taken) < 5
    one.wait("Cost", seconds=30)  # the probe gave up and the matrix is there
    one.press("q")
    one.wait("EXIT=0")


def test_a_hub_that_never_answers_delays_no_key_and_can_be_left(terminal: Opener) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        dead = f"http://127.0.0.1:{server.getsockname()[1]}"
        one = terminal("--demo", env={"HF_ENDPOINT": dead, "HF_HUB_OFFLINE": "0"})
        one.wait("none yet")
        one.press("2")
        one.wait("Approach")
        one.press("t")
        one.type("somebody/some-model")
        one.press("Enter")
        one.wait("What is the true goal?")
        one.wait("Reading the model somebody/some-model")
        taken = [seconds_until(one, "2", "What will the result be used")]
        taken += [seconds_until(one, "b", "What is the true goal?"), seconds_until(one, "b", "Which model do you want")]
        assert max(taken) < 5
        one.press("Escape")
        one.wait("b Back")
        one.press("1")
        one.wait("LoRA, large rank", seconds=30)
        one.press("q")
        one.wait("EXIT=0", seconds=10)
        server.close()
        for connection in held:
            connection.close()


def test_a_crash_restores_the_terminal_and_leaves_a_report(terminal: Opener, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'scaler_tui' in sys.orig_argv:\n"
        "    from scaler_tui.screens.welcome import WelcomeScreen\n"
        "    def broken(self, number):\n"
        "        raise ZeroDivisionError('on purpose')\n"
        "    WelcomeScreen.action_pick = broken\n"
    )
    one = terminal("--demo", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    one.wait("Plan something new")
    one.press("1")
    screen = one.wait("EXIT=5")
    flat = " ".join(screen.split())
    assert "internal error: ZeroDivisionError: on purpose" in flat
    assert "Traceback" not in screen
    report = next(word for word in screen.replace("\n", "").split() if "scaler-wizard-report-" in word)
    path = Path(report[report.index("/") :].split(";")[0])
    text = path.read_text()
    path.unlink()
    assert "broken" in text
    assert one._tmux("display-message", "-p", "#{alternate_on}").strip() == "0"
