"""Questions the other way round: what is found fits, the next larger one does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning import DEMO, LAPTOP, LLAMA_3B, card, machine

from engine.advise.amounts import load_of
from engine.advise.answers import answers_of
from engine.advise.appraisal import Appraisal, appraise
from engine.advise.approaches import find_approach
from engine.advise.catalogue import known_architecture
from engine.advise.fit import Plan, plan_of
from engine.advise.inverse import (
    LENGTH_GRAIN,
    MOST_RANK,
    Question,
    cheapest_card,
    fastest_card,
    largest,
    parse_deadline,
    room_of,
)
from engine.advise.rented import offers
from engine.errors import EngineError
from engine.estimate.memory import memory_bounds
from engine.hardware.machine import Machine
from engine.models.architecture import Architecture
from engine.models.model_profiles import load_model_profiles

ANSWERS = answers_of({"model": "llama-3.2-3b", "data_tokens": 2_000_000})
PLACES = [machine(card(f"{gib} GB", gib)) for gib in (6, 8, 12, 24, 80)]


def planned(approach: str, place: Machine, model: Architecture = LLAMA_3B) -> Plan:
    return plan_of(find_approach(approach), model, place, ANSWERS)


def appraised(approach: str, place: Machine) -> Appraisal:
    plan = planned(approach, place)
    return appraise(plan, place, load_of(plan, ANSWERS, place))


def changed(plan: Plan, question: Question, value: int) -> float:
    """The upper bound with another sequence, batch or rank."""
    work = replace(plan.work, **{question.value: value})
    if question is Question.BATCH:  # the effective batch stays as it is
        work = replace(work, accumulation=max(plan.work.batch * plan.work.accumulation // value, 1))
    return memory_bounds(work)[2]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.label)
@pytest.mark.parametrize("approach", ["qlora", "lora", "context", "distillation"])
@pytest.mark.parametrize("question", [Question.SEQUENCE, Question.BATCH, Question.RANK])
def test_the_largest_fits_and_one_more_does_not(question: Question, approach: str, place: Machine) -> None:
    plan = planned(approach, place)
    if question is Question.RANK and plan.work.method != "adapter":
        with pytest.raises(EngineError, match="no adapter"):
            largest(plan, question)
        return
    found, free = largest(plan, question), plan.devices.free_bytes
    grain = LENGTH_GRAIN if question is Question.SEQUENCE else 1
    if found.value:
        assert changed(plan, question, found.value) <= free
        assert found.memory is not None
        assert found.memory.high <= free
    if found.value < MOST_RANK:
        assert changed(plan, question, found.value + grain) > free
    assert str(question) in found.sentence


def test_where_nothing_fits_it_says_what_even_the_smallest_needs() -> None:
    found = largest(planned("lora", machine(card("tiny", 2))), Question.SEQUENCE)
    assert (found.value, found.memory) == (0, None)
    assert "even 64 needs up to" in found.sentence


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.label)
def test_the_largest_model_of_the_catalogue_fits_and_no_larger_one_does(place: Machine) -> None:
    plan = planned("qlora", place)
    found = largest(plan, Question.MODEL)
    for profile in load_model_profiles():
        if profile.parameters > found.value:
            architecture = known_architecture(profile.id)
            length = min(plan.work.sequence, architecture.context_length)
            work = replace(plan.work, architecture=architecture, sequence=length)
            assert memory_bounds(work)[2] > plan.devices.free_bytes


def test_grown_models_have_no_larger_model() -> None:
    with pytest.raises(EngineError, match="grows one given model"):
        largest(planned("block-expansion", PLACES[-1]), Question.MODEL)


def test_the_room_of_a_plan_covers_its_own_settings_where_it_fits() -> None:
    plan = planned("qlora", PLACES[3])
    room = {answer.question: answer.value for answer in room_of(plan)}
    assert room[Question.SEQUENCE] >= plan.work.sequence // LENGTH_GRAIN * LENGTH_GRAIN
    assert room[Question.BATCH] >= plan.work.batch
    assert room[Question.RANK] >= plan.work.rank
    assert len(room_of(planned("partial-expansion", PLACES[3]))) == 2
    assert room_of(plan_of(find_approach("qlora"), DEMO, LAPTOP, ANSWERS))


@pytest.mark.parametrize("hours", [0.5, 2, 12, 100])
def test_the_cheapest_card_is_in_time_and_nothing_cheaper_is(hours: float) -> None:
    found = appraised("lora", PLACES[0])
    chosen = cheapest_card(found, hours)
    in_time = [offer for offer in offers(found) if offer.hours.likely <= hours]
    assert (chosen is None) == (not in_time)
    if chosen is not None:
        assert chosen.count == 1, "this approach does not shard"
        assert chosen.cost_usd.likely == min(offer.cost_usd.likely for offer in in_time)
    fastest = fastest_card(found)
    assert fastest is not None
    assert fastest.hours.likely <= min(offer.hours.likely for offer in offers(found))


def test_several_cards_are_considered_where_the_job_shards() -> None:
    counts = {offer.count for offer in offers(appraised("full-expansion", PLACES[0]))}
    assert counts > {1}


@pytest.mark.parametrize(
    ("text", "hours"), [("12h", 12), ("12", 12), ("90 min", 1.5), ("3d", 72), ("2 weeks", 336), ("0.5h", 0.5)]
)
def test_a_deadline_is_read_with_its_unit(text: str, hours: float) -> None:
    assert parse_deadline(text) == pytest.approx(hours)


@pytest.mark.parametrize("text", ["", "soon", "-3h", "0h", "12 parsecs", "99999d", "nan", "1e3h"])
def test_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(EngineError) as refused:
        parse_deadline(text)
    assert "12h, 3d, 2w" in refused.value.next_step
