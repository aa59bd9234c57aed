"""The search on the demo model, from 256 to 512 tokens: never above its seeds, the same after a kill, within budget."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from engine.context.factors import read_factors
from engine.context.method import Options
from engine.context.planner import plan_context
from engine.context.search_log import Trial
from engine.context.search_space import Individual, problem, tail_space
from engine.errors import EngineError
from engine.evaluation.haystack_frame import NOTES, Writer
from engine.evaluation.loading import loaded
from engine.jobs.race_lines import Line, SearchDone, SearchStarted, SearchStep
from engine.models.config import read_json_object
from engine.resources import demo_dir
from engine.rotary.modules import using
from engine.rotary.objective import documents
from engine.rotary.search import SearchRequest, search

pytestmark = pytest.mark.slow

TARGET = 512
EVALUATIONS = 16
SEEDS = ["linear", "ntk", "ntk-critical", "by-parts", "yarn", "llama3"]
"""ABF's base for 512 tokens is NTK's."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Searched:
    """One search in this process."""

    def __init__(self, log: Path) -> None:
        torch.set_num_threads(1)
        self.request = SearchRequest(demo_dir() / "model", TARGET, log, evaluations=EVALUATIONS, documents=1, seed=3)
        self.lines: list[Line] = []
        self.done = search(self.request, self.lines.append)
        self.trials = trials(log)


def trials(log: Path) -> list[Trial]:
    """Whole lines of a log after its first."""
    return [msgspec.json.decode(line, type=Trial) for line in log.read_bytes().split(b"\n")[1:-1]]


def figures(found: list[Trial]) -> list[tuple[object, ...]]:
    return [(trial.origin, trial.divisors, trial.needle_nll, trial.text_nll, trial.score) for trial in found]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return Searched(tmp_path_factory.mktemp("search") / "search.jsonl")


def test_it_never_ends_above_its_seeds(searched: Searched) -> None:
    done = searched.done
    assert [seed.name for seed in done.seeds] == SEEDS
    assert done.best <= done.best_seed == min(seed.score for seed in done.seeds)
    assert done.best == min(trial.score for trial in searched.trials)
    assert done.needle_nll is not None
    assert done.perplexity is not None
    linear = done.seeds[0]
    assert linear.score > done.best + 0.5, "the objective sees what interpolation breaks"


def test_the_budget_is_spent_exactly_and_logged(searched: Searched) -> None:
    assert searched.done.evaluations == len(searched.trials) == EVALUATIONS
    assert [trial.evaluation for trial in searched.trials] == list(range(1, EVALUATIONS + 1))


def test_every_individual_keeps_the_constraints(searched: Searched) -> None:
    space = tail_space(16, TARGET / 256, (3, 4, 5, 6, 7))
    individuals = [Individual(trial.critical_pair, trial.tail) for trial in searched.trials if trial.tail]
    assert len(individuals) == EVALUATIONS - len(SEEDS)
    assert {problem(space, individual) for individual in individuals} == {""}


def test_lines_carry_the_best_curve_and_an_estimate(searched: Searched) -> None:
    started, *steps, done = searched.lines
    assert isinstance(started, SearchStarted)
    assert isinstance(done, SearchDone)
    assert (started.evaluations, started.documents, started.length) == (EVALUATIONS, 1, TARGET)
    assert started.candidates == (3, 4, 5, 6, 7)
    assert started.eta_seconds is not None
    took = sum(trial.seconds for trial in searched.trials)
    assert 0.2 < started.eta_seconds / took < 5, "one timed evaluation tells the order of magnitude"
    assert len(steps) == EVALUATIONS
    best, curve = float("inf"), ()
    for step in steps:
        assert isinstance(step, SearchStep)
        assert bool(step.divisors) == (step.score < best), "the curve is sent when it changes"
        best, curve = min(best, step.score), step.divisors or curve
        assert step.best == best
    assert curve == done.divisors


