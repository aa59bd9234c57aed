"""A loss that leaps: back to the last checkpoint, past the data, at half the rate; the same wherever it is killed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import EngineError
from engine.jobs import checkpoints, layout
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.spec import CheckpointSection, JobSpec, SourceSection, StreamSection
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


def spiky(make_spec: SpecMaker, folder: Path, *, bad_row: bool = True) -> JobSpec:
    draw = random.Random(3)
    rows = [{"text": "amber birch cobalt dune ember " * 5} for _ in range(160)]
    bad = {"text": "".join(chr(draw.randint(0x4E00, 0x9FA5)) for _ in range(40))}  # most of step 9's tokens
    rows[BAD_ROW] = bad if bad_row else rows[BAD_ROW]
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
    recovered = after = 0

    def enough(event: Any) -> bool:
        nonlocal recovered, after
        recovered += isinstance(event, ev.Recovery)
        after += bool(recovered) and isinstance(event, ev.Step)
        return after >= steps

    workers.kill_when(run_dir, enough)


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


def leap(step: int, loss: float, course: Course, first_step: int = 0) -> Leap:
    return Leap(stage=0, first_step=first_step, step=step, loss=loss, course=course)


def setbacks_of(run_dir: Path, *leaps: tuple[int, float], keep: int = 2, first_step: int = 0) -> list[dict[str, Any]]:
    """Leaps at these steps, one after the other, and where each leads back to; checkpoints were due every 3 steps."""
    spec = JobSpec(
        stop=StopSection(spike_factor=2.0, spike_retries=len(leaps)),
        checkpoint=CheckpointSection(every_steps=3, keep=keep),
    )
    tally = Tally(recent_losses=[1.0, 1.1, 0.9, 1.0])
    with JournalWriter(run_dir / layout.JOURNAL) as journal:
        for step, loss in leaps:
            with pytest.raises(GoBack):
                go_back(run_dir, journal, spec, leap(step, loss, Course(read_setbacks(run_dir)), first_step), tally)
        with pytest.raises(EngineError) as refused:
            go_back(run_dir, journal, spec, leap(7, 5.0, Course(read_setbacks(run_dir)), first_step), tally)
    assert refused.value.code == "train.loss_spike"
    assert f"went back {len(leaps)} times" in refused.value.what
    return [json.loads(line) for line in (run_dir / layout.JOURNAL).read_text().splitlines()]


def with_checkpoints(run_dir: Path, *steps: int) -> Path:
    for step in steps:
        with checkpoints.saving(run_dir, step) as folder:
            (folder / "weights").write_bytes(b"1")
    return run_dir


def test_the_leap_after_the_last_retry_ends_the_run_with_words(tmp_path: Path) -> None:
    events = setbacks_of(tmp_path, (2, 4.0), (2, math.nan))
    assert [event["back_to_step"] for event in events] == [0, 0], "there is no checkpoint yet"
    assert "leapt to nan" in events[1]["what"]
    assert "median of the 4 steps before is 1" in events[0]["what"]


def test_a_checkpoint_that_leads_to_a_leap_again_is_dropped_for_the_one_before(tmp_path: Path) -> None:
    run_dir = with_checkpoints(tmp_path, 3, 6)
    events = setbacks_of(run_dir, (7, math.nan), (7, math.nan), (7, 9.0))
    assert [event["back_to_step"] for event in events] == [6, 3, 0]
    assert "as that of step 6 led to a leap again" in events[1]["remedy"]
    assert checkpoints.sound_steps(run_dir) == ()
    course = Course(read_setbacks(run_dir))
    windows = [course.window_of(step) for step in range(8)]
    assert windows == list(range(windows[0], windows[0] + 8))
    assert windows[0] == 6 + 1 + 1 + 4 + 0, (
        "what the first steps, both leaps and the steps before the last were made of"
    )


@pytest.mark.parametrize(
    ("saved", "keep", "first_step", "second", "back_to"),
    [
        ((3, 6), 2, 0, 8, 6),  # further than before: the weights are good
        ((6,), 1, 0, 7, 6),  # what came before is not kept: all of it would be trained anew
        ((2, 6), 2, 3, 7, 3),  # step 2 is of an earlier stage, 6 the first of this one
        ((6,), 1, 3, 7, 6),  # nothing is left that the stage could begin from
    ],
)
def test_a_run_goes_no_further_back_than_it_must_and_can(
    tmp_path: Path, saved: tuple[int, ...], keep: int, first_step: int, second: int, back_to: int
) -> None:
    run_dir = with_checkpoints(tmp_path, *saved)
    events = setbacks_of(run_dir, (7, math.nan), (second, math.nan), keep=keep, first_step=first_step)
    assert [event["back_to_step"] for event in events] == [6, back_to]


POISON = """
from engine.train import loop
ended = loop.RunCallback.on_step_end
def poisoned(self, args, state, control, **named):
    if state.global_step == 2:
        for weight in self.context.model.parameters():
            if weight.requires_grad:
                weight.data.fill_({value})
    return ended(self, args, state, control, **named)
loop.RunCallback.on_step_end = poisoned
"""
"""The second update breaks the weights, once: the worker that begins again does not have this."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "setbacks"),
    [("float('nan')", [(2, 1)]), ("3e38", [(3, 2), (3, 1)])],  # no number is never saved; too large a one shows later
)
def test_broken_weights_are_not_gone_back_to_for_good(
    make_spec: SpecMaker, workers: ForkedWorkers, tmp_path: Path, value: str, setbacks: list[tuple[int, int]]
) -> None:
    spec = spiky(make_spec, tmp_path, bad_row=False)
    spec = msgspec.structs.replace(
        spec,
        training=msgspec.structs.replace(spec.training, max_steps=4),
        checkpoint=CheckpointSection(every_steps=1),
        stop=StopSection(),
    )
    run_dir = create_run(spec)
    done = Finished(run_dir, workers.run(run_dir, POISON.format(value=value)))
    assert done.end.outcome == "finished", done.log[-3000:]
    assert [(one.step, one.back_to_step) for one in done.of(ev.Recovery)] == setbacks
    assert sorted(losses(run_dir)) == [1, 2, 3, 4]
    assert all(math.isfinite(loss) for loss, *_ in losses(run_dir).values())
    spans = [(one.document, one.from_token) for line in read_documents(run_dir) for one in line.documents]
    assert spans == sorted(spans), "no text twice"
    trained = sum({step.step: step.tokens for step in done.of(ev.Step)}.values())
    epoch = trained / done.of(ev.Plan)[-1].tokens_per_epoch
    assert done.of(ev.Step)[-1].epoch == pytest.approx(epoch), "what is passed over twice counts once"


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
