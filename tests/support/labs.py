"""Labs for tests: a small file for the demo model, and runs that end with a card at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.jobs import events as ev
from engine.jobs import layout
from engine.jobs.card import CurvePoint, Scores
from engine.jobs.card_io import write_card
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run
from engine.lab.folder import LabFolder, Record, folder_of, make
from engine.lab.lab_file import Lab, load_lab
from engine.lab.sizing import ArmSize, Sizes, StageSize
from tests.support.cards import example_card
from tests.support.fake_worker import write_events

SMALL = """\
name = "small"
title = "A small lab"
question = "Which?"
seeds = [1, 2, 3]
points = 4

[budget]
kind = "flops"
amount = 1e11

[spec.data]
max_length = 128
base_text = ""

[spec.training]
batch_size = 2

[spec.evaluation]
exact_match_rows = 4

[[goals]]
name = "learn"
figure = "task_loss"

[[goals]]
name = "answer"
figure = "exact_match"
matters = 0.02

[[arms]]
name = "LoRA"
spec.task = "lora"

[[arms]]
name = "full"

[arms.spec]
task = "full"
"""


def small_lab(folder: Path, change: Callable[[str], str] = lambda text: text) -> Lab:
    """The small lab from a file in `folder`, its text changed first."""
    path = folder / "small.toml"
    path.write_text(change(SMALL))
    return load_lab(path)


def begun(lab: Lab, *, steps: int = 10) -> LabFolder:
    """Its folder, with arms of `steps` equal steps: a thousand tokens and 10⁹ operations each, LoRA half of that."""
    folder = make(folder_of(lab))
    sizes = []
    for arm in lab.arms:
        share = 0.5 if arm.spec.task.trains_adapter else 1.0
        stage = StageSize(share=1, tokens=1000.0, flops=1e9 * share, parameters=5_000_000, seconds=0.5, steps=steps)
        sizes.append(ArmSize(arm.name, (stage,), 2.0))
    record = Record(
        created=1_790_000_000.0, machine="no GPU, 2 cores", program_version="0", sizes=Sizes(tuple(sizes), "How.")
    )
    folder.begin(lab, record)
    return folder


def finish(
    folder: LabFolder,
    arm: str,
    seed: int,
    loss: float,
    *,
    exact: float = 0.5,
    curve: tuple[float, ...] = (),
    data: str = "",
) -> Path:
    """A finished run of an arm: its last held-out loss, and the curve towards it in equal parts of ten steps."""
    run_dir = create_run(JobSpec(name=f"{arm} {seed}"))
    points = tuple(CurvePoint(round(10 * (index + 1) / len(curve)), value) for index, value in enumerate(curve))
    before = Scores(task_loss=3.0, task_tokens=100, exact_match=0.0, exact_match_rows=4, base_perplexity=4.0)
    after = Scores(task_loss=loss, task_tokens=100, exact_match=exact, exact_match_rows=4, base_perplexity=5.0)
    card = msgspec.structs.replace(
        example_card(10),
        run_id=run_dir.name,
        before=before,
        after=after,
        eval_curve=points,
        cost_usd=0.25,
        data_sha256=data,
    )
    now = time.time()
    write_events(run_dir / layout.JOURNAL, [ev.End(t=now, outcome="finished", step=10)])
    write_events(run_dir / layout.RUNNER_JOURNAL, [ev.RunnerEnd(t=now, outcome="finished")])
    write_card(run_dir, card)
    folder.note_run(arm, seed, run_dir)
    return run_dir
