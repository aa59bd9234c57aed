"""Recorded races and searches, length reports with known figures, and a stand-in for the command that prints the lines.

The recordings are real: `extend demo --context 1024 --race --json-lines`, and the same with `--method longrope2
--evaluations 40`; lines about progress are thinned out and figures rounded to six digits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import scaler_tui.race_process as race_process
from engine.jobs import events as ev
from engine.jobs.card import Card, Reader
from engine.jobs.journal import JournalWriter
from engine.jobs.layout import JOURNAL, RUNNER_JOURNAL
from engine.jobs.length_report import LengthPerplexity, LengthReport, NeedleCell, ShortRegression
from engine.jobs.liveness import current_boot_id, process_start
from engine.jobs.race_lines import Line, decode_line
from engine.jobs.spec import ContextSection, EvaluationSection, JobSpec, Task
from engine.jobs.store import create_run
from tests.support.cards import example_card

DATA = Path(__file__).resolve().parents[1] / "data" / "context"
RACE, SEARCH = DATA / "race-demo.jsonl", DATA / "search-demo.jsonl"
LENGTHS = (64, 256, 512, 1024)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
READERS = (
    Reader(program="transformers 5", verdict="exact", why="Every setting is read from rope_parameters."),
    Reader(program="llama.cpp", verdict="lost", why="Its graph for this family <takes> no factors."),
)
_PLAYER = """
import sys, time
for line in open(sys.argv[1]):
    sys.stdout.write(line)
    sys.stdout.flush()
if sys.argv[2] == "waits":
    time.sleep(600)
"""


def recorded(path: Path) -> list[Line]:
    """The lines of a recording."""
    return [line for text in path.read_bytes().splitlines() if (line := decode_line(text)) is not None]


def play(monkeypatch: pytest.MonkeyPatch, folder: Path, lines: Path, *, waits: bool = False) -> None:
    """From now on races are a real process that prints `lines`; it ends then, or waits until it is ended."""
    player = folder / "player.py"
    player.write_text(_PLAYER)
    words = (sys.executable, str(player), str(lines), "waits" if waits else "ends")
    monkeypatch.setattr(race_process, "PROGRAM", words)


def first_lines(folder: Path, count: int) -> Path:
    """A recording that stops early."""
    path = folder / "part.jsonl"
    path.write_bytes(b"".join(RACE.read_bytes().splitlines(keepends=True)[:count]))
    return path


def report(perplexities: Sequence[float], far: float, *, window: int, method: str = "") -> LengthReport:
    """A report whose needles beyond 256 tokens are lost by the share `far`, the first of the text before the last."""
    needles = tuple(
        NeedleCell(
            task="needle",
            length=length,
            depth=depth,
            prompts=8,
            accuracy=1.0 if length <= 256 else round(8 * (1 - far * (1 - depth))) / 8,
            nll=0.0 if length <= 256 else far,
        )
        for length in LENGTHS
        for depth in DEPTHS
    )
    points = tuple(
        LengthPerplexity(length=length, nll=0.0, perplexity=value, tokens=2048, documents=4)
        for length, value in zip(LENGTHS, perplexities, strict=True)
    )
    short = ShortRegression(length=256, tokens=9000, perplexity_before=11.0, perplexity_after=11.05) if method else None
    return LengthReport(
        model="demo",
        window=window,
        original=256,
        perplexity=points,
        needles=needles,
        short=short,
        method=method,
        text="demo-long",
        documents=4,
        style="notes",
    )


BEFORE = report((10.6, 10.8, 13.9, 29.4), 1.0, window=256)
AFTER = report((11.2, 10.9, 10.2, 9.9), 0.1, window=1024, method="ntk-critical")


def context_card() -> Card:
    """The card of a run that made the window longer."""
    return msgspec.structs.replace(example_card(), lengths_before=BEFORE, lengths_after=AFTER, readers=READERS)


def context_spec(task: Task = Task.LORA, **changes: Any) -> JobSpec:
    """A job that takes the demo's window to 1,024 tokens."""
    context = ContextSection(**{"length": 1024, "window": "pose" if task.trains else "full", **changes})
    evaluation = EvaluationSection(every_steps=20 if context.max_short_loss else 0)
    return JobSpec(task=task, name="longer-demo", context=context, evaluation=evaluation)


def write_context_run(spec: JobSpec, phase: ev.Phase) -> Path:
    """The run directory of a live run that is at `phase`; this process stands for runner and worker."""
    run_dir = create_run(spec)
    pid, started = os.getpid(), process_start(os.getpid()) or 0.0
    with JournalWriter(run_dir / RUNNER_JOURNAL) as runner:
        runner.write(ev.RunnerStart(t=phase.t - 3, pid=pid, process_start=started, boot_id=current_boot_id()))
        runner.write(ev.WorkerStart(t=phase.t - 2, pid=pid, process_start=started, attempt=1))
        runner.write(ev.Heartbeat(t=phase.t))
    with JournalWriter(run_dir / JOURNAL) as journal:
        journal.write(ev.Start(t=phase.t - 1, attempt=1, pid=pid, device="cpu, 2 threads"))
        journal.write(phase)
    return run_dir
