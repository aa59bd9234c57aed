"""Real token counts, padding, host memory and disk: formulas against the worker's own batches and counted parts."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from planning import LLAMA_3B, MIXTURE, card, machine

from engine.advise.answers import answers_of
from engine.advise.compare import build_matrix
from engine.advise.plan import build_spec
from engine.advise.spec_plan import appraise_spec, load_of_spec, measuring_of, predict
from engine.data.load import prepare, survey
from engine.data.packing import pack, unpacked
from engine.data.shape import data_shape
from engine.estimate.data_shape import LengthCount, packed_shape, padded_shape
from engine.estimate.estimate import Estimate
from engine.estimate.state import teacher_bytes
from engine.estimate.storage import (
    DiskPlan,
    checkpoint_bytes,
    estimate_disk,
    estimate_host_ram,
    written_bytes,
)
from engine.estimate.workload import Method, OptimizerKind, Packing4Bit, Purpose, TeacherHeld, Workload
from engine.jobs.spec import DataSection, JobSpec, TrainingSection
from engine.resources import demo_dir

MODEL = demo_dir() / "model"


def parts(estimate: Estimate) -> dict[str, float]:
    assert sum(part.amount for part in estimate.breakdown) == pytest.approx(estimate.likely)
    assert estimate.low <= estimate.likely <= estimate.high
    return {part.name: part.amount for part in estimate.breakdown}


# ── padding ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_padding_of_unpacked_rows_is_that_of_the_workers_batches(batch: int) -> None:
    section = DataSection(packing=False)
    sequences = unpacked(prepare(section, MODEL).train)
    lengths = [len(sequence.input_ids) for sequence in sequences]
    random.Random(7).shuffle(lengths)
    groups = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    computed = sum(max(group) * len(group) for group in groups)
    shape = data_shape(survey(section, MODEL), batch_size=batch)
    assert shape.fill.likely == pytest.approx(sum(lengths) / computed, abs=0.04)
    assert shape.width == pytest.approx(computed / len(lengths), rel=0.06)
    assert shape.tokens[1] == sum(lengths)


def test_packed_rows_fill_their_sequences_as_the_packer_says() -> None:
    section = DataSection(packing=True)
    rows = prepare(section, MODEL)
    sequences = pack(rows.train, section.max_length)
    shape = data_shape(survey(section, MODEL), batch_size=4, base_text=section.base_text)
    tokens = sum(len(sequence.input_ids) for sequence in sequences)
    assert shape.tokens[1] == tokens
    assert shape.fill.likely == pytest.approx(tokens / (len(sequences) * section.max_length))
    assert shape.width == section.max_length
    assert shape.heldout_tokens == sum(len(row.input_ids) for row in rows.heldout)
    assert shape.base_tokens == pytest.approx(sum(len(row.input_ids) for row in rows.base_text), rel=0.15)


def test_wider_batches_pad_more_and_equal_rows_never() -> None:
    mixed = [LengthCount(100, 50), LengthCount(1000, 50)]
    fills = [padded_shape(mixed, batch)[0].likely for batch in (1, 2, 8, 64)]
    assert fills[0] == 1.0
    assert fills == sorted(fills, reverse=True)
    assert fills[-1] == pytest.approx(0.55)
    assert padded_shape([LengthCount(300, 9)], 8)[0].likely == 1.0
    assert padded_shape([], 8)[1] == 0
    assert packed_shape(900, 1, 1000)[1] == 900


def test_the_promise_of_a_padded_job_counts_its_padding() -> None:
    """The same rows packed take less time than padded, by more than they take steps to compute."""
    home = machine(card())
    times = []
    for packing in (True, False):
        spec = JobSpec(data=DataSection(packing=packing), training=TrainingSection(batch_size=8))
        shape = data_shape(survey(spec.data, MODEL), batch_size=8)
        load = load_of_spec(spec, LLAMA_3B, home, shape.tokens, base_on_disk=True, data=shape)
        assert load.measuring == measuring_of(spec, shape)
        assert load.checkpoint_every == spec.checkpoint.every_steps
        times.append(parts(appraise_spec(spec, LLAMA_3B, home, load).hours)["training"])
    assert times[0] < times[1]


def test_a_tariff_in_the_spec_is_what_electricity_costs_and_counts_against_the_budget() -> None:
    home = machine(card())
    spec = JobSpec()
    spec = msgspec.structs.replace(spec, cost=msgspec.structs.replace(spec.cost, usd_per_kwh=0.5))
    promised = predict(spec, LLAMA_3B, home, tokens_per_epoch=1e7)
    assert 400 < promised.watts < 600
    spec = msgspec.structs.replace(spec, prediction=promised)
    assert spec.usd_per_hour == pytest.approx(0.5 * promised.watts / 1000)
    assert JobSpec().usd_per_hour == 0
    load = load_of_spec(spec, LLAMA_3B, home, 1e7)
    assert (load.tariff.rented, load.tariff.usd_per_kwh) == (False, 0.5)


# ── host memory ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_what_is_offloaded_is_in_host_memory() -> None:
    full = Workload(LLAMA_3B, Method.FULL, sequence=2048)
    plain = parts(estimate_host_ram(full))
    assert set(plain) == {"Python and CUDA libraries", "loading weights"}
    n = LLAMA_3B.parameters
    hosted = parts(estimate_host_ram(replace(full, optimizer_on_host=True)))
    assert hosted["optimizer on the host"] == pytest.approx(4 * n)
    assert hosted["parameters and gradients"] == pytest.approx(4 * n)
    kept = parts(estimate_host_ram(replace(full, offload_activations=True)))["activations on the host"]
    assert kept == pytest.approx(2 * LLAMA_3B.hidden_size * LLAMA_3B.layers * full.tokens, rel=0.01)
    more = parts(estimate_host_ram(replace(full, offload_activations=True, checkpointing=False)))
    assert more["activations on the host"] > 5 * kept


@pytest.mark.parametrize("held", list(TeacherHeld))
def test_only_an_offloaded_teacher_is_in_host_memory(held: TeacherHeld) -> None:
    work = Workload(LLAMA_3B, Method.FULL, teacher=MIXTURE, teacher_held=held)
    found = parts(estimate_host_ram(work)).get("teacher on the host", 0.0)
    assert found == (2 * MIXTURE.parameters if held is TeacherHeld.OFFLOADED else 0.0)
    wide = parts(estimate_host_ram(replace(work, compute_bytes=4))).get("teacher on the host", 0.0)
    assert wide == 2 * found


def test_a_streamed_teacher_has_its_embeddings_and_two_layers_on_the_card() -> None:
    work = Workload(LLAMA_3B, Method.FULL, teacher=LLAMA_3B, teacher_held=TeacherHeld.OFFLOADED)
    layer = (LLAMA_3B.parameters - LLAMA_3B.embedding_parameters) / LLAMA_3B.layers
    assert teacher_bytes(work) == pytest.approx(2 * (LLAMA_3B.embedding_parameters + 2 * layer))


def test_a_paged_optimizer_may_spill_all_of_its_state() -> None:
    plain = Workload(LLAMA_3B, Method.FULL, optimizer=OptimizerKind.ADAMW_8BIT)
    paged = replace(plain, optimizer=OptimizerKind.PAGED_ADAMW_8BIT)
    assert estimate_host_ram(paged).likely == estimate_host_ram(plain).likely
    spill = estimate_host_ram(paged).high - estimate_host_ram(plain).high
    assert spill == pytest.approx(2.03125 * LLAMA_3B.parameters)


def test_asking_a_model_offloads_nothing() -> None:
    work = Workload(LLAMA_3B, Method.FULL, optimizer_on_host=True, offload_activations=True)
    assert len(parts(estimate_host_ram(replace(work, purpose=Purpose.EVALUATE)))) == 2


# ── disk ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_disk_counts_everything_that_is_written() -> None:
    n = LLAMA_3B.parameters
    full = Workload(LLAMA_3B, Method.FULL, optimizer=OptimizerKind.ADAMW_8BIT)
    plan = DiskPlan(LLAMA_3B, base_on_disk=False, writes_grown_model=True, gguf=True, checkpoints_kept=3)
    found = parts(estimate_disk(full, plan))
    assert found["base model"] == 2 * n
    assert found["grown model"] == 2 * n
    assert found["result"] == 2 * n
    assert found["checkpoints"] == pytest.approx(3 * (2 * n + 2.03125 * n))
    assert found["GGUF file"] == pytest.approx(0.604 * n)
    assert written_bytes(full, plan) == pytest.approx(found["grown model"] + found["GGUF file"])


def test_an_adapters_checkpoints_are_small_and_its_merged_model_is_not() -> None:
    lora = Workload(LLAMA_3B, packing=Packing4Bit.NF4)
    merged = parts(estimate_disk(lora, DiskPlan(LLAMA_3B, True, merged=True)))
    assert merged["merged model"] == 2 * LLAMA_3B.parameters
    assert merged["checkpoints"] < 0.2 * merged["merged model"]
    not_asked = estimate_disk(lora, DiskPlan(LLAMA_3B, True))
    assert not_asked.high - not_asked.likely >= 2 * LLAMA_3B.parameters, "it may be asked for later"


@pytest.mark.parametrize("on_host", [False, True])
def test_a_checkpoint_holds_the_optimizers_state_wherever_it_lived(on_host: bool) -> None:
    full = Workload(LLAMA_3B, Method.FULL, optimizer_on_host=on_host)
    assert checkpoint_bytes(full) == pytest.approx(6 * LLAMA_3B.parameters)


def test_new_blocks_save_the_whole_model_and_the_state_of_the_new_ones() -> None:
    grown = Workload(LLAMA_3B, Method.NEW_BLOCKS, trained_layers=7)
    n = LLAMA_3B.parameters
    assert 2 * n < checkpoint_bytes(grown) < 2 * n + 4 * n / 4


def test_a_teacher_is_downloaded_and_its_cached_logits_are_kept() -> None:
    work = Workload(LLAMA_3B, Method.FULL, teacher=MIXTURE, teacher_held=TeacherHeld.CACHED)
    plan = DiskPlan(LLAMA_3B, True, teacher_on_disk=False, epoch_tokens=1e7)
    found = parts(estimate_disk(work, plan))
    assert found["teacher model"] == 2 * MIXTURE.parameters
    assert found["teacher's logits"] == pytest.approx(1e7 * (64 * 6 + 48))
    resident = replace(work, teacher_held=TeacherHeld.RESIDENT)
    assert "teacher's logits" not in parts(estimate_disk(resident, plan))


def test_the_demo_spec_of_the_program_fits_its_own_disk_estimate(tmp_path: Path) -> None:
    """A LoRA checkpoint of the demo is its adapter and two states: 12 bytes per adapter parameter."""
    from engine.models.analyze import analyze

    demo = analyze("demo")
    work = Workload(demo, rank=16, sequence=256)
    adapter = 434_176
    assert checkpoint_bytes(work) == pytest.approx(12 * adapter)


def test_ones_own_tariff_is_the_price_of_electricity_in_the_matrix_and_the_spec() -> None:
    home = machine(card())
    given = {"model": "llama-3.2-3b", "data": "rows.jsonl", "hardware": "this", "budget_usd": 10}
    costs = {}
    for tariff in (0, 0.1, 0.2):
        answers = answers_of({**given, "usd_per_kwh": tariff})
        costs[tariff] = build_matrix(LLAMA_3B, home, answers).row("lora").cost_usd
        spec = build_spec(LLAMA_3B, home, answers, approach="lora")
        assert (spec.cost.usd_per_hour, spec.cost.usd_per_kwh) == (0, tariff)
        assert spec.cost.budget_usd == (10 if tariff else 0), "without a price a limit cannot be reached"
        assert spec.prediction.watts > 0
    assert costs[0.2].likely == pytest.approx(2 * costs[0.1].likely)
    assert costs[0].high / costs[0].low > costs[0.1].high / costs[0.1].low
