"""A loss that leaps: back to the last checkpoint, past the data, at half the rate; the same wherever it is killed."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import EngineError
from engine.jobs import events as ev
from engine.jobs import layout
from engine.jobs.journal import JournalTail, JournalWriter
from engine.jobs.spec import JobSpec, SourceSection, StreamSection
from engine.jobs.spec_stop import StopSection
from engine.jobs.store import create_run, load_state
from engine.train.course import Course, GoBack, Setback, read_setbacks
from engine.train.documents_log import read_documents
from engine.train.endings import rules_of
from engine.train.spikes import Leap, go_back
from engine.train.tally import Tally
from tests.support.forked_workers import ForkedWorkers
from tests.train.conftest import Finished, SpecMaker, write_jsonl
from tests.train.test_resume_is_exact import adapter_bytes, losses

LENGTH, SEQUENCES = 32, 4
STEPS = 12
BAD_ROW = 38
"""Text that no model expects, in the middle of text that is learned in a few steps."""


def spiky(make_spec: SpecMaker, folder: Path) -> JobSpec:
    draw = random.Random(3)
    rows = [{"text": "amber birch cobalt dune ember " * 5} for _ in range(160)]
    rows[BAD_ROW] = {"text": "".join(chr(draw.randint(0x4E00, 0x9FA5)) for _ in range(40))}  # most of step 9's tokens
    spec = make_spec(
        "lora",
        data={"train": "demo", "heldout": "", "base_text": "", "max_length": LENGTH},
        training={
            "max_steps": STEPS, "batch_size": SEQUENCES, "learning_rate": 3e-2, "schedule": "constant",
            "warmup_ratio": 0.0,
        },
        evaluation={"exact_match_rows": 0},
        checkpoint={"every_steps": 3},
    )  # fmt: skip
    return msgspec.structs.replace(
        spec,
        sources=(SourceSection(name="text", path=str(write_jsonl(folder / "text.jsonl", rows))),),
        stream=StreamSection(
            record_documents=True,
            cache=str(folder / "cache"),
            deduplicate="off",
            shuffle_documents=0,
            heldout_share=0.0,
        ),
        stop=StopSection(spike_factor=1.5, spike_window=4),
    )


def kill_when_recovered(workers: ForkedWorkers, run_dir: Path, steps: int) -> None:
    """Start the worker; kill it with -9 so many steps after it went back."""
    tail = JournalTail(run_dir)
    worker = workers.start(run_dir)
    recovered = after = 0
    while after < steps and workers.is_alive(worker):
        for event in tail.read_new():
            recovered += isinstance(event, ev.Recovery)
            after += bool(recovered) and isinstance(event, ev.Step)
        time.sleep(0.001)
    assert recovered
    os.kill(worker, signal.SIGKILL)
    assert workers.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_leap_is_passed_over_at_half_the_rate_and_a_kill_afterwards_changes_no_bit(
    make_spec: SpecMaker, workers: ForkedWorkers, tmp_path: Path
) -> None:
    spec = spiky(make_spec, tmp_path)
    run_dir = create_run(spec)
    unbroken = Finished(run_dir, workers.run(run_dir))
    assert unbroken.end.outcome == "finished", unbroken.log[-3000:]
    found = unbroken.of(ev.Recovery)
    assert [one.trouble for one in found] == ["loss spike"]
    assert len(unbroken.of(ev.Start)) == 1 + len(found), "the worker began again by itself"
    kept = losses(unbroken.run_dir)
    assert sorted(kept) == list(range(1, STEPS + 1))
    (first,) = found
    assert (first.step, first.back_to_step) == (9, 6)
    assert kept[first.back_to_step][1] == 3e-2
    assert {kept[step][1] for step in range(7, STEPS + 1)} == {1.5e-2}, "from the first step on"
    assert load_state(unbroken.run_dir).findings.recoveries == found

    lines = list(read_documents(unbroken.run_dir))
    assert [line.step for line in lines] == list(range(1, STEPS + 1))
    spans = [(one.document, one.from_token) for line in lines for one in line.documents]
    assert spans == sorted(spans), "no text twice"
    assert BAD_ROW not in {document for document, _ in spans}, "what made it leap is passed over"

    broken = create_run(spec)
    kill_when_recovered(workers, broken, 1)
    resumed = Finished(broken, workers.run(broken))
    assert resumed.end.outcome == "finished", resumed.log[-3000:]
    assert losses(broken) == kept
    assert adapter_bytes(resumed) == adapter_bytes(unbroken)
    assert (broken / "documents.jsonl").read_bytes() == (unbroken.run_dir / "documents.jsonl").read_bytes()


def leap(step: int, loss: float, course: Course) -> Leap:
    return Leap(stage=0, first_step=0, step=step, loss=loss, course=course)


def test_the_leap_after_the_last_retry_ends_the_run_with_words(tmp_path: Path) -> None:
    rules = StopSection(spike_factor=2.0, spike_retries=2)
    tally = Tally(recent_losses=[1.0, 1.1, 0.9, 1.0])
    with JournalWriter(tmp_path / layout.JOURNAL) as journal:
        for loss in (4.0, math.nan):
            course = Course(read_setbacks(tmp_path))
            with pytest.raises(GoBack):
                go_back(tmp_path, journal, rules, leap(7, loss, course), tally)
        with pytest.raises(EngineError) as refused:
            go_back(tmp_path, journal, rules, leap(7, 5.0, Course(read_setbacks(tmp_path))), tally)
    assert refused.value.code == "train.loss_spike"
    assert "went back 2 times" in refused.value.what
    events = [json.loads(line) for line in (tmp_path / layout.JOURNAL).read_text().splitlines()]
    assert [event["back_to_step"] for event in events] == [0, 0]
    assert "leapt to nan" in events[1]["what"]
    assert "median of the 4 steps before is 1" in events[0]["what"]


def setback(back_to: int, step: int, windows: tuple[int, int]) -> Setback:
    return Setback(stage=0, step=step, back_to=back_to, first_window=windows[0], last_window=windows[1], what="")


def test_after_a_setback_steps_go_on_behind_what_was_passed_over() -> None:
    course = Course([setback(2, 3, (2, 3))])
    assert [course.window_of(step) for step in range(6)] == [0, 1, 4, 5, 6, 7]
    assert [course.rate_factor(step) for step in range(4)] == [1.0, 1.0, 0.5, 0.5]
    again = Course([setback(2, 3, (2, 3)), setback(2, 2, (4, 4))])
    assert [again.window_of(step) for step in range(5)] == [0, 1, 5, 6, 7]
    assert again.rate_factor(2) == 0.25
    assert Course().window_of(5) == 5


def test_a_plan_that_ends_begins_anew_without_what_was_passed_over() -> None:
    course = Course([setback(1, 2, (1, 2))], windows=5)
    assert [course.window_of(step) % 5 for step in range(8)] == [0, 3, 4, 0, 3, 4, 0, 3]
    late = Course([setback(6, 6, (6, 6))], windows=5)
    assert [late.window_of(step) % 5 for step in range(10)] == [0, 1, 2, 3, 4, 0, 2, 3, 4, 0], "as it was before it"
    assert [Course([setback(0, 1, (0, 1))], windows=2).window_of(step) for step in (0, 1)]


def test_a_course_asked_from_the_middle_is_the_course_asked_from_the_start() -> None:
    """A resumed attempt asks for its first step first."""
    setbacks = [setback(4, 6, (4, 6)), setback(9, 9, (12, 12))]
    whole = [Course(setbacks, windows=20).window_of(step) for step in range(20)]
    assert Course(setbacks, windows=20).window_of(13) == whole[13]
    assert whole == sorted(set(whole))


# ── rules that end a stage or the job ─────────────────────────────────────────────────────────────────────────────
def staged_rules(**stop: Any) -> JobSpec:
    tree = {
        "task": "full",
        "evaluation": {"every_steps": 2},
        "cost": {"usd_per_hour": 2.0},
        "stop": stop,
        "stages": [{"max_steps": 5, "stop_hours": 1.0, "stop_loss": 1.0}, {"max_steps": 5}],
    }
    return msgspec.convert(tree, JobSpec)


def test_a_stage_ends_by_its_own_hours_and_the_job_by_those_of_all() -> None:
    spec = staged_rules(hours=3.0)
    first, last = rules_of(spec, 0), rules_of(spec, 1)
    tally = Tally(stage_worked_from=1800.0)
    assert first.stage_ends(tally, 5000.0, evaluated=False) is None
    ended = first.stage_ends(tally, 5500.0, evaluated=False)
    assert ended is not None
    assert ended.rule == "hours"
    assert first.job_ends(5500.0) is None
    assert first.job_ends(3 * 3600.0) is not None
    assert last.stage_ends(tally, 5500.0, evaluated=False) is None, "it has no hours of its own"
    assert last.stage_ends(tally, 3 * 3600.0, evaluated=False) is not None, "the last stage is ended, and measured"
    assert last.job_ends(3 * 3600.0) is None


def test_a_held_out_loss_ends_the_stage_that_asks_for_it() -> None:
    spec = staged_rules(plateau_evaluations=2, plateau_gain=0.01)
    first, last = rules_of(spec, 0), rules_of(spec, 1)
    low = Tally(eval_losses=[2.0, 0.9])
    assert first.stage_ends(low, 0.0, evaluated=False) is None, "only after an evaluation"
    ended = first.stage_ends(low, 0.0, evaluated=True)
    assert ended is not None
    assert ended.rule == "loss"
    assert last.stage_ends(low, 0.0, evaluated=True) is None
    flat = last.stage_ends(Tally(eval_losses=[2.0, 1.999, 1.998]), 0.0, evaluated=True)
    assert flat is not None
    assert flat.rule == "plateau"
