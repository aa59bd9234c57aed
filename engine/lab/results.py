"""What came of every run of a lab, as figures by name.

Owns reading cards and journals of runs that are there, finished or not. Must not know goals or intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.jobs import events as ev
from engine.jobs.benchmark_metrics import is_share_of_right_answers, speaker
from engine.jobs.card import Card, Scores
from engine.jobs.card_io import read_card
from engine.jobs.spec import JobSpec
from engine.jobs.state import RunPhase, RunState
from engine.jobs.store import load_state
from engine.jobs.summary import summarize
from engine.lab.folder import LabFolder, Record
from engine.lab.lab_file import Arm, Lab
from engine.lab.sizing import ArmSize

LEFT_OUT = "left out"
"""State of a run over other data than the rest."""


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One held-out evaluation."""

    step: int
    loss: float


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """One arm with one seed."""

    arm: str
    seed: int
    run_id: str = ""
    state: str = "missing"
    what: str = ""
    """Why it is not finished, where it said so."""
    parameters: int = 0
    trainable_parameters: int = 0
    steps: int = 0
    stage_steps: tuple[int, ...] = ()
    """Of each stage that trains, in an arm with stages: a rule may have ended one of them."""
    training_seconds: float = 0.0
    data_sha256: str = ""
    """Of what was trained and measured on."""
    before: dict[str, float] = {}
    """By figure, of the model as it came into training."""
    after: dict[str, float] = {}
    """By figure, costs included."""
    curve: tuple[Point, ...] = ()
    """Held-out loss; step 0 is before training."""

    @property
    def finished(self) -> bool:
        return self.state == RunPhase.FINISHED.value


def collect(lab: Lab, folder: LabFolder, record: Record) -> tuple[RunResult, ...]:
    """Every arm with every seed, arm by arm; those without a run are "missing"."""
    runs = folder.runs()
    found = []
    for arm in lab.arms:
        for seed in lab.file.seeds:
            run_dir = runs.get((arm.name, seed))
            if run_dir is None:
                found.append(RunResult(arm=arm.name, seed=seed))
            else:
                found.append(_result(arm, seed, run_dir, record.sizes.of(arm.name)))
    begun = {run_dir.name: number for number, run_dir in enumerate(runs.values())}
    return _of_one_text(lab, found, begun)


def _of_one_text(lab: Lab, found: Sequence[RunResult], begun: Mapping[str, int]) -> tuple[RunResult, ...]:
    """Runs over other rows than the newest are left out, in words: a difference between texts is none between arms.
    Arms share their data unless the lab says otherwise. The hash of a stream tells nothing here: it holds the seed of
    its order, and how much an arm read."""
    specs = {arm.name: arm.spec for arm in lab.arms}
    by_arm = bool(lab.file.different) or len({_longest(spec) for spec in specs.values()}) > 1
    newest: dict[str, RunResult] = {}
    hashed = [run for run in found if run.data_sha256 and not specs[run.arm].streams]
    for run in sorted(hashed, key=lambda run: begun[run.run_id]):
        newest[run.arm if by_arm else ""] = run
    other = {
        run.run_id: last for run in hashed if (last := newest[run.arm if by_arm else ""]).data_sha256 != run.data_sha256
    }
    return tuple(_left_out(run, other[run.run_id]) if run.run_id in other else run for run in found)


def _longest(spec: JobSpec) -> int:
    """Rows are cut to the longest sequences of any stage."""
    return max((part.data.max_length for part in spec.staged() if part.task.trains), default=0)


def _left_out(run: RunResult, newest: RunResult) -> RunResult:
    what = (
        f"its data (sha256 {run.data_sha256[:8]}) is not that of {newest.arm}, seed {newest.seed} "
        f"({newest.data_sha256[:8]}): the text was changed in between; without the run {run.run_id} "
        "the lab makes it again"
    )
    return msgspec.structs.replace(run, state=LEFT_OUT, what=what)


def _result(arm: Arm, seed: int, run_dir: Path, size: ArmSize) -> RunResult:
    state = load_state(run_dir)
    known = RunResult(arm=arm.name, seed=seed, run_id=run_dir.name, state=state.state.value, what=state.what)
    if state.state is not RunPhase.FINISHED:
        return known
    try:
        card = read_card(run_dir)
    except EngineError as error:
        return msgspec.structs.replace(known, state="damaged", what=error.what)
    before, after = _scores(card.before), _scores(card.after)
    _add_findings(state, before, after)
    stage_steps = _stage_steps(arm, card)
    after |= {
        "flops": size.flops_at(card.steps, stage_steps),
        "tokens": float(card.tokens),
        "hours": card.working_seconds / 3600,
        "usd": card.cost_usd or summarize(run_dir).cost_usd,
    }
    return msgspec.structs.replace(
        known,
        what="",
        parameters=state.parameters,
        trainable_parameters=state.trainable_parameters,
        steps=card.steps,
        stage_steps=stage_steps,
        training_seconds=card.training_seconds,
        data_sha256=card.data_sha256,
        before=before,
        after=after,
        curve=_curve(card),
    )


def _stage_steps(arm: Arm, card: Card) -> tuple[int, ...]:
    """() in an arm without stages, and for a card that does not say."""
    done = {figures.stage: figures.steps for figures in card.stage_figures}
    trained = [number for number, part in enumerate(arm.spec.staged(), 1) if part.task.trains]
    found = tuple(done.get(number, 0) for number in trained)
    return found if arm.spec.stages and sum(found) == card.steps else ()


def _scores(scores: Scores | None) -> dict[str, float]:
    if scores is None:
        return {}
    figures = {
        "task_loss": scores.task_loss,
        "exact_match": scores.exact_match,
        "base_perplexity": scores.base_perplexity,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _add_findings(state: RunState, before: dict[str, float], after: dict[str, float]) -> None:
    """Suites, benchmarks and retention from the journal."""
    findings = state.findings
    for name, score in findings.suites_before.items():
        before[f"suite:{name}"] = score.bits_per_byte
    for name, score in findings.suite_scores.items():
        after[f"suite:{name}"] = score.bits_per_byte
    last = max((score.step for score in findings.benchmarks), default=0)
    for figures, step in ((before, 0), (after, last)):
        whole = [score for score in findings.benchmarks if score.step == step and not score.part]
        for task in dict.fromkeys(score.task for score in whole):
            spoken = speaker([score for score in whole if score.task == task])
            figures[figure_of(spoken)] = spoken.value
    if findings.retention is not None:
        for report in findings.retention.reports:
            falls = report.unit == "bits per byte"
            after[f"retention:{report.on}"] = -report.delta if falls else report.delta


def figure_of(score: ev.BenchmarkScore) -> str:
    """ "benchmark:TASK" for a share of right answers; "rising:TASK" or "falling:TASK" for another metric, by the way in
    which lm-eval calls it better."""
    if is_share_of_right_answers(score):
        return f"benchmark:{score.task}"
    return f"{'falling' if score.higher_is_better is False else 'rising'}:{score.task}"


def _curve(card: Card) -> tuple[Point, ...]:
    points = {point.step: point.value for point in card.eval_curve}
    if card.before is not None:
        points[0] = card.before.task_loss
    if card.after is not None:
        points[card.steps] = card.after.task_loss
    return tuple(Point(step, points[step]) for step in sorted(points))
