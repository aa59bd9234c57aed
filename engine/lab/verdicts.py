"""Which arm won for which goal, and whether that is certain.

Owns means and intervals per arm, the comparison of the best with every other, and the words. Must not know files.
The best arm by mean is compared with each other arm by the differences seed by seed; the intervals are 95 % for all of
them together (Bonferroni over the comparisons with the best; that these are the ones to correct for: Hsu 1984,
"Constrained simultaneous confidence intervals for multiple comparisons with the best"). Nothing is called a win whose
interval holds zero, or that is smaller than what matters. An arm that ran out of budget before it reached a level is
censored: what it would have cost is unknown, so it has no mean, enters no interval, and keeps others from winning where
it spent less than they needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import msgspec

from engine.lab.figures import OTHER_SCORES, SCALE_OF_COST, label_of, parse_figure, written, written_difference
from engine.lab.lab_file import GoalSection, Start
from engine.lab.results import RunResult
from engine.lab.sizing import Sizes
from engine.lab.statistics import interval, paired


class ArmFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One arm's figure for one goal."""

    arm: str
    values: dict[int, float]
    """By seed."""
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    """95 % of the mean over seeds; None with fewer than two."""
    missing: int = 0
    """Seeds without a value: not finished, not measured, or never reached."""
    unreached: dict[int, float] = {}
    """By seed: what was spent in all without reaching the level, so that reaching it costs more than that."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The best arm against another."""

    arm: str
    difference: float
    """best - other, mean over the seeds that both have."""
    low: float | None
    high: float | None
    seeds: int
    better: bool
    """Certain, and larger than what matters."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one goal."""

    goal: str
    figure: str
    label: str
    per: str
    higher_is_better: bool
    arms: tuple[ArmFigure, ...]
    best: str = ""
    """By mean; empty when nothing was measured."""
    comparisons: tuple[Comparison, ...] = ()
    winner: str = ""
    """Empty while it is not certain."""
    words: str = ""


@dataclass(frozen=True, slots=True)
class Ground:
    """What goals are decided on."""

    results: Sequence[RunResult]
    sizes: Sizes
    starts: dict[str, Start]
    """By arm, in the order of the lab."""

    def of(self, arm: str) -> list[RunResult]:
        """The finished runs of an arm."""
        return [result for result in self.results if result.arm == arm and result.finished]


def decide(goal: GoalSection, ground: Ground) -> Verdict:
    """The verdict on one goal."""
    goal = msgspec.structs.replace(goal, figure=_as_measured(goal.figure, ground.results))
    higher = parse_figure(goal.figure).higher_is_better or bool(goal.per)
    arms = tuple(_arm_figure(arm, goal, ground) for arm in ground.starts)
    verdict = Verdict(
        goal=goal.name,
        figure=goal.figure,
        label=label_of(goal.figure, goal.per, goal.reach),
        per=goal.per,
        higher_is_better=higher,
        arms=arms,
    )
    measured = [arm for arm in arms if arm.mean is not None]
    if not measured:
        return msgspec.structs.replace(verdict, words=_nothing(goal, arms))
    best = (max if higher else min)(measured, key=lambda arm: arm.mean or 0.0)
    others = [arm for arm in measured if arm is not best]
    comparisons = tuple(_compare(best, other, goal, higher, len(others)) for other in others)
    late = [arm for arm in arms if arm not in measured]
    wins = bool(comparisons) and all(one.better for one in comparisons) and len(best.values) > 1
    wins = wins and all(goal.reach is not None and _spent_more(arm, best) for arm in late)
    verdict = msgspec.structs.replace(verdict, best=best.arm, comparisons=comparisons, winner=best.arm if wins else "")
    return msgspec.structs.replace(verdict, words=_words(verdict, goal, best, late))


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _arm_figure(arm: str, goal: GoalSection, ground: Ground) -> ArmFigure:
    runs = ground.of(arm)
    values = {run.seed: value for run in runs if (value := _value(run, goal, ground)) is not None}
    wanted = len([result for result in ground.results if result.arm == arm])
    missing = wanted - len(values)
    if goal.reach is not None and missing:
        unreached = {
            run.seed: spent
            for run in runs
            if run.curve
            and run.seed not in values
            and (spent := _spent(run, goal.figure, run.steps, ground)) is not None
        }
        return ArmFigure(arm=arm, values=values, missing=missing, unreached=unreached)
    if not values:
        return ArmFigure(arm=arm, values={}, missing=missing)
    found = interval(list(values.values()))
    low, high = (found.low, found.high) if found.known else (None, None)
    return ArmFigure(arm=arm, values=values, mean=found.mean, low=low, high=high, missing=missing)


