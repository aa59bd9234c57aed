"""The search's pure parts: constraints hold whatever happens, seeds bound the result, a log goes on exactly."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.context.search_budget import FEWEST_EVALUATIONS, Generations, SearchBudget, generations, plan_budget
from engine.context.search_evolution import Evolution, Measured, Reference, StopAsked, best_of, evolve
from engine.context.search_log import SearchSettings, Trial, logged_settings, open_log
from engine.context.search_space import (
    GRID,
    Individual,
    Space,
    critical_candidates,
    crossed,
    drawn,
    mutated,
    problem,
    projected,
    starting_points,
    tail_space,
    whole_space,
)
from engine.errors import EngineError

SPACE = tail_space(16, 4.0, (3, 4, 5, 6, 7))
IDEAL = Individual(5, (430, 450, 480, 490, 500, 540, 560, 570, 600, 610, 630)).divisors
REFERENCES = (
    Reference("linear", (4.0,) * 16, 1.0),
    Reference("ntk", tuple(4 ** (pair / 15) for pair in range(16)), 1.0),
    Reference("yarn", (1.0,) * 4 + (2.0, 3.0) + (4.0,) * 10, 1.1386),
    Reference("ntk-critical", tuple(4 ** (pair / 7) for pair in range(16)), 1.0),
)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    pairs = draw(st.integers(2, 64))
    factor = draw(st.floats(1.05, 40))
    if draw(st.booleans()):
        return whole_space(pairs, factor)
    first = draw(st.integers(1, pairs - 1))
    last = draw(st.integers(first, pairs - 1))
    return tail_space(pairs, factor, tuple(range(first, last + 1)))


def distance(divisors: tuple[float, ...], attention_factor: float) -> Measured:
    """How far from a curve that no seed has; stands for a model."""
    needle = sum((math.log(a) - math.log(b)) ** 2 for a, b in zip(divisors, IDEAL, strict=True))
    return Measured(needle, abs(attention_factor - 1.1))


def evolution(evaluations: int = 60, seed: int = 1, weight: float = 0.1) -> Evolution:
    return Evolution(SPACE, REFERENCES, 1.1, generations(evaluations), seed, weight)


def settings(seed: int = 1) -> SearchSettings:
    return SearchSettings(
        method="longrope2",
        model="m",
        text="t",
        original=256,
        target=1024,
        pairs=16,
        candidates=SPACE.candidates,
        attention_factor=1.1,
        documents=2,
        closing_tokens=64,
        weight=0.1,
        seed=seed,
        compute="float32",
        needles=True,
        evaluations=60,
    )


def run(
    path: Path, evaluations: int, objective=distance, searched: Evolution | None = None, **more
) -> tuple[Trial, ...]:
    with open_log(path, settings()) as log:
        return evolve(searched or evolution(), evaluations, objective, log, lambda _: None, **more)


def signature(trials: tuple[Trial, ...]) -> list[tuple[object, ...]]:
    return [(trial.origin, trial.divisors, trial.attention_factor, trial.score) for trial in trials]


# ── the space ────────────────────────────────────────────────────────────────────────────────────────────────────────
@given(spaces(), st.integers(0, 10**6))
def test_every_child_keeps_the_constraints(space: Space, seed: int) -> None:
    rng = random.Random(seed)
    family = [*starting_points(space), drawn(space, rng), drawn(space, rng)]
    for _ in range(20):
        family.append(mutated(space, rng.choice(family), rng))
        family.append(crossed(space, rng.choice(family), rng.choice(family), rng))
    assert [found for found in (problem(space, individual) for individual in family) if found] == []
    for individual in family:
        divisors = individual.divisors
        assert len(divisors) == space.pairs
        assert all(a <= b * (1 + 1e-12) for a, b in pairwise(divisors))
        assert min(divisors[individual.critical_pair :]) >= space.least * (1 - 1e-9)
        assert max(divisors) <= space.most + 1 / GRID
        assert divisors[0] == 1 or individual.critical_pair == 0


@given(spaces(), st.lists(st.floats(0.5, 100), min_size=64, max_size=64))
def test_a_projection_keeps_the_constraints_and_leaves_points_of_the_space_alone(
    space: Space, curve: list[float]
) -> None:
    for pair in space.candidates:
        individual = projected(space, curve[: space.pairs], pair)
        assert problem(space, individual) == ""
        assert projected(space, individual.divisors, pair) == individual


def test_the_head_is_the_base_change_that_meets_the_tail() -> None:
    individual = Individual(4, (500,) * 12)
    ratios = {round(b / a, 12) for a, b in pairwise(individual.divisors[:5])}
    assert ratios == {round(5 ** (1 / 4), 12)}


@pytest.mark.parametrize(
    ("tail", "named"),
    [
        ((399, *[500] * 8), "outside"),
        ((*[500] * 8, 801), "outside"),
        ((500, 499, *[500] * 7), "below"),
        ((500,) * 8, "8 values"),
    ],
)
def test_a_broken_constraint_is_named(tail: tuple[int, ...], named: str) -> None:
    assert named in problem(SPACE, Individual(7, tail))
    assert "critical pair" in problem(SPACE, Individual(8, tail[:8]))


def test_critical_pairs_stay_inside_the_head() -> None:
    assert critical_candidates(24, 35, 64) == tuple(range(24, 36))
    assert critical_candidates(0, 3, 16) == (1, 2, 3)
    assert critical_candidates(10, 20, 16) == (10, 11, 12, 13, 14, 15)
    assert critical_candidates(20, 20, 16) == (15,)


def test_starting_points_hold_the_known_methods_tails_and_differ() -> None:
    points = starting_points(SPACE, [reference.divisors for reference in REFERENCES])
    assert len(points) == len(set(points))
    assert points[0].critical_pair == 7, "a small budget starts at the theoretical critical pair"
    assert Individual(7, (400,) * 9) in points, "interpolation and YaRN divide the whole tail by s"
    assert {point.critical_pair for point in points} == {3, 4, 6, 7}


# ── the budget ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_papers_budget_gives_the_papers_generations() -> None:
    assert generations(1344) == Generations(population=64, parents=32, mutations=16, crossovers=16)


@given(st.integers(FEWEST_EVALUATIONS, 5000))
def test_any_budget_leaves_room_for_children(evaluations: int) -> None:
    shared = generations(evaluations)
    assert shared.population < evaluations
    assert 1 <= shared.crossovers <= shared.mutations
    assert 2 <= shared.parents <= shared.population


def test_minutes_become_evaluations_by_one_timed_evaluation() -> None:
    budget = plan_budget(10, 5.0, documents=3, length=32768)
    assert budget == SearchBudget(120, 3, 32768)
    assert (budget.seconds(5.0), budget.seconds(5.0, done=100), budget.seconds(5.0, done=130)) == (600, 100, 0)
    assert budget.tokens == 120 * 3 * 32768


def test_too_few_minutes_are_refused_with_the_number_that_is_enough() -> None:
    with pytest.raises(EngineError) as caught:
        plan_budget(1, 30.0, documents=3, length=32768)
    assert caught.value.code == "search.budget"
    assert "6 minutes" in caught.value.next_step
    assert plan_budget(6, 30.0, documents=3, length=32768).evaluations == FEWEST_EVALUATIONS


# ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_it_never_ends_above_its_seeds_and_gets_better(tmp_path: Path) -> None:
    trials = run(tmp_path / "log", 60)
    seeds = [trial for trial in trials if trial.origin.startswith("seed")]
    assert [trial.origin for trial in seeds] == ["seed linear", "seed ntk", "seed yarn", "seed ntk-critical"]
    assert best_of(trials).score < min(trial.score for trial in seeds)
    started = [trial.score for trial in trials if trial.origin == "start"]
    assert best_of(trials).score < min(started), "children are better than what the population started with"


def test_a_known_method_that_nothing_beats_is_the_result(tmp_path: Path) -> None:
    ntk = REFERENCES[1].divisors

    def only_ntk(divisors: tuple[float, ...], _: float) -> Measured:
        return Measured(0.0 if divisors == ntk else 1.0, 1.0)

    assert best_of(run(tmp_path / "log", 30, only_ntk)).origin == "seed ntk"


@pytest.mark.parametrize("evaluations", [12, 13, 33, 60])
def test_the_budget_is_spent_exactly(tmp_path: Path, evaluations: int) -> None:
    calls = []

    def counted(divisors: tuple[float, ...], attention_factor: float) -> Measured:
        calls.append(divisors)
        return distance(divisors, attention_factor)

    assert len(run(tmp_path / "log", evaluations, counted, evolution(evaluations))) == len(calls) == evaluations


def test_nothing_is_evaluated_twice_and_every_individual_is_allowed(tmp_path: Path) -> None:
    individuals = [Individual(t.critical_pair, t.tail) for t in run(tmp_path / "log", 200) if t.tail]
    assert len(individuals) == len(set(individuals)) == 196
    assert {problem(SPACE, individual) for individual in individuals} == {""}


def test_an_exhausted_space_ends_the_search(tmp_path: Path) -> None:
    small = tail_space(2, 1.05, (1,))  # genes 105 to 210: 106 points
    searched = Evolution(small, (), 1.0, generations(400), 1)

    def sharp(divisors: tuple[float, ...], _: float) -> Measured:
        return Measured(abs(divisors[1] - 1.5), 0.0)

    trials = run(tmp_path / "log", 400, sharp, searched)
    assert len(trials) <= 106
    assert best_of(trials).divisors[1] == pytest.approx(1.5, abs=1.5 / GRID)


def test_a_seed_names_a_search(tmp_path: Path) -> None:
    first, again = run(tmp_path / "a", 40), run(tmp_path / "b", 40)
    assert signature(first) == signature(again)
    with open_log(tmp_path / "c", settings(2)) as log:
        other = evolve(evolution(seed=2), 40, distance, log, lambda _: None)
    assert signature(first) != signature(other)


def test_where_needles_say_nothing_the_text_alone_counts() -> None:
    measured = Measured(needle_nll=3.0, text_nll=2.0)
    assert evolution(weight=0.25).score(measured) == 3.5
    assert Evolution(SPACE, REFERENCES, 1.1, generations(60), 1, 0.25, needles=False).score(measured) == 2.0


def test_sets_without_a_number_lose(tmp_path: Path) -> None:
    trials = run(tmp_path / "log", 20, lambda divisors, _: Measured(math.nan if divisors[1] < 2 else 1.0, math.inf))
    assert all(math.isfinite(trial.score) for trial in trials)
    assert run(tmp_path / "log", 20, distance)[:20] == trials, "and the log can hold them"


# ── the log ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("cut", [0, 1, 40, 300, 2000, 5000])
def test_a_log_cut_anywhere_goes_on_to_the_same_end(tmp_path: Path, cut: int) -> None:
    whole = run(tmp_path / "whole", 40)
    written = (tmp_path / "whole").read_bytes()
    assert cut < len(written)
    (tmp_path / "cut").write_bytes(written[:cut])
    assert signature(run(tmp_path / "cut", 40)) == signature(whole)


def test_what_was_logged_is_not_evaluated_again(tmp_path: Path) -> None:
    run(tmp_path / "log", 25)
    calls = []

    def counted(divisors: tuple[float, ...], attention_factor: float) -> Measured:
        calls.append(divisors)
        return distance(divisors, attention_factor)

    assert len(run(tmp_path / "log", 40, counted)) == 40
    assert len(calls) == 15


def test_a_stop_in_the_middle_logs_nothing_of_it_and_a_later_call_goes_on(tmp_path: Path) -> None:
    done: list[int] = []

    def stopping(divisors: tuple[float, ...], attention_factor: float) -> Measured:
        done.append(1)
        if len(done) > 12:
            raise StopAsked
        return distance(divisors, attention_factor)

    with pytest.raises(StopAsked):
        run(tmp_path / "log", 40, stopping)
    assert len((tmp_path / "log").read_text().splitlines()) == 1 + 12
    assert signature(run(tmp_path / "log", 40)) == signature(run(tmp_path / "other", 40))


def test_more_evaluations_than_were_planned_go_on_in_the_same_order(tmp_path: Path) -> None:
    first = run(tmp_path / "log", 40)
    with open_log(tmp_path / "log", replace(settings(), evaluations=90)) as log:
        assert evolve(evolution(), 90, distance, log, lambda _: None)[:40] == first


def test_another_searchs_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    run(path, 20)
    before = path.read_bytes()
    with pytest.raises(EngineError) as caught:
        open_log(path, settings(seed=2))
    assert (caught.value.code, caught.value.cause) == ("search.log", "Different: seed.")
    with pytest.raises(EngineError, match="another search"):
        run(path, 30, searched=evolution(seed=3))
    assert path.read_bytes() == before
    assert logged_settings(path) == settings()


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for notes in ("my notes\n", "my notes", '{"mine": 1}'):
        path.write_text(notes)
        with pytest.raises(EngineError, match="not a search log"):
            open_log(path, settings())
        assert path.read_text() == notes


def test_what_cannot_be_opened_as_a_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "log"):
        with pytest.raises(EngineError, match="cannot be opened") as caught:
            open_log(path, settings())
        assert caught.value.code == "search.log"
    with pytest.raises(EngineError, match="cannot be opened"):
        logged_settings(tmp_path)


def test_two_searches_do_not_write_to_one_log(tmp_path: Path) -> None:
    with open_log(tmp_path / "log", settings()), pytest.raises(EngineError, match="Another search"):
        open_log(tmp_path / "log", settings())
    open_log(tmp_path / "log", settings()).__exit__(None, None, None)
