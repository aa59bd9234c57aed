"""The lean display against the stock one: the same screen in a real terminal, fewer bytes, and it never blocks."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.layout import JOURNAL
from tests.support.fake_worker import recorded_run
from tests.support.pty_terminal import ROOT, PtyTerminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]

PROGRAM = [sys.executable, "-m", "tests.support.display_app"]


class Pane:
    """The test app in a tmux pane; `styled` is text with colours and attributes of every cell."""

    def __init__(self, arguments: list[str], size: tuple[int, int]) -> None:
        self.socket = f"lean-{uuid.uuid4().hex[:8]}"
        env = {"SCALER_WIZARD_HOME": os.environ["SCALER_WIZARD_HOME"], "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT),
               "COLORTERM": "truecolor", "TZ": "UTC"}  # fmt: skip
        words = [f"{name}={shlex.quote(value)}" for name, value in env.items()]
        # pytest's readline puts COLUMNS and LINES into the environment of children; they would hide the real size.
        command = "env -u COLUMNS -u LINES " + " ".join([*words, *map(shlex.quote, [*PROGRAM, *arguments])])
        self.tmux("new-session", "-d", "-x", str(size[0]), "-y", str(size[1]), command + "; exec cat")
        self.tmux("set-option", "-s", "escape-time", "20")

    def tmux(self, *words: str) -> str:
        done = subprocess.run(["tmux", "-L", self.socket, "-f", "/dev/null", *words], capture_output=True, text=True)
        return done.stdout

    @property
    def styled(self) -> str:
        return self.tmux("capture-pane", "-p", "-e")

    @property
    def text(self) -> str:
        return self.tmux("capture-pane", "-p")

    def press(self, key: str) -> None:
        self.tmux("send-keys", key)

    def resize(self, size: tuple[int, int]) -> None:
        self.tmux("resize-window", "-x", str(size[0]), "-y", str(size[1]))

    def close(self) -> None:
        self.tmux("kill-server")


def wait_for(condition: Callable[[], bool], what: Callable[[], str], seconds: float = 30) -> None:
    """Wait on a condition; says what was there instead."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(what())
        time.sleep(0.05)


@pytest.fixture
def run_dir() -> Path:
    """A finished run with a log that holds wide, combining and joined characters."""
    run_dir = recorded_run(120)
    with JournalWriter(run_dir / JOURNAL) as journal:
        for index, message in enumerate(("日本語のログ、幅は二", "e\u0301 combining, 한국어, ＷＩＤＥ", "tail 表 ok")):
            journal.write(ev.Warn(t=1_790_000_500.0 + index, message=message))
    return run_dir


@pytest.fixture
def panes(run_dir: Path) -> Iterator[tuple[Pane, Pane]]:
    """(lean, stock), both showing the same run."""
    pair = Pane([str(run_dir)], (80, 24)), Pane(["--stock", str(run_dir)], (80, 24))
    yield pair
    for pane in pair:
        pane.close()


STEPS: tuple[tuple[str, object, str], ...] = (
    ("start", None, "Predicted"),
    ("log", "2", "level: all"),
    ("log, only warnings", "l", "日本語のログ"),
    ("filter opens", "/", "Esc clears"),
    ("filter typed", "t", "filter: t"),
    ("filter cleared", "Escape", "level: warnings  l level"),
    ("samples", "3", "capital of Velm"),
    ("details", "4", "all-linear"),
    ("wide terminal", (120, 40), "all-linear"),
    ("overview, wide", "1", "Answers"),
    ("help", "?", "Keys"),
    ("help closed", "Escape", "Answers"),
    ("narrow terminal", (60, 20), "tokens/s"),
    ("log, narrow", "2", "tail 表 ok"),
    ("scrolled up", "PageUp", "lines"),
    ("back to 80x24", (80, 24), "lines"),
    ("overview", "1", "Predicted"),
    ("redraw", "C-l", "Predicted"),
)