def _value(run: RunResult, goal: GoalSection, ground: Ground) -> float | None:
    if goal.reach is not None:
        return _until(run, goal.figure, goal.reach, ground)
    value = run.after.get(goal.figure)
    if value is None or not math.isfinite(value):
        return None
    if not goal.per:
        return value
    start, cost = _reference(goal.figure, run, ground), run.after.get(goal.per, 0.0)
    if start is None or cost <= 0:
        return None
    gain = value - start if parse_figure(goal.figure).higher_is_better else start - value
    return gain / cost * SCALE_OF_COST[goal.per]


def _reference(figure: str, run: RunResult, ground: Ground) -> float | None:
    """What the model could do before any arm touched it: an arm at random is held against that too."""
    known = [
        other.before[figure]
        for arm, start in ground.starts.items()
        if start is Start.MODEL
        for other in ground.of(arm)
        if figure in other.before
    ]
    return known[0] if known else run.before.get(figure)


def _until(run: RunResult, cost: str, level: float, ground: Ground) -> float | None:
    """What was spent when the held-out loss first was at `level`, on straight lines between evaluations; None where it
    never was."""
    step = _first_at(run, level)
    return None if step is None else _spent(run, cost, step, ground)


def _spent(run: RunResult, cost: str, step: float, ground: Ground) -> float | None:
    """What training had cost after so many steps."""
    size = ground.sizes.of(run.arm)
    if cost == "flops":
        return size.flops_at(step, run.stage_steps)
    if cost == "tokens":
        return size.tokens_at(step, run.stage_steps)
    share = step / run.steps if run.steps else 0.0
    hours = run.training_seconds / 3600 * share
    if cost == "hours":
        return hours
    spent = run.after.get("hours", 0.0)
    return hours * run.after["usd"] / spent if spent else None


def _spent_more(late: ArmFigure, best: ArmFigure) -> bool:
    """Whether an arm that missed the level had spent at least what the best needed, with every seed of the best."""
    return all(late.values.get(seed, late.unreached.get(seed, -1.0)) >= cost for seed, cost in best.values.items())


def _as_measured(figure: str, results: Sequence[RunResult]) -> str:
    """ "benchmark:TASK" as its task measures it: see `engine.lab.results.figure_of`."""
    kind, _, name = figure.partition(":")
    found = {key for run in results for key in (*run.before, *run.after) if key.endswith(f":{name}")}
    other = [f"{one}:{name}" for one in OTHER_SCORES if f"{one}:{name}" in found]
    return other[0] if kind == "benchmark" and other else figure


def _first_at(run: RunResult, level: float) -> float | None:
    previous = None
    for point in run.curve:
        if point.loss <= level:
            if previous is None or previous.loss <= point.loss:
                return float(point.step)
            share = (previous.loss - level) / (previous.loss - point.loss)
            return previous.step + share * (point.step - previous.step)
        previous = point
    return None


# ── comparisons ───────────────────────────────────────────────────────────────────────────────────────────────────
def _compare(best: ArmFigure, other: ArmFigure, goal: GoalSection, higher: bool, comparisons: int) -> Comparison:
    found = paired(best.values, other.values, comparisons=comparisons)
    if found is None:
        gap = (best.mean or 0.0) - (other.mean or 0.0)
        return Comparison(arm=other.arm, difference=gap, low=None, high=None, seeds=0, better=False)
    right_way = found.mean > 0 if higher else found.mean < 0
    return Comparison(
        arm=other.arm,
        difference=found.mean,
        low=found.low if found.known else None,
        high=found.high if found.known else None,
        seeds=found.count,
        better=found.excludes_zero and right_way and abs(found.mean) >= goal.matters,
    )


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _nothing(goal: GoalSection, arms: Sequence[ArmFigure]) -> str:
    if goal.reach is not None and any(arm.missing for arm in arms):
        return f"Not decided: no arm reached a held-out loss of {goal.reach:g} with every seed."
    return "Not decided: no arm has this figure yet."


