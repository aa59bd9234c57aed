"""What a longer window should show on the demo model, held against the results: passed or failed, with figures.

Owns the expectations and their margins, which were set on another tiny model before this one was measured; they are not
moved to fit. The one about needles at 2L was added after the first race. Those that the results have nothing about are
left out. What is not stable at this size (embeddings that learn, the mixed window's benefit, a search that beats every
known method's needles) is shown in tables, not expected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from bench.context_figures import average
from bench.context_report import LENGTHS, TARGET, WINDOW, Results, needle, perplexity, short

NEEDLES = 0.95
SHORT_LOSS = 0.05
POSE_POINTS = 0.05
CONTROL = "none, 256 only"
SHAPED = ("yarn", "llama3")


UNMET = frozenset(
    (
        "untouched, at 4L the far needles are lost before the near ones",
        "untouched, its perplexity at 4L is over twice that at L",
        "yarn or llama3, not trained, has less than 0.65 of the untouched perplexity at 4L",
        "30 steps: yarn has less than 0.75 of the perplexity of training without scaling at 4L",
        "30 steps: yarn keeps 95 % of the needles at 4L",
        "30 steps: PoSE keeps 93 % of the needles at 4L",
        "30 steps: PoSE within 5 points of training at full length, yarn",
        "120 steps: PoSE keeps 93 % of the needles at 4L",
        "120 steps: PoSE within 5 points of training at full length, yarn",
        "30 steps: PoSE has less than half of the untouched perplexity at 4L",
        "120 steps: yarn has less than 0.75 of the perplexity of training without scaling at 4L",
        "120 steps: PoSE has less than half of the untouched perplexity at 4L",
    )
)
"""Claims that do not hold on this model, with figures and reasons in CONTEXT.md; any other failure is a regression."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """One claim and what was found."""

    claim: str
    passed: bool
    found: str

    @property
    def regressed(self) -> bool:
        """Whether it fails although it holds on this model."""
        return not self.passed and self.claim not in UNMET


def expectations(results: Results) -> list[Expectation]:
    """All that the results can be asked."""
    found = list(_zero_shot(results)) if results.zero_shot("none") else []
    for steps in results.steps:
        found += _trained(results, steps)
    return found + list(_search(results))


def _zero_shot(results: Results) -> Iterator[Expectation]:
    none = results.zero_shot("none")
    yield Expectation("untouched, the model loses needles at 4L", needle(none) < 0.8, f"{needle(none):.0%} answered")
    for length, called in ((2 * WINDOW, "2L"), (TARGET, "4L")):
        far, near = (average([one.needles[str(length)][depth] for one in none]) for depth in ("0", "0.75"))
        yield Expectation(
            f"untouched, at {called} the far needles are lost before the near ones",
            far < near,
            f"{far:.0%} at depth 0, {near:.0%} at 0.75",
        )
    rise = perplexity(none, TARGET) / perplexity(none, WINDOW)
    yield Expectation("untouched, its perplexity at 4L is over twice that at L", rise > 2, f"{rise:.2f} times")
    chosen = sorted({line["method"] for line in results.of("choice")})
    scores = {method: needle(results.zero_shot(method)) for method in chosen}
    yield Expectation(
        "the method chosen by measuring keeps 95 % of the needles at 4L, without training",
        bool(scores) and min(scores.values()) >= NEEDLES,
        ", ".join(f"{method} {score:.0%}" for method, score in scores.items()),
    )
    shares = {name: perplexity(results.zero_shot(name), TARGET) / perplexity(none, TARGET) for name in SHAPED}
    yield Expectation(
        "yarn or llama3, not trained, has less than 0.65 of the untouched perplexity at 4L",
        min(shares.values()) < 0.65,
        ", ".join(f"{name} {share:.2f}" for name, share in shares.items()),
    )
    kept = {name: needle(results.zero_shot(name)) for name in SHAPED}
    yield Expectation(
        "yarn or llama3, not trained, keeps 95 % of the needles at 4L",
        max(kept.values()) >= NEEDLES,
        ", ".join(f"{name} {score:.0%}" for name, score in kept.items()),
    )
    linear = results.zero_shot("linear")
    loss = perplexity(linear, WINDOW) / perplexity(none, WINDOW)
    yield Expectation("linear has over 1.8 times the untouched perplexity at L", loss > 1.8, f"{loss:.2f} times")
    dynamic = short(results.zero_shot("dynamic")) / short(none)
    yield Expectation("dynamic leaves short text as it is", abs(dynamic - 1) < 1e-4, f"{dynamic - 1:+.1%}")


def _trained(results: Results, steps: int) -> Iterator[Expectation]:
    arms = {arm: results.trained(arm, steps) for arm in results.arms(steps)}
    none, yarn, pose, control = (arms.get(name) for name in ("none", "yarn", "yarn, PoSE", CONTROL))
    full = {arm: needle(found) for arm, found in arms.items() if ", " not in arm}
    if full:
        best = max(full, key=lambda arm: full[arm])
        yield Expectation(
            f"{steps} steps: the best method at full length keeps 95 % of the needles at 4L",
            full[best] >= NEEDLES,
            ", ".join(f"{arm} {score:.0%}" for arm, score in full.items()),
        )
    if yarn and none:
        share = perplexity(yarn, TARGET) / perplexity(none, TARGET)
        yield Expectation(
            f"{steps} steps: yarn has less than 0.75 of the perplexity of training without scaling at 4L",
            share < 0.75,
            f"{share:.2f}",
        )
    if yarn:
        score = needle(yarn)
        yield Expectation(f"{steps} steps: yarn keeps 95 % of the needles at 4L", score >= NEEDLES, f"{score:.0%}")
        curve = [perplexity(yarn, length) for length in LENGTHS]
        yield Expectation(
            f"{steps} steps: yarn's perplexity of the closing tokens falls with context",
            all(later < earlier for earlier, later in pairwise(curve)),
            " > ".join(f"{value:.2f}" for value in curve),
        )
    if yarn and control:
        loss = short(yarn) / short(control) - 1
        yield Expectation(
            f"{steps} steps: short text within 5 % of as many tokens at the old length",
            loss <= SHORT_LOSS,
            f"yarn {loss:+.1%}",
        )
        score = needle(control)
        yield Expectation(f"{steps} steps at 256 without scaling do not reach 4L", score < 0.75, f"{score:.0%}")
    if pose:
        yield from _pose(results, steps)
    if results.trained("llama3, PoSE", steps) and results.trained("llama3", steps):
        score, full = (needle(results.trained(name, steps)) for name in ("llama3, PoSE", "llama3"))
        yield Expectation(
            f"{steps} steps: PoSE within 5 points of training at full length, with the method measured best",
            score >= full - POSE_POINTS,
            f"llama3 {score:.0%} against {full:.0%}",
        )


def _pose(results: Results, steps: int) -> Iterator[Expectation]:
    pose, yarn = results.trained("yarn, PoSE", steps), results.trained("yarn", steps)
    score, full = needle(pose), needle(yarn)
    yield Expectation(f"{steps} steps: PoSE keeps 93 % of the needles at 4L", score >= 0.93, f"{score:.0%}")
    if yarn:
        yield Expectation(
            f"{steps} steps: PoSE within 5 points of training at full length, yarn",
            score >= full - POSE_POINTS,
            f"{score:.0%} against {full:.0%}",
        )
    none = results.zero_shot("none")
    if none:
        share = perplexity(pose, TARGET) / perplexity(none, TARGET)
        yield Expectation(
            f"{steps} steps: PoSE has less than half of the untouched perplexity at 4L", share < 0.5, f"{share:.2f}"
        )
    kept = {line["sequence"]: line["kept_bytes"] for line in results.of("memory")}
    if len(kept) == 2 and steps == results.steps[0]:
        share = kept[WINDOW] / kept[TARGET]
        yield Expectation("PoSE keeps a fraction of the bytes for the backward pass", share < 0.3, f"{share:.0%}")


def _search(results: Results) -> Iterator[Expectation]:
    lines = results.of("search")
    if lines:
        margins = [min(known["score"] for known in line["seeds"]) - line["best"] for line in lines]
        yield Expectation(
            "the search ends at or below all known methods on its objective, with every seed",
            min(margins) >= 0,
            ", ".join(f"{margin:.4f} below" for margin in margins),
        )
