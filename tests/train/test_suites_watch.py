"""What a run follows: measured once, kept line by line, told once, and judged by the limits of the spec."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.jobs import events as ev
from engine.jobs import layout
from engine.jobs.journal import JournalWriter
from engine.jobs.spec import JobSpec
from tests.train.conftest import WORDS, SpecMaker, write_jsonl

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Any]:
    from engine.evaluation.loading import loaded

    with loaded(tiny_model) as ready:
        yield ready


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two suites of twelve documents each."""
    draw = random.Random(11)
    for name in ("one", "two"):
        rows = [{"text": " ".join(draw.choice(WORDS) for _ in range(9))} for _ in range(12)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


def following(make_spec: SpecMaker, texts: Path, *limits: dict[str, Any]) -> JobSpec:
    suites = [{"name": name, "path": str(texts / f"{name}.jsonl")} for name in ("one", "two")]
    spec = make_spec(evaluation={"every_steps": 5}, data={"base_text": ""})
    import msgspec

    return msgspec.convert({**msgspec.to_builtins(spec), "suites": suites, "retention": list(limits)}, JobSpec)


class Run:
    """A run directory with a journal, and watches that come and go in it."""

    def __init__(self, folder: Path, spec: JobSpec, model_folder: Path) -> None:
        self.folder, self.spec, self.model_folder = folder, spec, model_folder
        folder.mkdir(exist_ok=True)
        self.told: list[ev.AnyEvent] = []

    def tell(self, event: ev.AnyEvent) -> None:
        self.told.append(event)
        with contextlib.closing(JournalWriter(self.folder / layout.JOURNAL)) as journal:
            journal.write(event)

    def watch(self, resumed_step: int = 0) -> Any:
        from engine.evaluation.retention import Watch, WatchOrder

        tokenizer = ChatTokenizer.load(self.model_folder)
        order = WatchOrder(self.folder, self.spec, "hash", self.model_folder, tokenizer, 128, self.tell)
        return Watch(dataclasses.replace(order, resumed_step=resumed_step))


@pytest.fixture
def run(make_spec: SpecMaker, texts: Path, tiny_model: Path) -> Run:
    return Run(texts / "run", following(make_spec, texts), tiny_model)


@contextlib.contextmanager
def damaged(model: Any, amount: float) -> Iterator[None]:
    """The model, worse."""
    import torch

    weight = model.model.lm_head.weight
    kept = weight.detach().clone()
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            weight.add_(torch.randn_like(weight) * amount)
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def forbid_measuring(monkeypatch: pytest.MonkeyPatch, *but: str) -> None:
    import engine.evaluation.retention as retention

    measure = retention.measure_suite

    def checked(model: Any, suite: Any, progress: Any) -> Any:
        assert suite.name in but, f"{suite.name} is measured again"
        return measure(model, suite, progress)

    monkeypatch.setattr(retention, "measure_suite", checked)


def test_the_parent_is_measured_once_and_told_once(run: Run, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run.watch().before(model)
    assert [event.suite for event in run.told if isinstance(event, ev.SuiteScore)] == ["one", "two"]
    forbid_measuring(monkeypatch)
    again = run.watch()
    assert again.knows_before()
    assert again.before(model) == before
    assert len(run.told) == 2


def test_a_kill_between_two_texts_costs_neither(run: Run, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        forbid_measuring(patched, "one")
        with pytest.raises(AssertionError, match="two is measured"):
            run.watch().before(model)
    assert not run.watch().knows_before()
    forbid_measuring(monkeypatch, "two")
    run.watch().before(model)
    assert [event.suite for event in run.told] == ["one", "two"]  # type: ignore[union-attr]


def test_a_figure_that_was_kept_but_not_told_is_told_by_the_next_attempt(run: Run, model: Any) -> None:
    first = run.watch()
    first.order = dataclasses.replace(first.order, tell=lambda _: None)  # killed before the journal had it
    first.before(model)
    run.watch().before(model)
    assert len(run.told) == 2


def test_what_was_measured_after_the_checkpoint_is_measured_again(
    run: Run, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = run.watch()
    watch.before(model)
    watch.look(model, 5)
    with damaged(model, 1.0):
        watch.look(model, 10)
    resumed = run.watch(resumed_step=5)
    resumed.before(model)
    resumed.look(model, 10)
    scores = [event for event in run.told if isinstance(event, ev.SuiteScore) and event.suite == "one"]
    assert [event.step for event in scores] == [0, 5, 10, 10]
    assert scores[2].bits_per_byte != scores[3].bits_per_byte
    forbid_measuring(monkeypatch)
    resumed.look(model, 5)


def test_another_text_under_the_same_name_is_refused(run: Run, model: Any, texts: Path) -> None:
    run.watch().before(model)
    write_jsonl(texts / "two.jsonl", [{"text": "something else"}])
    with pytest.raises(EngineError, match="not the one the run began with") as refused:
        run.watch()
    assert refused.value.code == "resume.suite_changed"


def test_looks_are_taken_when_they_are_due(run: Run, model: Any) -> None:
    watch = run.watch()
    watch.before(model)
    assert [step for step in range(1, 12) if watch.look(model, step).looked] == [5, 10]
    assert not watch.due(10, last=True), "what follows the last step is measured by `after`"


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────
def limited(run: Run, make_spec: SpecMaker, texts: Path, **limit: Any) -> Any:
    run.spec = following(make_spec, texts, limit)
    return run.watch()


def test_a_broken_limit_ends_the_run_and_one_to_hold_does_not(
    run: Run, model: Any, make_spec: SpecMaker, texts: Path
) -> None:
    watch = limited(run, make_spec, texts, on="two", most_lost=0.05, action="stop")
    watch.before(model)
    assert watch.look(model, 5).passed
    with damaged(model, 1.0):
        verdict = watch.look(model, 10)
        assert verdict.closes
        assert not verdict.passed
        assert "two rose from" in verdict.words
        holding = limited(run, make_spec, texts, on="two", most_lost=0.05, action="hold")
        holding.before(model)
        verdict = holding.look(model, 10)
        assert not verdict.closes
        assert "two rose from" in verdict.words
        after = holding.after(model, 12)
        assert "two rose from" in after.held
    assert holding.after(model, 20).held == ""
    gates = [(event.step, event.gate != "") for event in run.told if isinstance(event, ev.Retention)]
    assert gates == [(5, False), (10, True), (10, True), (12, True), (20, False)]


def test_a_start_that_breaks_a_limit_may_heal(run: Run, model: Any, make_spec: SpecMaker, texts: Path) -> None:
    """As after a growth that changes the model: it waits while the loss shrinks, and ends when it does not."""
    watch = limited(run, make_spec, texts, on="two", most_lost=0.01, action="stop")
    watch.before(model)
    watch.starts_elsewhere()
    verdicts = []
    for step, amount in ((5, 1.0), (10, 0.5), (15, 0.7)):
        with damaged(model, amount):
            verdicts.append(watch.look(model, step))
    assert [verdict.closes for verdict in verdicts] == [False, False, True]
    assert not any(verdict.passed for verdict in verdicts)


def asking(make_spec: SpecMaker, task: Path | str, on: str, **evaluation: Any) -> JobSpec:
    """A job that follows one benchmark, limited on `on`."""
    import msgspec

    spec = make_spec(evaluation={"tasks": (str(task),), "tasks_every_steps": 5, **evaluation}, data={"base_text": ""})
    return msgspec.convert({**msgspec.to_builtins(spec), "retention": [{"on": on, "action": "stop"}]}, JobSpec)


def task_lines(name: str, data: Path, output: str, metric: str) -> str:
    """A benchmark whose rows have "q", "choices" and "answer"."""
    choices = 'doc_to_choice: "{{choices}}"\ndoc_to_target: answer\n' if output == "multiple_choice" else ""
    choices = choices or 'doc_to_target: "{{q}}"\n'
    return (
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        f'output_type: {output}\ndoc_to_text: "{{{{q}}}}"\n{choices}metric_list: [{{metric: {metric}}}]\n'
    )


@pytest.fixture
def questions(texts: Path) -> Path:
    rows = [{"q": f"{word} or", "choices": ["one", "two"], "answer": 0} for word in WORDS[:8]]
    return write_jsonl(texts / "questions.jsonl", rows)


def test_the_comparison_of_all_questions_follows_the_last_look_at_a_part(
    model: Any, make_spec: SpecMaker, texts: Path, questions: Path, tiny_model: Path
) -> None:
    pytest.importorskip("lm_eval")
    (texts / "t.yaml").write_text(task_lines("mine", questions, "multiple_choice", "acc"))
    spec = asking(make_spec, texts / "t.yaml", "mine", tasks_part=3, tasks_limit=8)
    run = Run(texts / "run", spec, tiny_model)
    watch = run.watch()
    watch.before(model)
    assert watch.look(model, 7, last=True).passed
    watch.after(model, 7)
    told = [event for event in run.told if isinstance(event, ev.Retention)]
    assert [(event.step, event.reports[0].pairs) for event in told] == [(7, 3), (7, 8)]


def test_a_limit_on_a_perplexity_is_refused_before_the_start_and_before_step_1(
    model: Any, make_spec: SpecMaker, texts: Path, questions: Path, tiny_model: Path
) -> None:
    pytest.importorskip("lm_eval")
    from scaler_tui.benchmarks_check import require_benchmarks

    (texts / "t.yaml").write_text(task_lines("my_ppl", questions, "loglikelihood_rolling", "bits_per_byte"))
    spec = asking(make_spec, texts / "t.yaml", "my_ppl")
    refusals = (
        lambda: require_benchmarks(spec),
        lambda: Run(texts / "run", spec, tiny_model).watch().before(model),
    )
    for refuse in refusals:
        with pytest.raises(EngineError, match="my_ppl has no share of right answers") as refused:
            refuse()
        assert (refused.value.code, refused.value.cause) == (
            "retention.not_comparable",
            "It is measured in bits_per_byte.",
        )
        assert refused.value.key == "retention[1].on"


def test_a_checkpoint_counts_as_good_that_kept_a_limit_on_one_task_of_a_large_group(
    model: Any, make_spec: SpecMaker, texts: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("engine.evaluation.comparison.MOST_MEMBERS_SHOWN", 4)  # the demo's group has five
    spec = asking(make_spec, "demo", "demo_copy", tasks_part=2, tasks_limit=3)
    watch = Run(texts / "run", spec, tiny_model).watch()
    watch.before(model)
    assert watch.look(model, 5).passed
    assert [report.on for report in watch.after(model, 7).reports] == ["demo", "demo_copy"]


def test_stages_are_kept_for_the_card(run: Run, model: Any) -> None:
    watch = run.watch()
    watch.before(model)
    with damaged(model, 1.0):
        watch.after(model, 7, stage=1, name="grow")
    (stage,) = run.watch(resumed_step=7).stages()
    assert (stage.stage, stage.name, stage.step) == (1, "grow", 7)
    assert [report.verdict for report in stage.reports] == ["lost", "lost"]
    assert [suite.name for suite in stage.suites] == ["one", "two"]
