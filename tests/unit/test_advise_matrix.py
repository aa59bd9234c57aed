"""The matrix, the recommendation, recipes and specs."""

from __future__ import annotations

import time
from dataclasses import replace
from operator import truediv
from typing import Any

import msgspec
import pytest
from planning import DEMO, LAPTOP, LLAMA_3B, card, machine

from engine.advise.amounts import load_of
from engine.advise.answers import answers_of
from engine.advise.appraisal import appraise
from engine.advise.approaches import load_approaches
from engine.advise.compare import build_matrix, to_json
from engine.advise.explain import Column, explain
from engine.advise.fit import plan_of
from engine.advise.fixes import fixes_for
from engine.advise.plan import JobWish, build_spec, predict
from engine.advise.planned_machine import planned_machine
from engine.advise.recipes import CardClass, card_class_of, choose_recipe, load_recipes
from engine.advise.targets import deeper, larger, wider
from engine.errors import EngineError, ExitCode
from engine.estimate.estimate import Verdict
from engine.estimate.workload import Workload
from engine.jobs.spec import JobSpec, Task
from engine.models.analyze import analyze
from engine.units import GIB

IDS = (
    "qlora",
    "lora",
    "lora-large",
    "context",
    "block-expansion",
    "partial-expansion",
    "full-expansion",
    "pretrained-larger",
    "distillation",
)
BIG = machine(card("RTX 4090", 24))
SMALL = machine(card("RTX 3060 12GB", 12))
CLUSTER = machine(*(replace(card("A100 80GB", 80, index=i), compute_capability=(8, 0)) for i in range(4)))
ANSWERS = answers_of({"model": "llama-3.2-3b", "data_tokens": 2_000_000})


@pytest.mark.parametrize("place", [BIG, SMALL, CLUSTER, LAPTOP], ids=lambda m: m.label)
@pytest.mark.parametrize("model", [DEMO, LLAMA_3B], ids=lambda m: m.name)
def test_every_approach_has_a_row_on_every_machine(place: object, model: object) -> None:
    matrix = build_matrix(model, place, ANSWERS)  # type: ignore[arg-type]
    assert tuple(row.id for row in matrix.rows) == IDS
    assert set(matrix.otherwise) == set(IDS) - {matrix.recommended}
    for row in matrix.rows:
        assert row.verdict_reason
        why = row.not_runnable_reason
        assert row.runnable or "does not carry it out yet" in why or why == row.impediment != ""
        for estimate in (row.vram, row.ram, row.disk, row.hours, row.cost_usd):
            assert estimate.low <= estimate.likely <= estimate.high
        for column in Column:
            assert explain(row, column)


def test_the_json_has_the_fields_scripts_rely_on() -> None:
    matrix = build_matrix(LLAMA_3B, BIG, ANSWERS)
    tree = msgspec.json.decode(msgspec.json.encode(to_json(matrix)))
    assert {"model", "machine", "recommended", "approaches"} <= set(tree)
    for row in tree["approaches"]:
        assert {
            "id", "base_parameters", "final_parameters", "effective_capacity", "verdict", "vram_bytes", "ram_bytes",
            "disk_bytes", "hours", "cost_usd", "performance", "reason", "breakdown",
        } <= set(row)  # fmt: skip
        assert isinstance(row["vram_bytes"], int)
        assert set(row["hours"]) == {"low", "likely", "high"}
        assert sum(row["breakdown"].values()) == pytest.approx(row["vram_bytes"], rel=1e-6)


def test_the_verdict_follows_free_memory_and_not_the_label() -> None:
    verdicts = {}
    for free in (23, 16, 6):
        place = machine(card("RTX 4090", 24, free_gib=free))
        verdicts[free] = build_matrix(LLAMA_3B, place, ANSWERS).row("lora").verdict
        row = build_matrix(LLAMA_3B, place, ANSWERS).row("lora")
        assert (row.vram.high <= free * GIB) == (row.verdict is Verdict.FITS)
    assert verdicts == {23: Verdict.FITS, 16: Verdict.FITS, 6: Verdict.NO}


def test_memory_of_several_cards_is_never_added_up_for_one_job() -> None:
    one, four = (
        build_matrix(LLAMA_3B, SMALL, ANSWERS),
        build_matrix(LLAMA_3B, machine(*(card("RTX 3060 12GB", 12, index=i) for i in range(4))), ANSWERS),
    )
    assert one.row("lora").vram == four.row("lora").vram
    assert "data parallel" in four.row("lora").settings
    assert "over 4 cards" in four.row("full-expansion").settings
    assert four.row("full-expansion").vram.likely < one.row("full-expansion").vram.likely


