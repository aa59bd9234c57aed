"""Several cards: steps stay what they are, copies exchange gradients, shares exchange weights, tables are honest."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from engine.advise.amounts import load_of
from engine.advise.answers import answers_of
from engine.advise.approaches import find_approach
from engine.advise.fit import Plan, plan_of
from engine.advise.sharded import CardCount, Strategy, can_be_sharded, card_counts, spread, words_of
from engine.advise.spec_plan import appraise_spec, load_of_spec, plan_of_spec, workload_of
from engine.estimate.cards import gpu_speed
from engine.estimate.estimate import Verdict
from engine.estimate.flops import step_work
from engine.estimate.memory import allocated_bytes
from engine.estimate.roofline import step_seconds
from engine.estimate.state import gradient_bytes
from engine.estimate.workload import Method, OptimizerKind, Packing4Bit, Workload
from engine.hardware.machine import Machine
from engine.jobs.spec import CostSection, DistributedSection, JobSpec, Task, TrainingSection
from tests.unit.planning import DEMO, LAPTOP, LLAMA_3B, card, machine

ANSWERS = answers_of({"model": "llama-3.2-3b", "data_tokens": 20_000_000})
WORK = Workload(LLAMA_3B, batch=4, accumulation=4, sequence=1024)


def planned(approach: str, place: Machine) -> Plan:
    return plan_of(find_approach(approach), LLAMA_3B, place, ANSWERS)


def counts(approach: str, place: Machine) -> tuple[CardCount, ...]:
    plan = planned(approach, place)
    return card_counts(plan, place, load_of(plan, ANSWERS, place))


@pytest.mark.parametrize("cards", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("strategy", [Strategy.DDP, Strategy.FSDP2])
def test_a_step_holds_the_same_sequences_on_any_number_of_cards(cards: int, strategy: Strategy) -> None:
    divided = spread(WORK, cards, strategy)
    sequences = WORK.batch * WORK.accumulation
    assert sequences <= divided.batch * divided.accumulation * divided.cards < sequences + cards * divided.batch
    assert divided.cards == cards
    assert divided.batch <= WORK.batch


def test_copies_pass_the_gradients_around_once_per_step_and_shares_the_weights_in_every_pass() -> None:
    copies, shares = spread(WORK, 4, Strategy.DDP), spread(WORK, 4, Strategy.FSDP2)
    assert step_work(copies).peer_bytes == pytest.approx(2 * 3 / 4 * gradient_bytes(WORK) / copies.accumulation)
    assert step_work(shares).peer_bytes > 20 * step_work(copies).peer_bytes
    assert step_work(WORK).peer_bytes == 0


def test_copies_cost_a_second_set_of_gradients_and_shares_save_state() -> None:
    full = Workload(LLAMA_3B, Method.FULL, batch=8, sequence=1024, optimizer=OptimizerKind.ADAMW_MIXED)
    one = replace(full, batch=2)
    copies, shares = spread(full, 4, Strategy.DDP), spread(full, 4, Strategy.FSDP2)
    assert allocated_bytes(copies) == pytest.approx(allocated_bytes(one) + gradient_bytes(one))
    assert allocated_bytes(shares) < 0.45 * allocated_bytes(one)


def test_two_cards_train_an_adapter_almost_twice_as_fast() -> None:
    one, two, *_ = counts("qlora", machine(card("RTX 4090", 24)))
    assert (one.strategy, two.strategy) == (Strategy.ONE, Strategy.DDP)
    assert 1.7 < two.speedup <= 2.0
    assert two.hours.likely < one.hours.likely
    assert two.verdict is Verdict.FITS


def test_the_first_row_is_the_plan_itself() -> None:
    place = machine(card("RTX 4090", 24))
    plan = planned("qlora", place)
    first = card_counts(plan, place, load_of(plan, ANSWERS, place))[0]
    assert (first.memory.low, first.memory.likely, first.memory.high) == plan.bounds
    assert first.speedup == 1.0


def test_full_training_that_no_card_holds_is_shared_and_then_fits() -> None:
    rows = counts("partial-expansion", machine(card("RTX 4090", 24)))
    assert rows[0].verdict is Verdict.NO
    assert "does not fit" in words_of(rows[0])
    assert rows[0].speedup == 0.0
    assert rows[-1].strategy is Strategy.FSDP2
    assert rows[-1].verdict is Verdict.FITS
    assert rows[-1].edits == (("training.optimizer", "adamw"),)
    shared = [row.memory.likely for row in rows[1:]]
    assert shared == sorted(shared, reverse=True)


def test_states_in_eight_bits_and_partly_frozen_models_are_copied_never_shared() -> None:
    full = Workload(LLAMA_3B, Method.FULL)
    assert can_be_sharded(full)
    assert can_be_sharded(replace(WORK, packing=Packing4Bit.NF4_DOUBLE))
    assert not can_be_sharded(replace(full, optimizer=OptimizerKind.ADAMW_8BIT))
    assert not can_be_sharded(replace(full, method=Method.NEW_BLOCKS, trained_layers=2))


def test_there_are_never_more_cards_than_sequences_in_a_step() -> None:
    place = machine(card("RTX 4090", 24))
    plan = planned("qlora", place)
    small = replace(plan, work=replace(plan.work, batch=1, accumulation=3))
    assert [row.cards for row in card_counts(small, place, load_of(small, ANSWERS, place))] == [1, 2]


def test_a_network_between_machines_is_slower_than_a_bus() -> None:
    device = gpu_speed(replace(card("A100 80GB", 80), compute_capability=(8, 0)))
    full = Workload(LLAMA_3B, Method.FULL, batch=16, accumulation=2, sequence=512)
    inside = step_seconds(spread(full, 16, Strategy.FSDP2), device, "likely")
    across = step_seconds(spread(full, 16, Strategy.FSDP2, nodes=2), device, "likely")
    assert across.transfers > 5 * inside.transfers


def test_without_a_gpu_there_is_nothing_to_count() -> None:
    assert counts("qlora", LAPTOP) == ()


def test_a_spec_for_several_cards_is_estimated_as_one_of_them() -> None:
    spec = JobSpec(task=Task.LORA, training=TrainingSection(batch_size=4, gradient_accumulation=4))
    place = machine(*(card("RTX 4090", 24, index=i) for i in range(4)))
    four = msgspec.structs.replace(spec, distributed=DistributedSection(processes=4, strategy="ddp"))
    one, divided = workload_of(spec, LLAMA_3B, place), workload_of(four, LLAMA_3B, place)
    assert (divided.replicas, divided.batch, divided.accumulation) == (4, 4, 1)
    assert (one.replicas, one.accumulation) == (1, 4)
    assert plan_of_spec(four, LLAMA_3B, place).devices.gpus[1:]
    hours = [appraise_spec(s, LLAMA_3B, place, load_of_spec(s, LLAMA_3B, place, 1e7)).hours for s in (spec, four)]
    assert hours[1].likely < 0.35 * hours[0].likely


def test_processes_on_a_processor_share_its_cores_and_each_needs_its_memory() -> None:
    spec = JobSpec(task=Task.LORA, training=TrainingSection(batch_size=4))
    two = msgspec.structs.replace(spec, distributed=DistributedSection(processes=2))
    one, both = (appraise_spec(s, DEMO, LAPTOP, load_of_spec(s, DEMO, LAPTOP, 1e6)) for s in (spec, two))
    assert both.memory.likely == pytest.approx(2 * one.memory.likely)
    assert both.hours.likely == one.hours.likely
    assert sum(part.amount for part in both.memory.breakdown) == pytest.approx(both.memory.likely)


def test_every_machine_is_paid_for_in_what_is_promised_and_in_what_a_budget_counts() -> None:
    cost = CostSection(usd_per_hour=2.0)
    one, four = (
        JobSpec(
            task=Task.LORA,
            cost=cost,
            training=TrainingSection(batch_size=8),
            distributed=DistributedSection(processes=2, nodes=nodes),
        )
        for nodes in (1, 4)
    )
    assert (one.usd_per_hour, four.usd_per_hour) == (2.0, 8.0)
    place = machine(*(card("RTX 4090", 24, index=i) for i in range(2)))
    found = [appraise_spec(s, LLAMA_3B, place, load_of_spec(s, LLAMA_3B, place, 1e8)) for s in (one, four)]
    rates = [appraisal.cost_usd.likely / appraisal.hours.likely for appraisal in found]
    assert rates == pytest.approx([2.0, 8.0], rel=0.15)  # hours of setting up are paid too
