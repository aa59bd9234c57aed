"""A longer window: trained in the way that fits, estimated as the worker does it, refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from planning import DEMO, LAPTOP, LLAMA_3B, card, machine, shape

from engine.advise.answers import Answers, answers_of
from engine.advise.appraisal import appraise
from engine.advise.approaches import find_approach
from engine.advise.compare import build_matrix, row_of
from engine.advise.context import ContextChoice, completed, measured_lengths
from engine.advise.fit import plan_of
from engine.advise.fixes import fixes_for
from engine.advise.knobs import Edit, knobs_of
from engine.advise.plan import JobWish, build_spec
from engine.advise.refusal import refusal_of
from engine.advise.spec_plan import appraise_spec, load_of_spec, plan_of_spec, workload_of
from engine.errors import EngineError
from engine.estimate.estimate import Verdict
from engine.estimate.memory import allocated_bytes, memory_bounds, peak_of
from engine.estimate.storage import estimate_host_ram
from engine.estimate.walks import layer_walk
from engine.estimate.workload import Loss, Purpose, Workload
from engine.hardware.machine import Machine
from engine.jobs.spec import ContextSection, DataSection, EvaluationSection, JobSpec, Schedule, Task, TrainingSection
from engine.models.architecture import Architecture, Rope
from engine.units import GIB

LLAMA_8B = shape(
    "llama-8b-like", layers=32, hidden=4096, ffn=14_336, heads=32, kv_heads=8, vocab=128_256, tied=False, context=8192
)
SHORT_3B = replace(LLAMA_3B, context_length=8192)
ANSWERS = answers_of(
    {"model": "x/y", "goal": "long-documents", "context": 32_768, "data": "books.jsonl", "data_tokens": 20_000_000}
)


def planned(
    model: Architecture, place: Machine, choice: ContextChoice | None = None, answers: Answers = ANSWERS
) -> Any:
    return plan_of(find_approach("context"), model, place, answers, context=choice)


# ── what fits ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("model", "gib", "window", "packed", "embeddings"),
    [
        (LLAMA_8B, 80, "full", False, True),
        (LLAMA_8B, 48, "full", False, False),
        (LLAMA_8B, 24, "full", True, False),
        (LLAMA_8B, 16, "pose", True, False),
        (SHORT_3B, 24, "full", False, True),
    ],
)
def test_the_window_is_trained_in_the_gentlest_way_that_fits(
    model: Architecture, gib: int, window: str, packed: bool, embeddings: bool
) -> None:
    plan = planned(model, machine(card("a card", gib)))
    assert plan.context.window == window
    assert (plan.work.packed, plan.work.train_embeddings, plan.work.train_norms) == (packed, embeddings, True)
    assert plan.memory_verdict is Verdict.FITS
    assert plan.work.sequence == (32_768 if window == "full" else 8192)


def test_pose_gets_shorter_until_it_fits() -> None:
    plan = planned(LLAMA_8B, machine(card("a card", 10.5)))
    assert plan.context.window == "pose"
    assert plan.work.sequence < 8192
    assert plan.memory_verdict is Verdict.FITS


def test_what_the_user_chose_stays_chosen() -> None:
    small = machine(card("a card", 16))
    full = planned(LLAMA_8B, small, ContextChoice(window="full", method="yarn"))
    assert (full.context.window, full.context.method, full.work.sequence) == ("full", "yarn", 32_768)
    mixed = planned(SHORT_3B, machine(card("a card", 24)), ContextChoice(length=16_384, window="mixed"))
    assert (mixed.context.length, mixed.context.window, mixed.work.sequence) == (16_384, "mixed", 16_384)


def test_texts_that_cannot_be_measured_are_left_out_of_the_report() -> None:
    """Keys and values of 131,072 tokens, twice, are 32 GiB."""
    plan = planned(LLAMA_8B, machine(card("a card", 24)), ContextChoice(length=131_072))
    assert plan.context.measured == measured_lengths(8192, 131_072)[: len(plan.context.measured)]
    assert 8192 <= plan.context.measured[-1] == plan.work.measured_tokens < 131_072
    assert plan.memory_verdict is Verdict.FITS


# ── the spec ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("gib", [80, 24, 16, 10.5])
@pytest.mark.parametrize("window", ["", "pose", "mixed"])
def test_a_spec_is_the_job_that_was_planned(gib: float, window: str) -> None:
    place, wish = machine(card("a card", gib)), JobWish(context=ContextChoice(window=window), force=True)
    spec = build_spec(LLAMA_8B, place, ANSWERS, approach="context", wish=wish)
    plan = planned(LLAMA_8B, place, wish.context)
    assert workload_of(spec, LLAMA_8B, place) == plan.work
    assert plan_of_spec(spec, LLAMA_8B, place).context == plan.context
    row = row_of("context", LLAMA_8B, place, ANSWERS, context=wish.context)
    assert spec.prediction.memory_bytes_likely == pytest.approx(row.vram.likely, rel=1e-6)


def test_the_recipe_is_the_researched_one_and_the_result_is_merged() -> None:
    spec = build_spec(LLAMA_8B, machine(card("A100", 80)), ANSWERS, approach="context")
    training = spec.training
    assert 1e-4 <= training.learning_rate <= 2e-4
    assert (training.schedule, training.weight_decay) == (Schedule.CONSTANT, 0.0)
    assert 250_000 <= training.tokens_per_step <= 1 << 20
    assert 16 <= spec.adapter.rank <= 64
    assert spec.context.train_norms
    assert spec.output.merge, "an adapter alone leaves the window short"
    steps = 20e6 / training.tokens_per_step
    assert training.warmup_ratio * steps == pytest.approx(20, abs=8)


def test_few_tokens_make_small_steps_instead_of_few() -> None:
    few = answers_of({**ANSWERS.values}, measured_tokens=2_000_000)
    spec = build_spec(LLAMA_8B, machine(card("A100", 80)), few, approach="context")
    assert spec.training.tokens_per_step == 32_768


def test_the_demo_is_trained_on_its_documents() -> None:
    answers = answers_of({"model": "demo", "context": 1024})
    spec = build_spec(DEMO, LAPTOP, answers, approach="context")
    assert (spec.data.train, spec.data.heldout, spec.data.max_length) == ("demo-long", "demo-long", 1024)
    assert spec.context.length == 1024
    assert 30 <= 225_000 / spec.training.tokens_per_step <= 120


def test_without_training_nothing_but_the_model_is_needed() -> None:
    unsure = answers_of({"model": "x/y", "context": 32_768})
    wish = JobWish(context=ContextChoice(train=False, method="yarn"))
    spec = build_spec(LLAMA_8B, machine(card("a card", 48)), unsure, approach="context", wish=wish)
    assert spec.task is Task.EXTEND
    assert (spec.context.length, spec.context.method) == (32_768, "yarn")
    assert 0 < spec.prediction.seconds_likely < 3600
    work = workload_of(spec, LLAMA_8B, machine(card("a card", 48)))
    assert (work.purpose, work.measured_tokens) == (Purpose.EVALUATE, 32_768)
    keys_and_values = 2 * 2 * 32 * 1024 * 32_768 * 2
    assert allocated_bytes(work) > 2 * LLAMA_8B.parameters + keys_and_values


# ── models that need none, or can have none ───────────────────────────────────────────────────────────────────────
def test_a_model_that_already_reads_so_much_is_not_scaled() -> None:
    place = machine(card("A100", 80))
    matrix = build_matrix(LLAMA_3B, place, ANSWERS)
    row = matrix.row("context")
    assert not row.runnable
    assert "already reads 131,072 tokens" in row.not_runnable_reason
    assert matrix.recommended == "lora"
    assert "no longer window is needed" in matrix.recommendation
    with pytest.raises(EngineError, match="already reads") as caught:
        build_spec(LLAMA_3B, place, ANSWERS, approach="context")
    assert caught.value.code == "context.not_longer"
    longer = JobWish(context=ContextChoice(length=262_144))
    assert build_spec(LLAMA_3B, place, ANSWERS, approach="context", wish=longer).context.length == 262_144


def test_its_row_shows_twice_the_window_in_the_gentlest_way_that_fits() -> None:
    plan = planned(LLAMA_8B, machine(card("a card", 24)), answers=ANSWERS.with_values(context=2048))
    assert plan.impediment
    assert plan.context.length == 16_384
    assert plan.memory_verdict is Verdict.FITS


def test_a_model_without_rotary_positions_is_refused_with_the_alternative() -> None:
    learned = replace(SHORT_3B, context_length=1024, rope=Rope("none", 0.0, 1024))
    matrix = build_matrix(learned, machine(card("A100", 80)), ANSWERS)
    assert "no rotary positions" in matrix.row("context").not_runnable_reason
    assert matrix.recommended == "lora"
    with pytest.raises(EngineError) as caught:
        build_spec(learned, machine(card("A100", 80)), ANSWERS, approach="context")
    assert caught.value.code == "context.no_rotary"
    assert "RoPE" in caught.value.what
    assert "1,024" in caught.value.next_step


def test_an_open_length_is_the_one_that_was_asked_or_twice_the_window() -> None:
    assert completed(None, LLAMA_8B, ANSWERS).length == 32_768
    assert completed(None, LLAMA_3B, ANSWERS).length == 262_144
    assert completed(ContextChoice(length=9000), LLAMA_8B, ANSWERS).length == 9000


# ── estimates by length ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("length", "boundaries", "half_logits", "logits"),
    [(8, 2, 2.0, 3.9), (16, 4, 3.9, 7.8), (32, 8, 7.8, 15.7), (64, 16, 15.7, 31.3), (128, 32, 31.3, 62.6)],
)
def test_the_terms_of_an_8b_model_are_those_of_the_published_table(
    length: int, boundaries: float, half_logits: float, logits: float
) -> None:
    """Own derivation for the Llama-3-8B shape, GiB: checkpoints 2·nl·h·L, logits in 16 bits and in fp32."""
    work = Workload(LLAMA_8B, sequence=length * 1024)
    kept = LLAMA_8B.layers * layer_walk(work, learns=False).boundary_bytes * work.tokens
    assert kept / GIB == pytest.approx(boundaries, rel=0.01)
    at_loss = peak_of(work)
    assert at_loss.phase == "loss"
    assert at_loss.logits / GIB == pytest.approx(3 * logits, rel=0.01), "log_softmax and its two gradients"
    assert half_logits == pytest.approx(logits / 2, abs=0.06)
    chunked = peak_of(replace(work, loss=Loss.CHUNKED))
    assert chunked.logits < 2 * GIB
    offloaded = replace(work, loss=Loss.CHUNKED, offload_activations=True)
    assert peak_of(offloaded).allocated < peak_of(replace(work, loss=Loss.CHUNKED)).allocated - 0.9 * kept * 31 / 32
    host = {part.name: part.amount for part in estimate_host_ram(offloaded).breakdown}
    assert host["activations on the host"] == pytest.approx(kept)


def spec(**context: Any) -> JobSpec:
    sequence = context.pop("max_length", 8192)
    training = context.pop("training", {})
    lengths = context.pop("lengths", (8192,))
    return JobSpec(
        task=Task.QLORA,
        data=DataSection(train="x.jsonl", heldout="", max_length=sequence, packing=False),
        training=TrainingSection(batch_size=1, gradient_checkpointing=True, **training),
        evaluation=EvaluationSection(lengths=lengths),
        context=ContextSection(**{"length": 32_768, **context}),
    )


def test_memory_of_pose_does_not_grow_with_the_target() -> None:
    place = machine(card("a card", 24))
    near, far = (
        memory_bounds(workload_of(spec(window="pose", length=length), LLAMA_8B, place)) for length in (16_384, 131_072)
    )
    assert near == far
    whole = memory_bounds(workload_of(spec(max_length=32_768), LLAMA_8B, place))
    assert whole[1] > 1.5 * near[1]


def test_a_mixed_window_is_as_large_as_its_long_step_and_a_curriculum_as_its_last() -> None:
    place = machine(card("a card", 24))
    long = workload_of(spec(max_length=32_768), LLAMA_8B, place)
    assert workload_of(spec(window="mixed", max_length=32_768), LLAMA_8B, place) == long
    rising = workload_of(spec(max_length=32_768, curriculum=(8192, 16_384)), LLAMA_8B, place)
    assert rising.sequence == 16_384


def test_every_switch_of_a_spec_is_seen() -> None:
    place = machine(card("a card", 24))
    switches = {"loss_chunk_tokens": 512, "offload_activations": True, "tokens_per_step": 65_536}
    work = workload_of(spec(training=switches, train_embeddings=True, lengths=()), LLAMA_8B, place)
    assert (work.loss, work.stack.loss_chunk_tokens, work.offload_activations) == (Loss.CHUNKED, 512, True)
    assert (work.accumulation, work.train_embeddings, work.train_norms) == (8, True, True)
    assert work.measured_tokens == 32_768
    plain = workload_of(JobSpec(task=Task.LORA), LLAMA_8B, place)
    assert (plain.train_norms, plain.train_embeddings, plain.measured_tokens) == (False, False, 0)


def test_measuring_by_length_takes_its_time() -> None:
    place = machine(card("a card", 24))
    hours = {}
    for lengths in ((8192,), (8192, 32_768)):
        asked = spec(window="pose", method="yarn", lengths=lengths)
        load = load_of_spec(asked, LLAMA_8B, place, 1e6)
        parts = {part.name: part.amount for part in appraise_spec(asked, LLAMA_8B, place, load).hours.breakdown}
        hours[lengths] = parts["measuring by length"]
    assert hours[(8192, 32_768)] > 2 * hours[(8192,)] > 0


# ── ways out ──────────────────────────────────────────────────────────────────────────────────────────────────────
def edited(asked: JobSpec, edits: tuple[Edit, ...]) -> JobSpec:
    tree = msgspec.to_builtins(asked)
    for key, value in edits:
        *path, last = key.split(".")
        table = tree
        for name in path:
            table = table[name]
        table[last] = value
    return msgspec.convert(tree, JobSpec)


@pytest.mark.parametrize(
    "asked",
    [
        spec(max_length=32_768),
        spec(max_length=32_768, train_embeddings=True, training={"tokens_per_step": 262_144}),
        spec(window="pose", lengths=()),
        spec(window="mixed", max_length=32_768),
    ],
    ids=["full", "embeddings", "pose", "mixed"],
)
def test_the_keys_of_every_way_out_lead_to_its_figure(asked: JobSpec) -> None:
    place = machine(card("a card", 11))
    plan = plan_of_spec(asked, LLAMA_8B, place)
    for knob in knobs_of(plan):
        for step in (knob.steps[0], knob.steps[-1]):
            changed = workload_of(edited(asked, step.edits), LLAMA_8B, place)
            assert memory_bounds(changed) == pytest.approx(memory_bounds(step.apply(plan.work)), rel=0.02), step.change


@pytest.mark.parametrize(
    ("asked", "gib", "cheapest", "key"),
    [
        (spec(max_length=16_384), 24, "loss in chunks", "training.loss_chunk_tokens = 1024"),
        (
            spec(max_length=32_768, training={"loss_chunk_tokens": 1024}),
            22,
            "layers' inputs kept in host RAM",
            "training.offload_activations = true",
        ),
    ],
)
def test_what_cannot_fit_is_told_the_cheapest_switch_with_its_figure(
    asked: JobSpec, gib: float, cheapest: str, key: str
) -> None:
    place = machine(card("a card", gib))
    found = appraise_spec(asked, LLAMA_8B, place, load_of_spec(asked, LLAMA_8B, place, 1e6))
    assert found.judgement.memory is not Verdict.FITS
    first = fixes_for(found)[0]
    assert cheapest in first.change
    assert first.verdict is Verdict.FITS
    told = refusal_of(found, "fit.no", spec_keys=True).next_step
    assert told.startswith(f"(1) {first.change}: ")
    assert "GiB" in told.split(";")[0]
    assert key in told


def test_where_no_switch_keeps_the_length_pose_is_among_the_ways_out() -> None:
    asked = spec(max_length=32_768, training={"loss_chunk_tokens": 1024, "offload_activations": True}, lengths=(8192,))
    place = machine(card("a card", 13))
    found = appraise_spec(asked, LLAMA_8B, place, load_of_spec(asked, LLAMA_8B, place, 1e6))
    pose = next(fix for fix in fixes_for(found) if fix.id == "pose")
    assert dict(pose.edits) == {"context.window": "pose", "context.train_length": 8192, "data.max_length": 8192}
    assert edited(asked, pose.edits).context.window == "pose"


def test_a_model_offered_instead_can_be_extended_that_far() -> None:
    place = machine(card("a card", 6))
    found = appraise(planned(LLAMA_8B, place), place, load_of_spec(spec(), LLAMA_8B, place, 1e6))
    models = [fix for fix in fixes_for(found) if fix.id == "model"]
    from engine.advise.catalogue import known_architecture

    for fix in models:
        known = known_architecture(fix.change.split(" ")[0])
        assert known.context_length < 32_768
        assert known.rope.kind != "none"