def test_without_a_gpu_the_need_is_in_ram() -> None:
    matrix = build_matrix(LLAMA_3B, machine(ram_gib=64, cores=4), ANSWERS)
    row = matrix.row("qlora")
    assert row.vram.likely == 0
    assert row.ram.likely > 2 * GIB
    assert to_json(matrix)["approaches"][0]["breakdown"]["weights"] > 0


def test_a_job_of_years_is_not_called_fitting() -> None:
    row = build_matrix(DEMO, machine(ram_gib=64, cores=2), ANSWERS).row("full-expansion")
    assert row.verdict is not Verdict.FITS
    assert "fits in memory, but takes about" in row.verdict_reason


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ("specialise", "lora"),
        ("style", "lora"),
        ("extraction", "lora"),
        ("reasoning", "pretrained-larger"),
        ("long-documents", "context"),
        ("research", "partial-expansion"),
        ("smaller", "distillation"),
    ],
)
def test_the_goal_decides_where_everything_fits(goal: str, expected: str) -> None:
    context = 16_384 if goal == "long-documents" else 2048
    answers = answers_of({"model": "llama-3.2-3b", "goal": goal, "context": context, "timeline": "months"})
    matrix = build_matrix(replace(LLAMA_3B, context_length=8192), CLUSTER, answers)
    assert matrix.recommended == expected
    assert matrix.recommendation.endswith(".")


def test_qlora_is_recommended_where_lora_does_not_fit() -> None:
    matrix = build_matrix(LLAMA_3B, SMALL, ANSWERS)
    assert matrix.row("lora").verdict is not Verdict.FITS
    assert matrix.recommended == "qlora"


def test_a_wish_that_does_not_fit_is_explained_and_replaced() -> None:
    answers = answers_of({"model": "llama-3.2-3b", "goal": "research", "hardware": "this"})
    matrix = build_matrix(LLAMA_3B, SMALL, answers)
    assert "does not work here" in matrix.recommendation
    assert matrix.row(matrix.recommended).verdict is Verdict.FITS


def test_choosing_otherwise_has_a_price() -> None:
    matrix = build_matrix(LLAMA_3B, BIG, ANSWERS)
    sentence = matrix.otherwise["full-expansion"]
    assert "VRAM more" in sentence
    assert "$" in sentence
    assert "does not fit" in sentence


def test_expansion_is_recommended_only_with_warnings() -> None:
    answers = answers_of({"model": "llama-3.2-3b", "goal": "research", "use_case": "publication", "timeline": "months"})
    matrix = build_matrix(LLAMA_3B, CLUSTER, answers)
    assert "expansion" in matrix.recommended
    warnings = " ".join(matrix.warnings)
    for word in ("research project", "is not established"):
        assert word in warnings


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ({"timeline": "hours"}, "you have 12 h"),
        ({"use_case": "production"}, "proven methods"),
        ({"budget_usd": 5}, "limit is $5"),
    ],
)
def test_time_money_and_use_decide_between_what_fits(limit: dict[str, Any], told: str) -> None:
    free = answers_of({"model": "llama-3.2-3b", "goal": "research", "use_case": "publication", "timeline": "months"})
    bound = answers_of({**free.values, **limit})
    matrix = build_matrix(LLAMA_3B, CLUSTER, bound)
    chosen = matrix.row(matrix.recommended)
    assert "expansion" not in chosen.id
    assert chosen.runnable
    assert told in matrix.recommendation


def test_without_bitsandbytes_no_packed_row_is_offered() -> None:
    bare = replace(CLUSTER, simulated=False, libraries={"bitsandbytes": None})
    matrix = build_matrix(LLAMA_3B, bare, answers_of({"model": "llama-3.2-3b"}))
    assert matrix.row("qlora").verdict is Verdict.NO
    assert "bitsandbytes" in matrix.row("qlora").verdict_reason
    assert matrix.row("lora").verdict is Verdict.FITS