def test_the_terminal_shows_the_same_text_and_style_as_with_the_stock_display(panes: tuple[Pane, Pane]) -> None:
    lean, stock = panes
    for name, action, expected in STEPS:
        for pane in panes:
            if isinstance(action, str):
                pane.press(action)
            elif isinstance(action, tuple):
                pane.resize(action)
        wait_for(lambda e=expected: e in stock.text, lambda n=name: f"{n}: stock never got there\n{stock.text}")
        wait_for(
            lambda: lean.styled == stock.styled,
            lambda n=name: f"{n}: lean differs\n{_differences(lean.styled, stock.styled)}\n{lean.text}",
        )


def _differences(ours: str, theirs: str) -> str:
    pairs = zip(ours.splitlines(), theirs.splitlines(), strict=False)
    return "\n".join(f"{y}:\n lean  {a!r}\n stock {b!r}" for y, (a, b) in enumerate(pairs) if a != b)


def _bytes_for(run_dir: Path, size: tuple[int, int], *flags: str) -> tuple[int, int, int]:
    """Bytes of the first paint, of a change of pane and back, and of one second of nothing."""
    terminal = PtyTerminal([*PROGRAM, *flags, str(run_dir)], size=size)
    try:
        terminal.read_until(lambda seen: b"tokens/s" in seen)
        terminal.read_until_quiet(1.0)
        first = terminal.total_bytes
        for key in (b"4", b"1"):
            before = terminal.total_bytes
            terminal.send(key)
            terminal.read_until(lambda _, before=before: terminal.total_bytes > before)  # a slow app begins late
            terminal.read_until_quiet()
        panes = terminal.total_bytes - first
        before = terminal.total_bytes
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            terminal.read(0.05)
        return first, panes, terminal.total_bytes - before
    finally:
        terminal.close()


@pytest.mark.parametrize(("size", "first_limit"), [((120, 40), 20_000), ((80, 24), 12_000)])
def test_it_sends_a_fraction_of_the_stock_bytes_and_nothing_when_idle(
    run_dir: Path, size: tuple[int, int], first_limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lean = _bytes_for(run_dir, size)
    stock = _bytes_for(run_dir, size, "--stock")
    with capsys.disabled():
        ratios = [stock[index] / max(lean[index], 1) for index in (0, 1)]
        first = f"first paint {stock[0]:,} -> {lean[0]:,} ({ratios[0]:.1f}x)"
        print(
            f"\n{size[0]}x{size[1]} bytes stock -> lean: {first}, panes {stock[1]:,} -> {lean[1]:,} ({ratios[1]:.1f}x)"
        )
    assert lean[0] < first_limit
    assert lean[0] * 2 < stock[0]
    assert lean[1] * 2 < stock[1]
    assert lean[2] == 0


def test_a_terminal_that_stops_reading_does_not_hold_up_the_timers(tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    terminal = PtyTerminal([*PROGRAM, "--churn", "--ticks", str(ticks)], size=(120, 40))
    try:
        terminal.read_until(lambda seen: ticks.exists() and len(seen) > 5_000)
        stalled_from = time.monotonic()
        time_needed = 10.0
        wait_for(lambda: time.monotonic() - stalled_from > time_needed, str)  # nobody reads meanwhile
        stalled_to = time.monotonic()
        moments = [float(line) for line in ticks.read_text().splitlines()]
        ran = sum(stalled_from < moment < stalled_to for moment in moments)
        # A timer leaves out ticks that it is late for. The stock display makes some ten until its queue is full.
        assert ran >= (stalled_to - stalled_from) / 0.25 / 2
        resumed_at = terminal.total_bytes
        terminal.read_until(lambda seen: len(seen) > resumed_at + 20_000)  # and it goes on when somebody reads again
    finally:
        terminal.close()


def test_the_app_is_gone_soon_after_its_terminal(run_dir: Path) -> None:
    terminal = PtyTerminal([*PROGRAM, str(run_dir)])
    try:
        terminal.read_until(lambda seen: b"tokens/s" in seen)
        terminal.hang_up()
        wait_for(lambda: terminal.process.poll() is not None, lambda: "still running")
    finally:
        terminal.close()