def test_the_result_is_a_plan_that_scores_what_it_scored(searched: Searched) -> None:
    """Read back from the log as `extend` does, set on a fresh model, measured another way: whole prompts, no cache."""
    assert searched.request.log is not None
    options = read_factors(searched.request.log).applied(Options())
    config = read_json_object(searched.request.folder / "config.json", code="x", what="a config")
    plan = plan_context(config, TARGET, "longrope2", options)
    assert plan.scaled.scaling.divisors == searched.done.divisors
    assert plan.scaled.scaling.attention_factor == searched.done.attention_factor
    with loaded(searched.request.folder) as model, using(model.model, plan):
        texts = documents(Writer(model.tokenizer, NOTES), TARGET, 1, searched.request.seed)
        losses = []
        for stack in texts.stacks:
            assert [len(stack.prompt(n)) for n in range(len(stack.questions))] == [TARGET] * len(stack.questions)
            for number, question in enumerate(stack.questions):
                ids = torch.tensor([stack.prompt(number)])
                with torch.no_grad():
                    logits = model.model(input_ids=ids).logits[0].float()
                places = torch.tensor(question.scored) + len(stack.shared)
                losses.append(torch.nn.functional.cross_entropy(logits[places - 1], ids[0, places]))
                k = texts.closing_tokens
        closing = torch.arange(len(stack.shared) - k, len(stack.shared))
        text = torch.nn.functional.cross_entropy(logits[closing - 1], ids[0, closing])
    best = min(searched.trials, key=lambda trial: trial.score)
    assert float(torch.stack(losses).mean()) == pytest.approx(best.needle_nll, abs=1e-4)
    assert float(text) == pytest.approx(best.text_nll, abs=1e-4)


def test_a_search_killed_without_warning_goes_on_to_the_same_end(searched: Searched, tmp_path: Path) -> None:
    log = tmp_path / "search.jsonl"
    words = ["--model", str(searched.request.folder), "--context", str(TARGET), "--log", str(log), "--threads", "1"]
    words += ["--evaluations", str(EVALUATIONS), "--documents", "1", "--seed", "3"]
    command = [sys.executable, "-m", "engine.rotary", "search", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    steps = 0
    for line in process.stdout:
        steps += b'"search.step"' in line
        if steps == 8:
            break
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    process.stdout.close()
    kept = trials(log)
    assert 8 <= len(kept) < EVALUATIONS, "killed in the middle"
    told: list[Line] = []
    done = search(replace(searched.request, log=log), told.append)
    assert figures(trials(log)) == figures(searched.trials)
    assert trials(log)[: len(kept)] == kept, "what was logged was not measured again"
    for name in ("best", "divisors", "origin", "needle_nll", "perplexity", "seeds"):
        assert getattr(done, name) == getattr(searched.done, name)


def test_a_stop_leaves_a_log_that_can_be_used(searched: Searched, tmp_path: Path) -> None:
    told: list[Line] = []
    with pytest.raises(EngineError) as caught:
        search(replace(searched.request, log=tmp_path / "log"), told.append, lambda: len(told) > 2)
    assert (caught.value.code, caught.value.exit_code) == ("search.stopped", 130)
    assert figures(trials(tmp_path / "log")) == figures(searched.trials)[:2]
    assert read_factors(tmp_path / "log").long == searched.trials[1].divisors


def test_minutes_that_are_too_few_are_refused_after_one_timed_evaluation(searched: Searched, tmp_path: Path) -> None:
    told: list[Line] = []
    with pytest.raises(EngineError) as caught:
        search(replace(searched.request, log=tmp_path / "log", evaluations=0, minutes=0.001), told.append)
    assert caught.value.code == "search.budget"
    assert "One evaluation of 1 documents of 512 tokens takes" in caught.value.cause
    assert not (tmp_path / "log").exists()
    assert told == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"method": "yarn"}, "search.method"),
        ({"evaluations": 3}, "search.budget"),
        ({"documents": 0}, "search.option"),
        ({"target": 128}, "context.target"),
        ({"target": 1 << 25}, "context.target"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    searched: Searched, tmp_path: Path, changes: dict[str, object], code: str
) -> None:
    with pytest.raises(EngineError) as caught:
        search(replace(searched.request, log=tmp_path / "log", **changes), lambda _: None)  # type: ignore[arg-type]
    assert caught.value.code == code
    assert not (tmp_path / "log").exists()
