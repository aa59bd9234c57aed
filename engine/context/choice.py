"""Which scaling method a model gets: the rule, applied to what was measured.

Owns the rule. Must not know how figures were measured, nor torch.

1.  Only methods that a plain folder can carry are chosen; a better one that cannot is named in the reason.
2.  Of those, the ones that leave short text within `max_short_change` of the untouched model; where none does, those
    whose loss on short text is at most twice the smallest.
3.  Of those, the best needle accuracy at the target; one prompt's worth of difference is noise.
4.  Of those, the lowest loss on the needles' answers; within `EQUAL_NLL` nats they are equal.
5.  Of those, the lowest perplexity of the closing tokens with the target's whole context.

Where needles say nothing (the untouched model does not answer them within its own window, or nothing does at the
target), steps 3 and 4 fall away. Own rule: papers rank methods differently (LongRoPE2, arXiv 2502.20082, against
arXiv 2409.12181), so that only figures of the user's own model decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.jobs.length_report import LengthReport, NeedleCell
from engine.jobs.length_verdict import SHORT_SHARE

UNTOUCHED = "none"
"""The model as it is, measured beside the methods and never chosen."""
MAX_SHORT_CHANGE = SHORT_SHARE
SHORT_SLACK = 2.0
EQUAL_NLL = 0.02
SMALLEST_USEFUL_ACCURACY = 0.05

RULE = (
    "Among methods that a plain folder can carry and that leave short text nearly as it was, the best needle accuracy "
    "at the target length; where that is equal, the lowest loss on the needles' answers, then the lowest perplexity."
)


@dataclass(frozen=True, slots=True)
class MethodScore:
    """One method's figures on the user's model, without any training."""

    method: str
    report: LengthReport
    exportable: bool = True
    not_exported_reason: str = ""

    def perplexity_at(self, length: int) -> float | None:
        """Of the closing tokens with `length` tokens of context; None where it was not measured."""
        return next((entry.perplexity for entry in self.report.perplexity if entry.length == length), None)

    def cells_at(self, length: int) -> tuple[NeedleCell, ...]:
        return tuple(cell for cell in self.report.needles if cell.length == length)

    def needle_at(self, length: int) -> float | None:
        """Share of prompts answered, over all depths and tasks."""
        return _mean([(cell.accuracy, cell.prompts) for cell in self.cells_at(length)])

    def needle_nll_at(self, length: int) -> float | None:
        """Mean over the prompts, nats per token."""
        return _mean([(cell.nll, cell.prompts) for cell in self.cells_at(length)])

    @property
    def short_change(self) -> float:
        """Relative: 0.05 is 5 % worse on short text; 0 where it was not measured."""
        return self.report.short.change if self.report.short else 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The winner and why."""

    method: str
    """ "" where no exportable method was measured."""
    reason: str
    ranking: tuple[str, ...] = ()
    """Every measured method that was not left out by rule 1, the best first; those of rule 2 after the others."""


def choose(scores: Sequence[MethodScore], target: int, max_short_change: float = MAX_SHORT_CHANGE) -> Choice:
    """Apply the module's rule; `scores` may hold the untouched model's."""
    contenders = [score for score in scores if score.method != UNTOUCHED and score.exportable]
    if not contenders:
        return Choice("", "No method that a folder can carry could be measured.")
    ranking = _ranking(contenders, scores, target, max_short_change)
    winner = next(score for score in contenders if score.method == ranking[0])
    sentences = [_why(winner, contenders, target, max_short_change, _needles_count(scores, target))]
    sentences += _no_better_than_untouched(winner, scores, target)
    sentences += _better_without_export(winner, scores, target, max_short_change)
    return Choice(winner.method, " ".join(sentences), tuple(ranking))


def _ranking(
    contenders: list[MethodScore], scores: Sequence[MethodScore], target: int, max_short_change: float
) -> list[str]:
    left, ranking = list(contenders), []
    needles = _needles_count(scores, target)
    while left:
        winner = _best(_gentle(left, max_short_change), target, needles)
        ranking.append(winner.method)
        left.remove(winner)
    return ranking


def _gentle(scores: list[MethodScore], max_short_change: float) -> list[MethodScore]:
    """Rule 2."""
    least = min(score.short_change for score in scores)
    bound = max_short_change if least <= max_short_change else SHORT_SLACK * least
    return [score for score in scores if score.short_change <= bound]


def _best(scores: list[MethodScore], target: int, needles: bool) -> MethodScore:
    """Rules 3 to 5."""
    if needles:
        asked = [score for score in scores if score.needle_at(target) is not None] or scores
        top = max(score.needle_at(target) or 0.0 for score in asked)
        noise = 1 / max(sum(cell.prompts for cell in asked[0].cells_at(target)), 1) + 1e-9
        level = [score for score in asked if (score.needle_at(target) or 0.0) >= top - noise]
        lowest = min(_or_worst(score.needle_nll_at(target)) for score in level)
        scores = [score for score in level if _or_worst(score.needle_nll_at(target)) <= lowest + EQUAL_NLL]
    return min(scores, key=lambda score: _or_worst(score.perplexity_at(target)))


def _needles_count(scores: Sequence[MethodScore], target: int) -> bool:
    """Whether needles tell methods apart."""
    return all(score.report.informative for score in scores) and any(
        (score.needle_at(target) or 0.0) > SMALLEST_USEFUL_ACCURACY for score in scores
    )


def _why(
    winner: MethodScore, contenders: list[MethodScore], target: int, max_short_change: float, needles: bool
) -> str:
    figures = []
    accuracy, perplexity = winner.needle_at(target), winner.perplexity_at(target)
    if needles and accuracy is not None:
        figures.append(f"answers {accuracy:.0%} of the needles at {target} tokens")
    if perplexity is not None:
        figures.append(f"has perplexity {perplexity:.2f} there")
    if winner.report.short:
        figures.append(f"changes short text by {winner.short_change:+.1%}")
    text = f"{winner.method} " + (", ".join(figures) if figures else "is the only one measured") + "."
    if not needles:
        text += " Needles decide nothing here: perplexity does."
    if winner.short_change > max_short_change:
        least = min(score.short_change for score in contenders)
        text += (
            f" No method keeps short text within {max_short_change:.0%} without training; the least is {least:+.1%}."
        )
    return text


def _no_better_than_untouched(winner: MethodScore, scores: Sequence[MethodScore], target: int) -> list[str]:
    untouched = next((score for score in scores if score.method == UNTOUCHED), None)
    if untouched is None or _best([winner, untouched], target, _needles_count(scores, target)) is winner:
        return []
    return ["The untouched model measures no worse there: the new length has to be learned by training."]


def _better_without_export(
    winner: MethodScore, scores: Sequence[MethodScore], target: int, max_short_change: float
) -> list[str]:
    """Methods left out by rule 1 that the other rules would have preferred."""
    said = []
    needles = _needles_count(scores, target)
    for score in scores:
        if score.exportable or score.method == UNTOUCHED:
            continue
        if _best(_gentle([winner, score], max_short_change), target, needles) is score:
            said.append(f"{score.method} measures better and is left out: {score.not_exported_reason.rstrip('.')}.")
    return said


def _mean(weighted: list[tuple[float, int]]) -> float | None:
    prompts = sum(weight for _, weight in weighted)
    return sum(value * weight for value, weight in weighted) / prompts if prompts else None


def _or_worst(value: float | None) -> float:
    return float("inf") if value is None else value
