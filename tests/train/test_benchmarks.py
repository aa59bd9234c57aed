"""Benchmarks: lm-eval on the model in memory gives lm-eval's own numbers, and what is missing is said in words."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import EngineError
from engine.resources import demo_model_dir
from tests.train.conftest import WORDS, SpecMaker, write_jsonl

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

QUESTIONS = 4


@pytest.fixture(scope="session")
def demo_task() -> Any:
    from engine.evaluation.tasks import load_tasks

    (asked,) = load_tasks(["demo"])
    return asked


def word_task(folder: Path, questions: int = 8) -> Path:
    """A task of one's own: complete a word, by generating; its data lies beside it."""
    rows = [{"question": f"Say {word}", "answer": word.upper()} for word in (WORDS * 3)[:questions]]
    data = write_jsonl(folder / "words.jsonl", rows)
    task = folder / "words.yaml"
    task.write_text(
        f"""
task: say_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
    )
    return task


@pytest.fixture(scope="module")
def demo_model() -> Iterator[Any]:
    from engine.evaluation.loading import loaded

    with loaded(demo_model_dir()) as model:
        yield model


@pytest.fixture(scope="module")
def demo_results(demo_model: Any, demo_task: Any) -> Any:
    from engine.evaluation.benchmarks import run_tasks

    return run_tasks(demo_model, demo_model_dir(), demo_task, QUESTIONS)


def test_numbers_equal_those_of_lm_eval_on_the_same_folder(demo_model: Any, demo_results: Any) -> None:
    """lm-eval loads the folder by itself, as its command line does; here the model is in memory already."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from engine.evaluation.benchmarks import batch_size
    from engine.evaluation.tasks import demo_tasks_dir

    theirs = simple_evaluate(
        model="hf",
        model_args=f"pretrained={demo_model_dir()},dtype=float32",
        tasks=["demo"],
        task_manager=TaskManager(include_path=str(demo_tasks_dir()), include_defaults=False),
        limit=QUESTIONS,
        batch_size=batch_size(demo_model),
        device="cpu",
    )
    assert theirs is not None
    assert [one.task for one in demo_results] == [*theirs["samples"], "demo"]
    for one in demo_results:
        result = theirs["results"][one.task]
        (metric,) = one.metrics
        assert metric.name == "acc"
        assert metric.value == result["acc,none"]
        assert metric.standard_error == result["acc_stderr,none"]
        assert metric.higher_is_better is True
        assert one.questions == result["sample_len"]
    for one in demo_results[:-1]:
        assert one.answers == {row["doc_id"]: row["acc"] for row in theirs["samples"][one.task]}
    assert demo_results[-1].members == tuple(one.task for one in demo_results[:-1])


def test_the_demos_skills_are_those_its_card_names(demo_model: Any, demo_task: Any, demo_results: Any) -> None:
    """The first questions of each skill, by the way that scores.json was made: nothing is generated in either."""
    import torch

    names = set(json.loads((demo_model_dir() / "scores.json").read_text())["skills"])
    assert {name.removeprefix("demo_") for name in demo_task.tasks} == names
    found = {one.task: one for one in demo_results}
    for name, task in demo_task.loaded["tasks"].items():
        for number, row in enumerate(list(task.eval_docs)[:2]):
            given = demo_model.tokenizer.encode(row["prompt"])
            ids = [*given, *demo_model.tokenizer.encode(row["answer"])]
            with torch.no_grad():
                chosen = demo_model.model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
            assert found[name].answers[number] == float(chosen[len(given) - 1 : -1] == ids[len(given) :])


def test_parts_are_the_first_questions_so_that_they_pair(demo_model: Any, demo_task: Any, demo_results: Any) -> None:
    from engine.evaluation.benchmarks import run_tasks
    from engine.evaluation.comparison import compare
    from engine.evaluation.findings import Found

    part = run_tasks(demo_model, demo_model_dir(), demo_task, 1)
    reports = {report.on: report for report in compare(Found(tasks=demo_results), Found(tasks=part))}
    assert reports["demo_arithmetic"].pairs == 1
    assert reports["demo"].pairs == 5
    assert all(report.delta == 0 for report in reports.values())


def test_a_model_in_4_bits_with_an_adapter_is_asked_as_it_is_in_memory(
    demo_task: Any, tiny_model: Path, make_spec: SpecMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is loaded a second time, and nobody notices afterwards that questions were asked."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from engine.data.tokenizer import ChatTokenizer
    from engine.evaluation.benchmarks import run_tasks
    from engine.evaluation.tasks import load_tasks
    from engine.train import model as models
    from engine.train.environment import prepare_torch

    spec = make_spec("qlora")
    device = prepare_torch(1, spec.training.dtype)
    base = models.load_base(models.base_request(spec, tiny_model, device))
    adapted = models.add_adapter(base, spec.adapter)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    loaded = models.ready(adapted, base, ChatTokenizer.load(tiny_model), device)
    (asked,) = load_tasks([str(word_task(tmp_path))])
    adapted.train()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a second load")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    (with_adapter,) = run_tasks(loaded, tiny_model, asked, 3)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    assert adapted.training
    assert (with_adapter.task, with_adapter.main, sorted(with_adapter.answers)) == (
        "say_words",
        "exact_match",
        [0, 1, 2],
    )
    logits = _recorded_logits(loaded, tiny_model, demo_task)
    with loaded.base_only():
        assert not torch.equal(logits, _recorded_logits(loaded, tiny_model, demo_task)), "the adapter was asked"


def _recorded_logits(loaded: Any, folder: Path, asked: Any) -> Any:
    """What the output head said last while the tasks ran."""
    from engine.evaluation.benchmarks import run_tasks

    kept: list[Any] = []
    head = loaded.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _inputs, output: kept.append(output.detach().float().clone()))
    try:
        run_tasks(loaded, folder, asked, 1)
    finally:
        hook.remove()
    return kept[-1]


# ── what is missing ──────────────────────────────────────────────────────────────────────────────────────────────
def test_a_mistyped_task_is_refused_with_its_neighbours() -> None:
    from engine.evaluation.tasks import _load

    class Manager:
        all_tasks = ("hellaswag", "arc_easy", "gsm8k")

    with pytest.raises(EngineError, match="no task 'helaswag'") as refused:
        _load(Manager(), "helaswag")
    assert "hellaswag" in refused.value.next_step


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    from engine.evaluation.tasks import load_tasks

    with pytest.raises(EngineError, match="There is no file") as refused:
        load_tasks([str(tmp_path / "none.yaml")])
    assert refused.value.code == "benchmarks.no_file"


def test_offline_a_start_is_refused_naming_the_task_whose_data_is_not_here(
    make_spec: SpecMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaler_tui.benchmarks_check import require_benchmarks

    task = tmp_path / "far.yaml"
    task.write_text(word_task(tmp_path).read_text().replace("dataset_path: json", "dataset_path: nobody/none"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    spec = make_spec(evaluation={"tasks": ("demo", str(task))})
    with pytest.raises(EngineError, match=r"far\.yaml") as refused:
        require_benchmarks(spec)
    assert refused.value.code == "benchmarks.no_data"
    assert refused.value.key == "evaluation.tasks"
    assert "HF_HUB_OFFLINE" in refused.value.next_step


def test_without_lm_eval_the_way_to_install_it_is_named(make_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.evaluation.tasks import load_tasks
    from scaler_tui.benchmarks_check import require_benchmarks

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    spec = make_spec(evaluation={"tasks": ("demo",)})
    for refuse in (lambda: require_benchmarks(spec), lambda: load_tasks(["demo"])):
        with pytest.raises(EngineError, match="lm-eval, which is not installed") as refused:
            refuse()
        assert "scaler-wizard[benchmarks]" in refused.value.next_step


def test_a_spec_without_benchmarks_starts_no_process(make_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    from scaler_tui.benchmarks_check import require_benchmarks

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    require_benchmarks(make_spec())


def choice_task(folder: Path, name: str, rows: list[dict[str, Any]], text: str, target: str, choices: str) -> str:
    data = write_jsonl(folder / f"{name}.jsonl", rows)
    task = folder / f"{name}.yaml"
    task.write_text(
        f"""
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: {text}
doc_to_target: {target}
doc_to_choice: {choices}
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    return str(task)


def test_a_group_of_ones_own_is_its_tasks_as_the_files_beside_it_say(tmp_path: Path, demo_model: Any) -> None:
    from engine.evaluation.benchmarks import run_tasks
    from engine.evaluation.tasks import load_tasks

    rows = [{"question": "The cat sat on the", "choices": ["mat", "of"], "answer": 0}]
    for name in ("first", "second"):
        choice_task(tmp_path, name, rows, "'{{question}}'", "'{{answer}}'", "'{{choices}}'")
    group = tmp_path / "both.yaml"
    group.write_text(
        "task: [first, second]\ngroup: both_of_mine  # mine\naggregate_metric_list:\n"
        "  - {metric: acc, aggregation: mean, weight_by_size: true}\n"
    )
    (asked,) = load_tasks([str(group)])
    assert (asked.name, asked.tasks, asked.groups) == ("both_of_mine", ("first", "second"), ("both_of_mine",))
    assert {row.task for row in run_tasks(demo_model, demo_model_dir(), asked, 1)} == {
        "both_of_mine",
        "first",
        "second",
    }


def my_group(folder: Path, name: str = "mine", tasks: str = "[first, second]") -> Path:
    rows = [{"question": "The cat sat on the", "choices": ["mat", "of"], "answer": 0}]
    folder.mkdir(parents=True, exist_ok=True)
    for task in ("first", "second"):
        choice_task(folder, task, rows, "'{{question}}'", "'{{answer}}'", "'{{choices}}'")
    group = folder / f"{name}.yaml"
    group.write_text(f"task: {tasks}\ngroup: mine\n")
    return group


def test_a_group_beside_another_file_of_its_name_is_refused_and_never_mistaken(tmp_path: Path) -> None:
    from engine.evaluation.tasks import load_tasks

    group = my_group(tmp_path)
    (tmp_path / "an_older.yaml").write_text("task: [first]\ngroup: mine\n")
    with pytest.raises(EngineError, match=r"also defined in .*an_older\.yaml") as refused:
        load_tasks([str(group)])
    assert refused.value.code == "benchmarks.not_loaded"


def test_tasks_beside_a_group_do_not_take_the_place_of_those_named_beside_it(tmp_path: Path) -> None:
    from engine.evaluation.tasks import load_tasks

    group = my_group(tmp_path)
    text = (tmp_path / "first.yaml").read_text().replace("task: first", "task: demo_facts")
    (tmp_path / "demo_facts.yaml").write_text(text)
    facts = load_tasks([str(group), "demo_facts"])[1].loaded["tasks"]["demo_facts"]
    assert len(list(facts.test_docs())) > 1, "the demo model's own questions, not the one of the file"


def test_a_file_that_holds_no_task_or_a_group_that_lm_eval_cannot_find_is_refused(tmp_path: Path) -> None:
    from engine.evaluation.tasks import load_tasks

    with pytest.raises(EngineError, match="holds no task") as refused:
        load_tasks([str(my_group(tmp_path, "old", "first"))])
    assert "`tag:`" in refused.value.next_step
    renamed = my_group(tmp_path / "yml").rename(tmp_path / "yml" / "mine.yml")
    with pytest.raises(EngineError, match="defines a group") as refused:
        load_tasks([str(renamed)])
    assert "end in .yaml" in refused.value.next_step


def test_a_document_that_holds_a_choice_of_a_benchmark_is_found(tmp_path: Path) -> None:
    """As in HellaSwag, whose target is a number, and as in Winogrande, whose question is one."""
    from engine.corpus.contamination import EvaluationRuns
    from engine.evaluation.tasks import load_tasks, question_texts

    long = "He walks over to the window and looks out at the rain for a long time."
    endings = choice_task(
        tmp_path, "endings", [{"q": "A man stands up.", "c": ["He sits.", long], "a": 1}], '"{{q}}"', "a", "c"
    )
    row = {"rest": "was far too big for the brown suitcase in the hall.", "c": ["The old trophy", "The bag"], "a": 0}
    blanks = choice_task(tmp_path, "blanks", [row], "a", "rest", "c")
    texts = list(question_texts(load_tasks([endings, blanks])))
    assert texts == [
        "A man stands up. He sits.",
        f"A man stands up. {long}",
        f"The old trophy {row['rest']}",
        f"The bag {row['rest']}",
    ]
    found = EvaluationRuns(texts, 13).found_in([f"Once more. A man stands up. {long}", "A man stands up. He sits."])
    assert found.tolist() == [True, False]


def test_results_survive_being_kept(demo_task: Any) -> None:
    from engine.evaluation.findings import Metric, TaskResult

    result = TaskResult(
        task="demo_facts",
        questions=3,
        metrics=(Metric(name="acc", value=2 / 3, standard_error=None),),
        main="acc",
        answers={0: 1.0, 1: 0.0, 12: 1.0},
    )
    assert msgspec.json.decode(msgspec.json.encode(result), type=TaskResult) == result