def test_a_rented_machine_of_ones_own_session_is_paid_by_the_hour() -> None:
    here = replace(CLUSTER, simulated=False)
    answers = answers_of({"model": "demo", "hardware": "this-rented", "price_usd_per_hour": 2.0, "budget_usd": 7})
    rented = planned_machine(answers, here)
    assert not rented.simulated
    spec = build_spec(DEMO, rented, answers, approach="qlora")
    assert (spec.cost.usd_per_hour, spec.cost.budget_usd) == (2.0, 7.0)


def _yardstick_seconds() -> float:
    """Processor seconds of a fixed piece of the same kind of work: 10 ms where the budgets were set.

    Budgets are ratios to it, so that they mean the same on a slower or a busier machine.
    """
    started = time.process_time()
    workload = Workload(architecture=LLAMA_3B)
    for index in range(1_000):
        workload = replace(workload, sequence=1 + index)
    assert workload.sequence == 1_000
    return time.process_time() - started


def test_the_whole_matrix_is_recomputed_within_ten_milliseconds_of_work() -> None:
    build_matrix(LLAMA_3B, BIG, ANSWERS)
    times, yardsticks = [], []
    for length in range(1000, 1020):
        answers = ANSWERS.with_values(context=length)
        started = time.process_time()
        build_matrix(LLAMA_3B, BIG, answers)
        times.append(time.process_time() - started)
        yardsticks.append(_yardstick_seconds())
    ratio = min(map(truediv, times, yardsticks))
    print(f"\nmatrix of {len(IDS)} approaches: best {min(times) * 1e3:.1f} ms, {ratio:.2f} of the yardstick")
    assert ratio < 1


def test_the_matrix_of_all_cards_of_the_catalogue_takes_less_than_300_milliseconds_of_work() -> None:
    from engine.hardware.gpu_profiles import load_gpu_profiles
    from engine.hardware.simulate import simulate

    places = [simulate(profile.name, BIG) for profile in load_gpu_profiles() if profile.visible_bytes]
    assert len(places) >= 40
    times, yardsticks = [], []
    for _ in range(4):
        started = time.process_time()
        for place in places:
            build_matrix(LLAMA_3B, place, ANSWERS)
        times.append(time.process_time() - started)
        yardsticks.append(min(_yardstick_seconds() for _ in range(3)))
    ratio = min(map(truediv, times, yardsticks))
    print(f"\nmatrices of {len(places)} cards: best {min(times) * 1e3:.0f} ms, {ratio:.1f} of the yardstick")
    assert ratio < 30


def test_grown_shapes_come_close_to_their_target() -> None:
    assert wider(LLAMA_3B, 7_000_000_000).parameters == pytest.approx(7e9, rel=0.05)
    grown = deeper(LLAMA_3B, 1.25)
    assert grown.layers == 35
    assert LLAMA_3B.parameters < grown.parameters < 1.25 * LLAMA_3B.parameters
    assert larger(LLAMA_3B).parameters > 1.3 * LLAMA_3B.parameters


def test_capacity_figures_are_marked_as_judgement() -> None:
    for approach in load_approaches():
        assert "(" in approach.capacity or "2024" in approach.capacity
    assert "rough judgement" in next(a for a in load_approaches() if a.id == "lora").capacity


def test_every_recipe_value_has_a_reason_and_a_source() -> None:
    assert {file.id for file in load_recipes()} == {
        "demo", "domain", "style", "extraction", "long", "long-demo", "text", "text-demo",
        "distillation", "distillation-demo",
    }  # fmt: skip
    for file in load_recipes():
        for settings in (file.base, *file.card.values()):
            for setting in settings.values():
                assert setting.reason
                assert setting.source


def test_recipes_follow_the_goal_and_the_card() -> None:
    sizes = {None: "cpu", 8: "8gb", 12: "16gb", 16: "16gb", 24: "24gb", 32: "24gb", 48: "80gb", 80: "80gb"}
    for gib, name in sizes.items():
        assert card_class_of(None if gib is None else gib * GIB) is CardClass(name)
    style = answers_of({"model": "llama-3.2-3b", "goal": "style"})
    assert choose_recipe(style, BIG, LLAMA_3B).id == "style"
    assert choose_recipe(ANSWERS, SMALL, LLAMA_3B).whole("batch_size") == 2
    assert choose_recipe(answers_of(), LAPTOP, DEMO).id == "demo"