def _words(verdict: Verdict, goal: GoalSection, best: ArmFigure, late: Sequence[ArmFigure]) -> str:
    figure = written(best.mean or 0.0, goal.figure, goal.per)
    beaten = [one for one in verdict.comparisons if one.better]
    open_ones = [one for one in verdict.comparisons if not one.better]
    behind = _late_words(goal, late, best)
    if len(best.values) < 2:
        return f"Not decided: one seed gives no interval. {best.arm} has the best figure, {figure}.{behind}"
    if verdict.winner:
        against = "; ".join(_beaten_words(one, goal) for one in verdict.comparisons)
        return f"{best.arm} won: {figure}{f', against {against}' if against else ''}.{behind}"
    first = f"Not decided: {best.arm} has the best mean, {figure}, "
    held = "; ".join(_open_words(one, goal) for one in open_ones)
    ahead = f" It is ahead of {_listed([one.arm for one in beaten])} for certain." if beaten else ""
    if not open_ones and goal.reach is not None:
        alone = (
            "" if verdict.comparisons else "but no second arm has a figure to hold against it, so there is no interval"
        )
        return f"{first}{alone or 'but others may need less'}.{ahead}{behind}"
    if not open_ones:
        return f"{first}but not every arm has this figure.{ahead}{behind}"
    return f"{first}but {held}.{ahead}{behind}"


def _beaten_words(one: Comparison, goal: GoalSection) -> str:
    return f"{one.arm} by {_range(one, goal)}"


def _open_words(one: Comparison, goal: GoalSection) -> str:
    if one.low is None or one.high is None:
        return f"{one.arm} shares fewer than two seeds with it"
    holds = one.low <= 0 <= one.high
    why = "may be none" if holds else f"is below the {goal.matters:g} that matters"
    return f"the difference from {one.arm} {why} ({_range(one, goal)})"


def _range(one: Comparison, goal: GoalSection) -> str:
    """ "+24.0 (−1.2 to +49.2) points"."""
    known = one.low is not None and one.high is not None and one.low < one.high
    edges = (one.difference, one.low, one.high) if known else (one.difference,)
    texts = [written_difference(edge or 0.0, goal.figure, goal.per) for edge in edges]
    unit = " points" if texts[0].endswith(" points") else ""
    middle, *around = (text.removesuffix(unit) for text in texts)
    return f"{middle}{f' ({around[0]} to {around[1]})' if around else ''}{unit}"


def _late_words(goal: GoalSection, late: Sequence[ArmFigure], best: ArmFigure) -> str:
    if goal.reach is None:
        return f" Not measured: {_listed([arm.arm for arm in late])}." if late else ""
    return "".join(f" {_unreached_words(goal, arm, best)}" for arm in late)


def _unreached_words(goal: GoalSection, arm: ArmFigure, best: ArmFigure) -> str:
    """ "full did not reach 1 with seeds 2 and 3, after 9.60·10¹⁰, which is less than LoRA needed."."""
    first = f"{arm.arm} did not reach {goal.reach:g} with every seed"
    if not arm.unreached:
        return f"{first}: not every run is finished."
    spent = written(fmean(arm.unreached.values()), goal.figure, goal.per)
    if _spent_more(arm, best):
        return f"{first}, and spent {spent}, no less than {best.arm} needed."
    return f"{first}: it spent {spent} and then had no more, which does not show that it needs more than {best.arm}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def mean_of(results: Sequence[RunResult], figure: str) -> float | None:
    """Over finished runs; None where none has it."""
    values = [result.after[figure] for result in results if figure in result.after]
    return fmean(values) if values else None
