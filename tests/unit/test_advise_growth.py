"""From an expansion that was chosen to a spec, its estimate and its warnings, and back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from planning import DEMO, LLAMA_3B, card, machine

from engine.advise.answers import answers_of
from engine.advise.approaches import frank_line, frank_texts, load_approaches
from engine.advise.compare import build_matrix, row_of
from engine.advise.frank import frank_words, needs_frank_words
from engine.advise.grown import Grown, expansion_section, only_adds_layers, tasks_for
from engine.advise.growth import Setting, growth_options, option_of, rechosen, recommended_growth
from engine.advise.plan import JobWish, build_spec
from engine.advise.spec_growth import growth_of
from engine.advise.spec_plan import plan_of_spec, workload_of
from engine.errors import EngineError
from engine.estimate.estimate import Verdict
from engine.estimate.workload import Method, OptimizerKind
from engine.expansion.asked import plan_of_section, source_of
from engine.jobs.spec import ExpansionSection, JobSpec, ModelSection, StageSection, Task
from engine.jobs.spec_toml import dump_spec
from engine.models.resolve import resolve_model
from engine.profiles import parse_toml
from scaler_tui.preflight import check

BIG = machine(card("RTX 4090", 24))
HERE = machine(ram_gib=16, cores=2)
ANSWERS = answers_of({"goal": "research"})
REF = resolve_model("demo")
GROWING = ("block-expansion", "partial-expansion", "full-expansion")


def setting(approach: str, place: object = HERE) -> Setting:
    return Setting(approach, DEMO, place, ANSWERS)  # type: ignore[arg-type]


def chosen(approach: str, name: str = "", task: Task | None = None) -> Grown:
    grown = recommended_growth(setting(approach), REF, name)
    assert grown is not None
    return option_of(setting(approach), grown.choice, task).grown if task else grown


# ── plans ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("approach", GROWING)
def test_there_are_several_plans_and_one_is_recommended(approach: str) -> None:
    options = growth_options(setting(approach), source_of(REF))
    assert len(options) >= 3
    assert sum(option.choice.recommended for option in options) == 1
    for option in options:
        assert option.grown.architecture.parameters == option.choice.parameters > DEMO.parameters
        assert option.grown.task in tasks_for(option.choice.plan)


def test_an_approach_that_does_not_grow_has_no_plan() -> None:
    assert recommended_growth(setting("qlora"), REF) is None


def test_block_expansion_adds_blocks_and_nothing_else_learns() -> None:
    grown = chosen("block-expansion")
    assert only_adds_layers(grown.choice.plan)
    assert grown.task is Task.NEW_BLOCKS
    assert grown.method is Method.NEW_BLOCKS
    assert grown.added_layers == grown.choice.plan.after.layers - DEMO.layers


@pytest.mark.parametrize("name", ["wider", "feed-forward", "deeper", "mixed"])
def test_the_section_of_a_plan_leads_to_the_same_plan(name: str) -> None:
    grown = chosen("partial-expansion", name)
    assert plan_of_section(source_of(REF), expansion_section(grown.choice.plan)).plan == grown.choice.plan


def test_other_operators_keep_the_sizes_and_may_cost_exactness() -> None:
    source = source_of(REF)
    (option,) = (one for one in growth_options(setting("partial-expansion"), source) if one.choice.id == "deeper")
    repeated = rechosen(setting("partial-expansion"), source, option, {"layers": "interpolate"})
    assert repeated.choice.plan.after == option.choice.plan.after
    assert option.choice.exact
    assert not repeated.choice.exact
    assert rechosen(setting("partial-expansion"), source, repeated, {}).choice.plan == option.choice.plan
    with pytest.raises(EngineError):
        rechosen(setting("partial-expansion"), source, option, {"layers": "pad"})


# ── specs ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(("approach", "name"), [("block-expansion", "deeper"), ("partial-expansion", "wider")])
def test_every_way_to_train_a_plan_makes_a_spec_that_can_be_read_again(approach: str, name: str) -> None:
    for task in tasks_for(chosen(approach, name).choice.plan):
        grown = chosen(approach, name, task)
        spec = build_spec(DEMO, HERE, ANSWERS, approach=approach, wish=JobWish(grown=grown))
        assert spec.task is task
        assert spec.grows
        assert not spec.output.merge
        assert (spec.prediction.memory_bytes_likely > 0) is task.trains
        assert parse_toml(dump_spec(spec), JobSpec, name="spec") == spec


def test_old_weights_move_less_than_new_ones_and_both_less_than_an_adapter() -> None:
    adapter = build_spec(DEMO, HERE, ANSWERS, approach="lora").training
    full = build_spec(
        DEMO, HERE, ANSWERS, approach="partial-expansion", wish=JobWish(grown=chosen("partial-expansion", "wider"))
    ).training
    blocks = build_spec(
        DEMO, HERE, ANSWERS, approach="block-expansion", wish=JobWish(grown=chosen("block-expansion"))
    ).training
    assert full.learning_rate < full.new_learning_rate < adapter.learning_rate
    assert full.new_warmup_ratio > 0
    assert blocks.learning_rate == full.new_learning_rate
    assert blocks.new_learning_rate == 0


def test_a_run_is_judged_by_the_data_it_has_and_a_row_by_the_data_it_needs() -> None:
    grown = chosen("partial-expansion", "wider")
    row = build_matrix(DEMO, HERE, ANSWERS, {"partial-expansion": grown}).row("partial-expansion")
    run = row_of("partial-expansion", DEMO, HERE, ANSWERS, grown, own_data=True)
    assert row.hours.likely > 24 * 30
    assert run.hours.likely < 1
    assert run.verdict is Verdict.FITS
    assert row.final_parameters == run.final_parameters == grown.choice.parameters


def test_growth_without_a_plan_is_refused() -> None:
    with pytest.raises(EngineError) as refused:
        build_spec(DEMO, HERE, ANSWERS, approach="block-expansion")
    assert refused.value.code == "plan.no_growth"


def test_optimizers_that_need_cuda_are_not_planned_on_a_processor() -> None:
    grown = chosen("partial-expansion", "wider")
    spec = build_spec(DEMO, HERE, ANSWERS, approach="partial-expansion", wish=JobWish(grown=grown))
    assert spec.training.optimizer.value == "adamw"
    on_card = option_of(setting("partial-expansion", BIG), grown.choice)
    assert on_card.found.plan.work.optimizer is OptimizerKind.ADAMW_8BIT


# ── a spec as the estimates see it ────────────────────────────────────────────────────────────────────────────────
def spec_of(task: Task, **sizes: int) -> JobSpec:
    return JobSpec(task=task, model=ModelSection(source="demo"), expansion=ExpansionSection(**sizes))


@pytest.mark.parametrize(
    ("task", "sizes", "method"),
    [
        (Task.NEW_BLOCKS, {"layers": 10}, Method.NEW_BLOCKS),
        (Task.QLORA_GROWN, {"layers": 10}, Method.NEW_BLOCKS),
        (Task.QLORA_GROWN, {"ffn": 768}, Method.FULL),
        (Task.NEW_COORDINATES, {"ffn": 768}, Method.FULL),
        (Task.FULL, {"layers": 10, "ffn": 768}, Method.FULL),
    ],
)
def test_the_workload_is_the_grown_model_trained_as_the_task_says(
    task: Task, sizes: dict[str, int], method: Method
) -> None:
    spec = spec_of(task, **sizes)
    growth = growth_of(spec, REF, DEMO)
    assert growth is not None
    work = workload_of(spec, DEMO, HERE, growth=growth)
    assert work.method is method
    assert work.architecture.parameters > DEMO.parameters
    assert work.architecture.layers == sizes.get("layers", DEMO.layers)
    assert plan_of_spec(spec, DEMO, HERE, growth=growth).final.parameters == work.architecture.parameters


def test_stages_are_followed_to_the_last_model() -> None:
    spec = JobSpec(
        task=Task.FULL, stages=(StageSection(max_steps=5), StageSection(layers=10), StageSection(ffn=768, layers=10))
    )
    growth = growth_of(spec, REF, DEMO)
    assert growth is not None
    assert (growth.architecture.layers, growth.architecture.intermediate_size) == (10, 768)
    assert growth.new_layers == 2
    assert not growth.only_layers


def test_an_adapter_grows_nothing() -> None:
    assert growth_of(JobSpec(), REF, DEMO) is None


def test_a_start_is_checked_against_the_grown_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path))
    small = check(spec_of(Task.NEW_BLOCKS, layers=9), base=tmp_path, force=False)
    large = check(spec_of(Task.FULL, ffn=4096), base=tmp_path, force=False)
    assert large.spec.prediction.memory_bytes_likely > small.spec.prediction.memory_bytes_likely
    assert large.disk_bytes > small.disk_bytes
    only = check(spec_of(Task.EXPAND, layers=9), base=tmp_path, force=False)
    assert only.spec.prediction.seconds_high == 0, "nothing is trained"
    assert only.disk_bytes > 7e6
    with pytest.raises(EngineError) as refused:
        check(spec_of(Task.FULL, hidden=100), base=tmp_path, force=False)
    assert refused.value.code == "expansion.size"


# ── frank words ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("approach", [approach.id for approach in load_approaches()])
def test_every_expansion_and_nothing_else_is_warned_of(approach: str) -> None:
    matrix = build_matrix(LLAMA_3B, BIG, ANSWERS.with_values(data="text"))  # with the rows of large text
    words = frank_words(approach, matrix, 2e6)
    assert needs_frank_words(approach) is (approach in GROWING) is bool(words)
    if words:
        assert [word.label for word in words] == ["Research", "Hardware", "Data", "Time", "Instead"]
        for word in words:
            assert "{" not in word.text
            assert word.source


def test_the_warnings_name_this_plan_and_what_to_do_instead() -> None:
    matrix = build_matrix(LLAMA_3B, BIG, ANSWERS)
    text = " ".join(word.text for word in frank_words("partial-expansion", matrix, 2e6))
    for expected in (
        "not established",
        "24 to 48 GB",
        "1 to 10 billion",
        "2.00M tokens",
        "QLoRA",
        "LoRA with a large rank",
    ):
        assert expected in text
    assert "better and cheaper" in frank_line()
    assert {word.label for word in frank_texts()} == {"Research", "Hardware", "Data", "Time", "Instead"}
    assert msgspec.json.encode(frank_texts())