def test_the_demo_spec_is_a_runnable_promise() -> None:
    spec = build_spec(DEMO, LAPTOP, answers_of(measured_tokens=19_676), approach="qlora")
    assert (spec.task, spec.model.source, spec.data.train, spec.data.max_length) == (Task.QLORA, "demo", "demo", 256)
    promise = spec.prediction
    assert 0 < promise.memory_bytes_low <= promise.memory_bytes_likely <= promise.memory_bytes_high < 2 * GIB
    assert 20 < promise.seconds_low < promise.seconds_likely < 300
    assert promise.tokens_per_second > 100
    assert promise.machine == LAPTOP.label
    assert msgspec.convert(msgspec.to_builtins(spec), JobSpec) == spec


@pytest.mark.parametrize("approach", ["qlora", "lora", "lora-large", "pretrained-larger"])
def test_every_runnable_row_makes_a_spec_that_its_row_promised(approach: str) -> None:
    answers = answers_of({"model": "llama-3.2-3b", "data": "rows.jsonl"}, measured_tokens=1_000_000)
    spec = build_spec(LLAMA_3B, BIG, answers, approach=approach)
    row = build_matrix(LLAMA_3B, BIG, answers).row(approach)
    assert spec.prediction.memory_bytes_likely == pytest.approx(row.vram.likely, rel=1e-6)
    assert spec.prediction.seconds_likely <= row.hours.likely * 3600 * 1.001
    assert (spec.model.source == "meta-llama/Llama-3.2-3B") == (approach != "pretrained-larger")


@pytest.mark.parametrize("approach", [a.id for a in load_approaches() if not a.runs])
def test_rows_that_do_not_run_say_so_in_plain_words(approach: str) -> None:
    with pytest.raises(EngineError, match="does not carry it out yet"):
        build_spec(LLAMA_3B, BIG, ANSWERS, approach=approach)


def test_a_job_that_does_not_fit_is_refused_with_ranked_fixes() -> None:
    tiny = machine(card("GTX", 8))
    answers = answers_of({"model": "llama-3.2-3b", "data": "rows.jsonl"})
    with pytest.raises(EngineError) as caught:
        build_spec(LLAMA_3B, tiny, answers, approach="lora")
    error = caught.value
    assert error.exit_code == ExitCode.DOES_NOT_FIT
    assert "(1)" in error.next_step
    assert "QLoRA" in error.next_step
    assert "rented" in error.next_step
    forced = build_spec(LLAMA_3B, tiny, answers, approach="lora", wish=JobWish(force=True))
    assert forced.prediction.memory_bytes_likely > 8 * GIB


def test_every_proposed_fix_really_fits() -> None:
    here = machine(card("RTX 4060", 8))
    plan = plan_of(load_approaches()[1], LLAMA_3B, here, ANSWERS)
    fixes = fixes_for(appraise(plan, here, load_of(plan, ANSWERS, here)))
    assert {name for fix in fixes for name in fix.id.split("+")} >= {"qlora", "rented", "model"}
    for fix in fixes:
        assert fix.verdict is not Verdict.NO
        if fix.id not in ("rented",):
            assert fix.memory.likely <= plan.devices.free_bytes


def test_a_prediction_follows_the_spec() -> None:
    spec = build_spec(DEMO, LAPTOP, answers_of(measured_tokens=20_000), approach="lora")
    longer = msgspec.structs.replace(spec, training=msgspec.structs.replace(spec.training, max_steps=10_000))
    assert predict(longer, DEMO, LAPTOP, tokens_per_epoch=20_000).seconds_likely > 10 * spec.prediction.seconds_likely


def test_a_rented_machine_brings_price_and_budget_into_the_spec() -> None:
    rented = replace(BIG, price_usd_per_hour=0.5)
    answers = answers_of(
        {"model": "llama-3.2-3b", "data": "rows.jsonl", "hardware": "rented", "card": "RTX 4090", "budget_usd": 20}
    )
    spec = build_spec(LLAMA_3B, rented, answers, approach="qlora")
    assert (spec.cost.usd_per_hour, spec.cost.budget_usd) == (0.5, 20)


def test_no_data_is_said_before_anything_else_goes_wrong() -> None:
    with pytest.raises(EngineError, match="no data"):
        build_spec(LLAMA_3B, BIG, ANSWERS, approach="qlora")


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b"])
def test_mixtures_of_experts_have_a_whole_matrix(name: str) -> None:
    matrix = build_matrix(analyze(name), machine(card("A100 80GB", 80)), answers_of({"model": name}))
    assert all(row.hours.likely > 0 and row.vram.likely > 0 for row in matrix.rows)
