"""The search on the demo model, from 256 to 512 tokens: never above its seeds, the same after a kill, within budget."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from engine.context.factors import read_factors
from engine.context.method import Options
from engine.context.plan import ContextPlan
from engine.context.planner import plan_context, read_rotaries
from engine.context.search_log import Trial
from engine.context.search_space import Individual, problem, tail_space
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.evaluation.haystack import Haystack, HaystackOrder, Question, build, even_depths
from engine.evaluation.haystack_frame import NOTES, Writer
from engine.evaluation.haystack_tasks import NEEDLE
from engine.evaluation.head import SelectiveHead
from engine.evaluation.loading import loaded
from engine.evaluation.long_pass import Room, can_cache
from engine.evaluation.model import LoadedModel
from engine.jobs.race_lines import Line, SearchDone, SearchStarted, SearchStep
from engine.models.config import read_json_object
from engine.resources import demo_dir
from engine.rotary.modules import using
from engine.rotary.objective import Documents, NeedleObjective, documents
from engine.rotary.search import SearchRequest, search
from tests.support.rope_configs import GEMMA3

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
    assert 0.1 < started.eta_seconds / took < 10, "one timed evaluation tells the order of magnitude"
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


def test_what_is_fitted_to_is_never_what_is_judged_on() -> None:
    """Documents of every seed, number and depth; the same seed gives the same documents again."""
    writer = Writer(ChatTokenizer.load(demo_dir() / "model"), NOTES)
    fitted = [stack for seed in range(3) for stack in documents(writer, TARGET, 4, seed).stacks]
    depths = tuple(question.depth for question in fitted[0].questions)
    judged = [
        stack
        for seed in range(3)
        for number in range(4)
        for chosen in (depths, even_depths(len(depths)))
        for stack in build(writer, HaystackOrder(NEEDLE, TARGET, chosen, seed, number))
    ]
    assert not {stack.shared for stack in fitted} & {stack.shared for stack in judged}
    asked = _questions(fitted)
    assert len(asked & _questions(judged)) < 0.2 * len(asked), "a key meets the same answer by chance alone"
    assert documents(writer, TARGET, 4, 0).stacks == tuple(fitted[:4])


def _questions(stacks: Iterable[Haystack]) -> set[tuple[int, ...]]:
    return {question.ids for stack in stacks for question in stack.questions}


def test_layers_of_limited_reach_are_measured_as_plain_passes_would() -> None:
    """A cache that forgets cannot be cut back, which chunks of a model that follows the length need."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING["gemma3_text"].from_dict(copy.deepcopy(GEMMA3))
    model = AutoModelForCausalLM.from_config(config).eval()
    length = 2 * int(GEMMA3["max_position_embeddings"])
    divisors = tuple(2.0 ** (pair / 4) for pair in range(read_rotaries(GEMMA3)[0].pairs))
    draw = random.Random(0)
    numbers = [draw.randrange(config.vocab_size) for _ in range(length)]
    questions = tuple(Question(0.0, tuple(numbers[place : place + 6]), (3, 5), 0) for place in (0, 40))
    stacks = tuple(
        Haystack("needle", length, 1, tuple(numbers[shift:-6] + numbers[:shift]), questions) for shift in (0, 9)
    )

    def plan_for(divisors: tuple[float, ...], attention_factor: float) -> ContextPlan:
        return plan_context(
            GEMMA3, length, "longrope", Options(long_divisors=divisors, attention_factor=attention_factor)
        )

    opened = LoadedModel(model, SelectiveHead(model), ChatTokenizer.load(demo_dir() / "model"), "cpu", torch.float32)
    objective = NeedleObjective(opened, Documents(stacks, 20), plan_for, Room(), lambda: False)
    found = objective(divisors, 1.1)
    needles, texts = [], []
    with using(model, plan_for(divisors, 1.1)), torch.no_grad():
        assert not can_cache(opened, length)
        for stack in stacks:
            for number in range(2):
                ids = torch.tensor([stack.prompt(number)])
                losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
                needles.append(losses[[length - 6 + 2, length - 6 + 4]])
            texts.append(losses[length - 6 - 20 - 1 : length - 6 - 1])
    assert found.needle_nll == pytest.approx(float(torch.stack(needles).mean()), abs=1e-5)
    assert found.text_nll == pytest.approx(float(torch.stack(texts).mean()), abs=1e-5)
    assert objective((1.0,) * len(divisors), 1.0) != found


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
    best = min(searched.trials[:2], key=lambda trial: trial.score)
    assert read_factors(tmp_path / "log").long == best.divisors


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
