"""Memory: published runs are met, the arithmetic floor holds, and the formulas behave."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import DEMO, LLAMA_3B, MIXTURE, shape

from engine.errors import EngineError
from engine.estimate.memory import allocated_bytes, estimate_memory, limiting_words, memory_bounds, peak_of
from engine.estimate.stacks import HF
from engine.estimate.state import (
    NF4_DOUBLE_BYTES,
    adapter_weight_bytes,
    packed_model_bytes,
    trainable_parameters,
    weight_bytes,
)
from engine.estimate.workload import DeviceKind, Loss, Method, OptimizerKind, Packing4Bit, Workload
from engine.units import GIB, MIB

ROWS = Path(__file__).parents[1] / "data" / "estimate_rows.csv"


def rows() -> list[dict[str, str]]:
    with ROWS.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def workload_of(row: dict[str, str]) -> Workload:
    model = shape(
        row["model"],
        layers=int(row["layers"]),
        hidden=int(row["hidden"]),
        ffn=int(row["ffn"]),
        heads=int(row["heads"]),
        kv_heads=int(row["kv_heads"]),
        head_dim=int(row["head_dim"]),
        vocab=int(row["vocab"]),
        tied=row["tied"] == "1",
        parameters=int(row["parameters"]),
    )
    return Workload(
        model,
        method=Method.FULL if row["method"] == "full FT" else Method.ADAPTER,
        packing=Packing4Bit.NF4 if row["method"] == "QLoRA" else Packing4Bit.NONE,
        batch=int(row["batch"]),
        sequence=int(row["sequence"]),
        rank=int(row["rank"]),
        targets=tuple(row["targets"].split()),
        checkpointing=row["checkpointing"] == "yes",
        loss=Loss.CHUNKED if row["fused_loss"] == "yes" else Loss.FULL,
        expandable_segments=False,
        stack=HF,
    )


@pytest.mark.parametrize("row", [r for r in rows() if "T4" in r["source"]], ids=lambda r: r["id"])
def test_published_t4_runs_are_met_within_one_and_a_half_percent(row: dict[str, str]) -> None:
    predicted = allocated_bytes(workload_of(row)) / GIB
    assert predicted == pytest.approx(float(row["allocated_gib"]), rel=0.015)


@pytest.mark.parametrize("row", [r for r in rows() if r["process_gib"]], ids=lambda r: r["id"])
def test_process_memory_of_published_runs_lies_within_the_range(row: dict[str, str]) -> None:
    low, _, high = memory_bounds(workload_of(row))
    assert low / GIB <= float(row["process_gib"]) <= high / GIB


@pytest.mark.parametrize("row", [r for r in rows() if "torchtune" in r["source"]], ids=lambda r: r["id"])
def test_full_training_of_a_3b_on_an_a100_is_met_within_a_fifth(row: dict[str, str]) -> None:
    predicted = allocated_bytes(workload_of(row)) / GIB
    assert predicted == pytest.approx(float(row["allocated_gib"]), rel=0.20)


def test_resident_qwen_7b_in_four_bits_is_what_was_measured() -> None:
    row = next(r for r in rows() if r["id"] == "m065")
    work = workload_of(row)
    resident = packed_model_bytes(work.architecture, Packing4Bit.NF4) + adapter_weight_bytes(work)
    assert resident / MIB == pytest.approx(7702, rel=0.002)


small_shapes = st.builds(
    lambda layers, width, kv, vocab, tied: shape(
        layers=layers,
        hidden=64 * width,
        ffn=176 * width,
        heads=width,
        kv_heads=min(kv, width),
        head_dim=64,
        vocab=vocab,
        tied=tied,
    ),
    st.integers(1, 80),
    st.integers(1, 64),
    st.integers(1, 16),
    st.integers(256, 260_000),
    st.booleans(),
)
workloads = st.builds(
    Workload,
    small_shapes,
    packing=st.sampled_from(list(Packing4Bit)),
    batch=st.integers(1, 16),
    sequence=st.integers(32, 32_768),
    rank=st.integers(1, 256),
    checkpointing=st.booleans(),
    masked=st.booleans(),
    accumulation=st.integers(1, 8),
    device=st.sampled_from(list(DeviceKind)),
    compute_bytes=st.sampled_from([2, 4]),
)


@given(workloads)
@settings(max_examples=150, deadline=None)
def test_parts_sum_to_likely_and_the_range_is_ordered(work: Workload) -> None:
    estimate = estimate_memory(work)
    assert sum(part.amount for part in estimate.breakdown) == pytest.approx(estimate.likely, rel=1e-9)
    assert 0 < estimate.low <= estimate.likely <= estimate.high
    assert all(part.amount >= 0 for part in estimate.breakdown)
    assert estimate.low <= memory_bounds(work)[1] == pytest.approx(estimate.likely)


@given(workloads, st.sampled_from(["batch", "sequence", "rank"]))
@settings(max_examples=150, deadline=None)
def test_more_batch_length_or_rank_never_needs_less(work: Workload, field: str) -> None:
    grown = replace(work, **{field: getattr(work, field) + 1})
    assert memory_bounds(grown) >= memory_bounds(work)


@given(workloads)
@settings(max_examples=100, deadline=None)
def test_more_layers_never_need_less(work: Workload) -> None:
    small = work.architecture
    block = (small.parameters - small.embedding_parameters) // small.layers
    taller = replace(small, layers=small.layers + 1, parameters=small.parameters + block)
    assert allocated_bytes(replace(work, architecture=taller)) >= allocated_bytes(work)


@given(workloads)
@settings(max_examples=100, deadline=None)
def test_qlora_never_falls_below_its_packed_bytes(work: Workload) -> None:
    packed = replace(work, packing=Packing4Bit.NF4_DOUBLE)
    assert allocated_bytes(packed) > packed.architecture.linear_parameters * NF4_DOUBLE_BYTES


def test_full_training_never_falls_below_eight_bytes_per_parameter() -> None:
    work = Workload(LLAMA_3B, Method.FULL, sequence=64)
    assert allocated_bytes(work) >= 8 * LLAMA_3B.parameters
    assert allocated_bytes(replace(work, foreach=True)) >= 10 * LLAMA_3B.parameters
    mixed = replace(work, optimizer=OptimizerKind.ADAMW_MIXED)
    assert allocated_bytes(mixed) >= 16 * LLAMA_3B.parameters


def test_the_humps_do_not_add_up() -> None:
    loss = peak_of(Workload(LLAMA_3B, sequence=2048))
    assert loss.phase == "loss"
    assert loss.gradients == 0
    small_vocabulary = shape(vocab=256)
    layers = peak_of(Workload(small_vocabulary, sequence=2048))
    assert layers.phase == "layers"
    assert layers.logits == 0


def test_frozen_old_blocks_carry_no_gradients() -> None:
    work = Workload(LLAMA_3B, Method.NEW_BLOCKS, trained_layers=7, sequence=512)
    assert trainable_parameters(work) < LLAMA_3B.parameters / 3
    assert allocated_bytes(work) < allocated_bytes(replace(work, method=Method.FULL))


def test_experts_of_a_mixture_stay_unpacked() -> None:
    packed = weight_bytes(Workload(MIXTURE, packing=Packing4Bit.NF4_DOUBLE))
    assert packed > 1.9 * MIXTURE.parameters


def test_tied_embeddings_are_counted_once() -> None:
    tied, untied = shape(tied=True), shape(tied=False)
    extra = packed_model_bytes(untied, Packing4Bit.NF4) - packed_model_bytes(tied, Packing4Bit.NF4)
    assert extra == pytest.approx(4 * 128_256 * 3072, rel=1e-6)


def test_a_cpu_pays_for_libraries_instead_of_a_cuda_context() -> None:
    work = Workload(DEMO, sequence=256, batch=4, device=DeviceKind.CPU, compute_bytes=4)
    names = {part.name for part in estimate_memory(work).breakdown}
    assert "Python and libraries" in names
    assert "CUDA context" not in names
    assert estimate_memory(work).high < 2 * GIB


def test_sharding_divides_the_state_and_not_the_activations() -> None:
    whole = Workload(LLAMA_3B, Method.FULL, sequence=4096)
    parted = replace(whole, shards=4)
    assert peak_of(parted).optimizer == pytest.approx(peak_of(whole).optimizer / 4)
    assert peak_of(parted).activations >= 0.9 * peak_of(whole).activations or peak_of(parted).logits > 0


def test_the_limiting_term_is_named() -> None:
    assert limiting_words(Workload(LLAMA_3B, batch=8, sequence=2048)).startswith("logits and loss: 128,256-word")


@pytest.mark.parametrize("change", [{"rank": 0}, {"sequence": -5}, {"batch": 0}, {"sequence": 10**12}])
def test_absurd_values_are_refused_with_the_range(change: dict[str, int]) -> None:
    with pytest.raises(EngineError, match="must be from"):
        Workload(LLAMA_3B, **change)  # type: ignore[arg-type]


def test_four_bit_full_training_is_refused_and_explained() -> None:
    with pytest.raises(EngineError, match="cannot be trained") as caught:
        Workload(LLAMA_3B, Method.FULL, Packing4Bit.NF4)
    assert "QLoRA" in caught.value.next_step


def test_new_blocks_beside_a_packed_base_are_not_packed_and_learn_in_float32() -> None:
    half = Workload(LLAMA_3B, method=Method.NEW_BLOCKS, trained_layers=4, compute_bytes=2, checkpointing=True)
    mixed = replace(half, optimizer=OptimizerKind.ADAMW_MIXED)
    packed = replace(mixed, packing=Packing4Bit.NF4_DOUBLE)
    learning = trainable_parameters(mixed)
    frozen = LLAMA_3B.parameters - learning
    assert weight_bytes(mixed) == 4.0 * learning + 2.0 * frozen
    assert weight_bytes(half) == 2.0 * LLAMA_3B.parameters
    assert 4.0 * learning < weight_bytes(packed) < weight_bytes(mixed) - frozen
    with pytest.raises(EngineError, match="cannot be trained themselves"):
        replace(packed, method=Method.FULL)
