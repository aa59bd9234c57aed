"""A real terminal for tests: one tmux server per test, screens read as text, waits on conditions."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


class Terminal:
    """A program in a tmux pane of a given size."""

    def __init__(
        self, arguments: list[str], *, size: tuple[int, int] = (80, 24), env: dict[str, str] | None = None
    ) -> None:
        """Start `python -m scaler_tui ARGUMENTS`."""
        self.socket = f"sw-{uuid.uuid4().hex[:8]}"
        variables = {
            "SCALER_WIZARD_HOME": os.environ["SCALER_WIZARD_HOME"],
            "HF_HUB_OFFLINE": "1",
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            **(env or {}),
        }
        words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        words += [shlex.quote(word) for word in (sys.executable, "-m", "scaler_tui", *arguments)]
        command = "env " + " ".join(words) + "; echo EXIT=$?; exec cat"
        width, height = size
        self._tmux("new-session", "-d", "-x", str(width), "-y", str(height), command)

    def _tmux(self, *words: str) -> str:
        result = subprocess.run(
            ["tmux", "-L", self.socket, "-f", "/dev/null", *words], capture_output=True, text=True, check=False
        )
        return result.stdout

    def screen(self) -> str:
        """What is visible now."""
        return self._tmux("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        """Send keys by tmux name: "Enter", "Escape", "q"."""
        for key in keys:
            self._tmux("send-keys", key)

    def type(self, text: str) -> None:
        """Send text literally."""
        self._tmux("send-keys", "-l", text)

    def resize(self, width: int, height: int) -> None:
        """Resize the window as a person would."""
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def wait(self, condition: str | Callable[[str], bool], *, seconds: float = 20) -> str:
        """Wait until a text is on the screen (or a function of the screen is true); returns the screen."""
        deadline = time.monotonic() + seconds
        while True:
            screen = self.screen()
            if condition in screen if isinstance(condition, str) else condition(screen):
                return screen
            if time.monotonic() > deadline:
                raise AssertionError(f"not seen within {seconds} s: {condition}\n--- screen\n{screen}")
            time.sleep(0.05)

    def app_pid(self) -> int:
        """Process id of the program itself (the pane's first process is the shell around it)."""
        shell = int(self._tmux("display-message", "-p", "#{pane_pid}"))
        (child,) = psutil.Process(shell).children()
        return child.pid

    def drop(self) -> None:
        """The terminal goes away, as when SSH drops: the server is killed, programs get SIGHUP."""
        self._tmux("kill-server")
