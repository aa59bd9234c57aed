"""The rule that picks a scaling method: what can be written first, then short text, needles, their loss, perplexity."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from engine.context.choice import MethodScore, choose
from engine.jobs.length_report import LengthPerplexity, LengthReport, NeedleCell, ShortRegression

TARGET = 1024
PROMPTS = 10


def scored(
    method: str,
    *,
    right: int = 10,
    needle_nll: float = 0.1,
    perplexity: float = 5.0,
    short: float = 0.0,
    exportable: bool = True,
    informative: bool = True,
) -> MethodScore:
    """A method that answers `right` of ten needles at the target."""
    report = LengthReport(
        model="demo",
        window=TARGET,
        original=256,
        perplexity=(LengthPerplexity(length=TARGET, nll=1.0, perplexity=perplexity, tokens=100, documents=2),),
        needles=(
            NeedleCell(task="needle", length=256, depth=0.5, prompts=5, accuracy=0.0, nll=9.0),
            NeedleCell(
                task="needle", length=TARGET, depth=0.0, prompts=PROMPTS, accuracy=right / PROMPTS, nll=needle_nll
            ),
        ),
        short=ShortRegression(length=256, tokens=100, perplexity_before=4.0, perplexity_after=4.0 * (1 + short)),
        informative=informative,
    )
    return MethodScore(method, report, exportable, "" if exportable else "Readers cut prompts there.")


def winner(*scores: MethodScore, **more: float) -> str:
    return choose(scores, TARGET, **more).method


def test_needles_at_the_target_decide_before_perplexity() -> None:
    assert winner(scored("ntk", right=7, perplexity=4.0), scored("yarn", right=10, perplexity=6.0)) == "yarn"


def test_one_prompt_is_noise_and_the_answers_loss_decides() -> None:
    assert winner(scored("ntk", right=9, needle_nll=0.1), scored("yarn", right=10, needle_nll=0.3)) == "ntk"
    assert winner(scored("ntk", right=8, needle_nll=0.1), scored("yarn", right=10, needle_nll=0.3)) == "yarn"


def test_perplexity_decides_where_the_answers_loss_is_equal() -> None:
    scores = scored("ntk", needle_nll=0.010, perplexity=5.1), scored("yarn", needle_nll=0.015, perplexity=5.0)
    assert winner(*scores) == "yarn"


def test_what_no_folder_can_carry_is_named_and_not_chosen() -> None:
    choice = choose([scored("dynamic", needle_nll=0.01, exportable=False), scored("yarn", needle_nll=0.2)], TARGET)
    assert choice.method == "yarn"
    assert "dynamic measures better and is left out: Readers cut prompts there." in choice.reason
    assert choice.ranking == ("yarn",)
    worse = choose([scored("dynamic", right=3, exportable=False), scored("yarn")], TARGET)
    assert "dynamic" not in worse.reason


def test_damage_to_short_text_rules_a_method_out() -> None:
    best_but_harmful = scored("linear", needle_nll=0.0, short=1.3)
    assert winner(best_but_harmful, scored("yarn", right=8, short=0.02)) == "yarn"
    assert winner(best_but_harmful, scored("yarn", right=8, short=0.02), max_short_change=2.0) == "linear"


def test_where_all_hurt_short_text_the_least_harmful_ones_remain() -> None:
    choice = choose(
        [
            scored("linear", needle_nll=0.0, short=1.3),
            scored("yarn", needle_nll=0.1, short=0.3),
            scored("ntk", needle_nll=0.4, short=0.2),
        ],
        TARGET,
    )
    assert choice.method == "yarn", "within twice the smallest change"
    assert "the least is +20.0%" in choice.reason
    assert choice.ranking == ("yarn", "ntk", "linear")


def test_needles_that_say_nothing_leave_it_to_perplexity() -> None:
    blind = [scored("ntk", right=10, perplexity=6.0, informative=False), scored("yarn", right=0, informative=False)]
    assert winner(*blind) == "yarn"
    nobody = [scored("ntk", right=0, perplexity=6.0), scored("yarn", right=0, needle_nll=3.0, perplexity=5.0)]
    choice = choose(nobody, TARGET)
    assert choice.method == "yarn"
    assert "perplexity does" in choice.reason


def test_the_untouched_model_is_never_chosen() -> None:
    assert winner(scored("none", needle_nll=0.0), scored("yarn", needle_nll=0.3)) == "yarn"
    assert choose([scored("none")], TARGET).method == ""


def test_a_winner_that_is_no_better_than_nothing_is_named_as_such() -> None:
    untouched = scored("none", right=9, needle_nll=0.2, perplexity=4.0)
    assert "no worse" in choose([untouched, scored("yarn", right=5)], TARGET).reason
    assert "no worse" not in choose([untouched, scored("yarn", right=10)], TARGET).reason


def test_the_reason_holds_the_figures() -> None:
    reason = choose([scored("yarn", perplexity=3.456, short=0.012)], TARGET).reason
    assert reason == "yarn answers 100% of the needles at 1024 tokens, has perplexity 3.46 there, " + (
        "changes short text by +1.2%."
    )


def test_a_method_without_needles_is_compared_by_what_it_has() -> None:
    report = LengthReport(model="demo", window=TARGET, original=256)
    assert winner(MethodScore("yarn", report)) == "yarn"
    assert winner(MethodScore("yarn", report), scored("ntk")) == "ntk"


@st.composite
def tables(draw: st.DrawFn) -> list[MethodScore]:
    return [
        scored(
            f"m{number}",
            right=draw(st.integers(0, PROMPTS)),
            needle_nll=draw(st.floats(0, 5)),
            perplexity=draw(st.floats(1, 50)),
            short=draw(st.floats(-0.2, 2)),
            exportable=draw(st.booleans()),
        )
        for number in range(draw(st.integers(1, 8)))
    ]


@given(tables(), st.integers(0, 1000))
def test_every_exportable_method_is_ranked_once_and_order_of_measuring_is_no_matter(
    scores: Sequence[MethodScore], seed: int
) -> None:
    choice = choose(scores, TARGET)
    exportable = {score.method for score in scores if score.exportable}
    assert set(choice.ranking) == exportable
    assert len(choice.ranking) == len(exportable)
    assert choice.method == (choice.ranking[0] if choice.ranking else "")
    shuffled = random.Random(seed).sample(list(scores), len(scores))
    assert choose(shuffled, TARGET).ranking == choice.ranking or _ties(scores)


def _ties(scores: Sequence[MethodScore]) -> bool:
    """Equal perplexities leave the order of measuring to decide."""
    values = [score.perplexity_at(TARGET) for score in scores]
    return len(values) != len(set(values))
