"""The search over weights: the same every time, within its tries, close to where the score is lowest."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.evaluation.mix_rows import FEWEST_TOKENS, MOST_TOKENS, token_budget
from engine.evaluation.mix_score import _identity
from engine.evaluation.mix_search import MOST_ADAPTERS, WIDEST, Weights, best_of, fixed_tries, search
from engine.jobs.mix_lines import Measured, SweepReport, decode_line
from scaler_tui.cli import build_parser
from scaler_tui.commands.adapters_mix import split_weight
from scaler_tui.commands.adapters_sweep import Asked, Weighed, check_rank, next_words, verdict


def bowl(goal: Weights) -> object:
    """A score with one lowest place, narrow along the diagonal."""

    def score(weights: Weights) -> float:
        off = [w - g for w, g in zip(weights, goal, strict=True)]
        return 2.0 + sum(x * x for x in off) + 0.4 * off[0] * off[-1]

    return score


@given(
    goal=st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=4).map(tuple),
    tries=st.integers(0, 60),
    seed=st.integers(0, 99),
)
def test_it_is_deterministic_bounded_and_measures_nothing_twice(goal: Weights, tries: int, seed: int) -> None:
    found = list(search(bowl(goal), len(goal), tries, seed))  # type: ignore[arg-type]
    assert found == list(search(bowl(goal), len(goal), tries, seed))  # type: ignore[arg-type]
    fixed = fixed_tries(len(goal))
    assert len(found) <= max(tries, len(fixed))
    weights = [one.weights for one in found]
    assert [one.weights for one in found[: len(fixed)]] == [w for _, w in fixed], "what is always shown comes first"
    rest = weights[len(fixed) :]
    assert len(set(rest)) == len(rest)
    assert not set(rest) & {w for _, w in fixed}
    assert all(abs(w) <= WIDEST and round(w, 2) == w for one in weights for w in one)


@pytest.mark.parametrize("goal", [(0.7,), (0.55, 0.2), (1.3, -0.4, 0.1)])
def test_it_comes_close_to_the_lowest_place(goal: Weights) -> None:
    found = list(search(bowl(goal), len(goal), 80))  # type: ignore[arg-type]
    best = best_of(found)
    assert best.loss - 2.0 < 0.01
    assert best.loss < min(one.loss for one in found[: len(fixed_tries(len(goal)))])


def test_a_score_that_is_no_number_is_never_the_best() -> None:
    found = list(search(lambda w: float("nan") if sum(w) > 0.8 else sum(x * x for x in w) + 1, 2, 30))
    assert best_of(found).loss == 1.0


def test_too_many_adapters_are_refused() -> None:
    with pytest.raises(EngineError) as refused:
        list(search(lambda _: 0.0, MOST_ADAPTERS + 1, 10))
    assert refused.value.code == "adapter.too_many"


def test_fewer_tokens_are_scored_where_each_costs_more() -> None:
    assert token_budget(3_000_000, "cpu") == 6666
    assert token_budget(8_000_000_000, "cpu") == FEWEST_TOKENS
    assert token_budget(8_000_000_000, "cuda:0") == MOST_TOKENS


def report(best: float, base: float = 2.0, alone: float = 1.5, check: bool = True) -> SweepReport:
    """With the same loss on both halves."""

    def told(loss: float, *weights: float) -> Measured:
        return Measured(weights=weights, loss=loss, check_loss=loss if check else None)

    return SweepReport(
        adapters=("facts", "tone"), method="exact", base=told(base, 0, 0), alone=(told(alone, 1, 0), told(1.9, 0, 1)),
        equal=None, best=told(best, 0.7, 0.2), tries=9, rows=40, tokens=300, check_rows=39 if check else 0,
        check_tokens=290, data="x", seconds=1.0,
    )  # fmt: skip


def test_the_verdict_says_that_weights_were_fitted_and_what_they_are_worth_elsewhere() -> None:
    good = verdict(report(1.2))
    assert "chosen for the 40 rows that were searched on" in good
    assert "On 39 other rows of the same file the loss is 1.2000, 40.0 % below the base's" in good
    assert "no better than facts alone with 1.5000: take that instead" in verdict(report(1.6))
    assert "no better than the base with 1.0000" in verdict(report(1.2, base=1.0))
    assert "no others to check them on" in verdict(report(1.2, check=False))
    assert not report(1.2, check=False).helps


def test_lines_that_are_none_are_passed_over() -> None:
    assert decode_line(b'{"error": {"code": "x"}}') is None
    assert decode_line(b"not json") is None


def test_searching_needs_no_torch() -> None:
    modules = "engine.evaluation.mix_search, engine.evaluation.mix_sweep, scaler_tui.commands.adapters_sweep"
    code = f"import {modules}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--method", "ties", "--density", "0.3", "--signs", "frequency", "--seed", "5", "--base", "/x/my base"],
        ["--method", "svd", "--rank", "8"],
    ],
)
def test_the_next_command_of_a_sweep_is_the_mix_that_was_measured(flags: list[str]) -> None:
    parser = build_parser(["adapters"])
    asked = Asked(tuple(Weighed(word, word, Path(word), 1.0, None) for word in ("a b", "c")), Path("/x"), "demo")
    arguments = parser.parse_args(["adapters", "sweep", "a b", "c", *flags])
    line = next_words(asked, report(1.2), arguments)
    again = parser.parse_args(shlex.split(line)[1:])
    for name in ("method", "density", "signs", "rank", "seed", "base"):
        assert getattr(again, name) == getattr(arguments, name), name
    assert [split_weight(word) for word in again.adapters] == list(
        zip(("a b", "c"), report(1.2).best.weights, strict=True)
    )


def test_a_sweep_that_the_base_wins_names_no_mix() -> None:
    asked = Asked(tuple(Weighed(word, word, Path(word), 1.0, None) for word in ("a", "c")), Path("/x"), "demo")
    none = msgspec.structs.replace(report(1.2), best=report(1.2).base)
    arguments = build_parser(["adapters"]).parse_args(["adapters", "sweep", "a", "c"])
    assert "better than the base alone" in next_words(asked, none, arguments)


def test_svd_without_a_rank_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(EngineError, match="--rank says none"):
        check_rank(build_parser(["adapters"]).parse_args(["adapters", "sweep", "a", "--method", "svd"]))


def test_figures_of_an_adapter_whose_config_changed_are_measured_again(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text("{}")
    before = _identity(tmp_path, [tmp_path], "float32")
    config.write_text('{"lora_alpha": 32}')
    assert _identity(tmp_path, [tmp_path], "float32") != before
