"""Verdicts against free memory, and the ways out of a job that does not fit: true, ranked, and ready to be written."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from planning import DEMO, LAPTOP, LLAMA_3B, card, machine

from engine.advise.amounts import load_of
from engine.advise.answers import Answers, answers_of
from engine.advise.appraisal import Appraisal, appraise
from engine.advise.approaches import find_approach
from engine.advise.devices import free_words, single_device
from engine.advise.fit import plan_of
from engine.advise.fixes import Fix, fixes_for, savings_for
from engine.advise.knobs import Price, knobs_of
from engine.advise.refusal import refusal_of, settings_words
from engine.advise.verdict import judge
from engine.errors import ExitCode
from engine.estimate.estimate import Estimate, Origin, Verdict
from engine.estimate.memory import memory_bounds
from engine.hardware.machine import Disk, Machine
from engine.units import GIB

ANSWERS = answers_of({"model": "llama-3.2-3b", "data_tokens": 2_000_000})
CARDS = [machine(card(f"{gib} GB", gib)) for gib in (4, 6, 8, 12, 16, 24, 80)]
RUNNABLE = ("qlora", "lora", "lora-large", "context", "pretrained-larger", "block-expansion", "partial-expansion")
RUNNABLE = (*RUNNABLE, "distillation")
PLANNED = ("full-expansion",)
figure = partial(Estimate, unit="bytes", origin=Origin.FORMULA)


def appraised(approach: str, place: Machine, answers: Answers = ANSWERS, model: object = LLAMA_3B) -> Appraisal:
    plan = plan_of(find_approach(approach), model, place, answers)  # type: ignore[arg-type]
    return appraise(plan, place, load_of(plan, answers, place))


# ── verdicts ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("low", "likely", "high", "expected"),
    [
        (9, 10, 20, Verdict.FITS),
        (9, 10, 20.1, Verdict.TIGHT),
        (20, 22, 25, Verdict.TIGHT),
        (20.1, 22, 25, Verdict.NO),
    ],
)
def test_bounds_are_held_against_free_memory(low: float, likely: float, high: float, expected: Verdict) -> None:
    devices = single_device(machine(card("RTX 4090", 24, free_gib=20)))
    assert devices.verdict(low * GIB, likely * GIB, high * GIB) is expected


def test_a_processor_would_swap_where_a_card_gives_memory_back() -> None:
    devices = single_device(machine(ram_gib=20 / 0.9))
    assert devices.verdict(19 * GIB, 20.1 * GIB, 25 * GIB) is Verdict.NO


def test_what_others_use_is_said_and_counts() -> None:
    busy = machine(card("RTX 4090", 24, free_gib=9))
    assert free_words(single_device(busy)) == "9.00 GiB of 24.0 GiB are free on this card, 15.0 GiB in use by others"
    assert free_words(single_device(machine(card("RTX 4090", 24, free_gib=24)))) == "24.0 GiB are free on this card"
    assert "RAM are free" in free_words(single_device(LAPTOP))
    idle = machine(card("RTX 4090", 24, free_gib=24))
    assert appraised("lora", idle).verdict is Verdict.FITS
    found = appraised("lora", machine(card("RTX 4090", 24, free_gib=4)))
    assert found.verdict is Verdict.NO
    assert "20.0 GiB in use by others" in found.judgement.reason


@pytest.mark.parametrize(("what", "likely", "high"), [("ram", 1, 999), ("ram", 999, 999), ("disk", 1, 9999)])
def test_ram_and_disk_are_checked_the_same_way(what: str, likely: float, high: float) -> None:
    place = machine(card("RTX 4090", 24), ram_gib=64, disk_gib=2000)
    small = figure(GIB, GIB, GIB)
    given = {"ram": small, "disk": small, what: figure(GIB, likely * GIB, high * GIB)}
    hours = Estimate(1, 1, 1, "hours", Origin.FORMULA)
    found = judge(single_device(place), place, small, given["ram"], given["disk"], hours)
    assert found.verdict is (Verdict.NO if likely > 900 else Verdict.TIGHT)
    assert what.upper() in found.reason.upper()
    assert found.memory is Verdict.FITS
    what_if = judge(single_device(place), replace(place, simulated=True), small, given["ram"], given["disk"], hours)
    assert what_if.verdict is not Verdict.NO, "a what-if machine has this one's RAM only for want of a guess"


def test_a_full_disk_refuses_a_job_that_memory_would_allow() -> None:
    full = replace(machine(card("RTX 4090", 24)), disks=(Disk("runs", "/runs", GIB // 100, GIB),))
    found = appraised("qlora", full)
    assert found.verdict is Verdict.NO
    assert "/runs" in found.judgement.reason


# ── ways out ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("place", CARDS, ids=lambda place: place.label)
@pytest.mark.parametrize("approach", [*RUNNABLE, *PLANNED])
def test_every_way_out_is_true_and_they_are_ranked_by_price(approach: str, place: Machine) -> None:
    found = appraised(approach, place)
    fixes = fixes_for(found)
    if found.judgement.memory is Verdict.FITS:
        assert fixes == ()
    assert [fix.price for fix in fixes] == sorted(fix.price for fix in fixes)
    assert len({fix.id for fix in fixes}) == len(fixes)
    for fix in fixes:
        assert fix.verdict is not Verdict.NO
        assert fix.memory.low <= fix.memory.likely <= fix.memory.high
        assert fix.hours.likely > 0
        assert fix.words in fix.sentence
        if fix.id != "rented":
            limit = fix.memory.high if fix.verdict is Verdict.FITS else fix.memory.likely
            assert limit <= found.plan.devices.free_bytes


@pytest.mark.parametrize("approach", [*RUNNABLE, *PLANNED])
@pytest.mark.parametrize("place", CARDS[:4], ids=lambda place: place.label)
def test_only_what_the_program_carries_out_is_offered_as_settings(approach: str, place: Machine) -> None:
    keys = {
        "task", "quantization.kind", "model.source", "data.max_length", "adapter.rank", "training.optimizer",
        "training.batch_size", "training.gradient_accumulation", "training.gradient_checkpointing",
        "training.loss_chunk_tokens", "training.offload_activations",
        "context.train_embeddings", "context.window", "context.train_length", "distillation.held",
    }  # fmt: skip
    planning_only = {"bf16-adapters", "offload-optimizer"}
    for fix in fixes_for(appraised(approach, place)):
        names = set(fix.id.split("+"))
        assert {key for key, _ in fix.edits} <= keys
        if approach in PLANNED:
            assert fix.edits == ()
        else:
            assert not names & planning_only
            assert fix.edits or names <= {"rented"}


def test_each_step_of_a_knob_needs_less_memory_than_the_one_before() -> None:
    for approach in (*RUNNABLE, *PLANNED):
        plan = appraised(approach, machine(card("A100", 80))).plan
        for knob in knobs_of(plan):
            needs = [memory_bounds(step.apply(plan.work))[2] for step in knob.steps]
            assert needs == sorted(needs, reverse=True), (approach, knob.id)


def too_large(rows: int, length: int, gib: float, *, checkpointing: bool = True) -> Appraisal:
    """A LoRA job of that many rows and tokens."""
    place = machine(card("a card", gib))
    plan = plan_of(find_approach("lora"), LLAMA_3B, place, ANSWERS)
    work = replace(plan.work, batch=rows, accumulation=1, sequence=length, checkpointing=checkpointing)
    return appraise(replace(plan, work=work, bounds=memory_bounds(work)), place, load_of(plan, ANSWERS, place))


def named(fixes: tuple[Fix, ...], name: str) -> Fix:
    return next(fix for fix in fixes if fix.id == name)


def test_what_keeps_the_result_comes_first_and_keeps_the_effective_batch() -> None:
    fixes = fixes_for(too_large(16, 1024, 24))
    assert fixes[0].price is Price.TIME
    edits = dict(named(fixes, "micro-batch").edits)
    assert edits["training.batch_size"] * edits["training.gradient_accumulation"] == 16  # type: ignore[operator]


def test_the_gentlest_step_that_fits_is_taken() -> None:
    found = too_large(16, 1024, 24)
    batch = dict(named(fixes_for(found), "micro-batch").edits)["training.batch_size"]
    assert isinstance(batch, int)
    free = found.plan.devices.free_bytes
    assert memory_bounds(replace(found.plan.work, batch=batch))[2] <= free
    assert memory_bounds(replace(found.plan.work, batch=2 * batch))[2] > free


def test_where_no_single_change_is_enough_several_go_together() -> None:
    found = too_large(8, 4096, 8)
    fixes = [fix for fix in fixes_for(found) if fix.id not in ("rented", "model")]
    assert fixes
    for fix in fixes:
        assert "+" in fix.id
        assert " and " in fix.change
        assert fix.verdict is Verdict.FITS


def test_the_rented_card_is_the_cheapest_for_the_whole_job_and_says_what_it_costs() -> None:
    from engine.advise.rented import offers

    found = appraised("lora", CARDS[0])
    fix = named(fixes_for(found), "rented")
    assert fix.cost_usd.likely == min(offer.cost_usd.likely for offer in offers(found))
    assert "$" in fix.change


def test_the_smaller_model_is_the_largest_of_its_series_that_fits() -> None:
    answers = answers_of({"model": "llama-3.1-8b", "data_tokens": 2_000_000})
    from engine.models.analyze import analyze

    fixes = fixes_for(appraised("lora", machine(card("RTX 3060 12GB", 12)), answers, analyze("llama-3.1-8b")))
    model = named(fixes, "model")
    assert "Llama-3.2" in model.change
    assert ("model.source", model.change.split(" ")[0]) in model.edits


def test_the_refusal_names_the_reason_the_largest_term_and_the_keys_to_set() -> None:
    error = refusal_of(too_large(16, 1024, 24), "fit.no", spec_keys=True)
    assert error.exit_code is ExitCode.DOES_NOT_FIT
    assert "are free on this card" in error.what
    assert "Largest term" in error.cause
    assert "(1) loss in chunks of 1,024 tokens" in error.next_step
    assert "set training.loss_chunk_tokens = 1024" in error.next_step
    assert "set training.batch_size = " in error.next_step
    assert settings_words((("a.b", True), ("c", "x"), ("d", 2))) == 'a.b = true, c = "x", d = 2'


# ── savings ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("place", [*CARDS, LAPTOP], ids=lambda place: place.label)
def test_savings_still_fit_and_really_save(place: Machine) -> None:
    for approach in RUNNABLE:
        found = appraised(approach, place, model=DEMO if not place.gpus else LLAMA_3B)
        for fix in savings_for(found):
            assert fix.verdict is Verdict.FITS
            assert fix.hours.likely < found.hours.likely or fix.cost_usd.likely < found.cost_usd.likely


def test_a_paid_machine_is_compared_with_cheaper_ones() -> None:
    dear = replace(machine(card("A100 80GB", 80)), price_usd_per_hour=40.0)
    assert any(fix.id == "rented" for fix in savings_for(appraised("qlora", dear)))
    own = machine(card("A100 80GB", 80))
    assert not any(fix.id == "rented" for fix in savings_for(appraised("qlora", own)))
