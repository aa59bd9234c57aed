"""Time and money: published speeds are met, floors hold, ranges are ordered, parts add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import DEMO, LAPTOP, LLAMA_3B, card, machine, shape

from engine.estimate.cards import cpu_speed, device_speed, gpu_speed
from engine.estimate.cost import Tariff, estimate_cost
from engine.estimate.speed import (
    RunPlan,
    bytes_per_micro_step,
    estimate_hours,
    estimate_step,
    estimate_tokens_per_second,
)
from engine.estimate.storage import DiskPlan, estimate_disk, estimate_host_ram
from engine.estimate.workload import DeviceKind, Method, Packing4Bit, Workload

A100 = replace(card("A100 80GB", 80), compute_capability=(8, 0))
DEMO_WORK = Workload(
    DEMO,
    packing=Packing4Bit.NF4_DOUBLE,
    batch=4,
    sequence=256,
    checkpointing=False,
    compute_bytes=4,
    device=DeviceKind.CPU,
)


def test_a_step_is_never_faster_than_reading_the_weights() -> None:
    work = Workload(LLAMA_3B, sequence=16)
    device = gpu_speed(card())
    assert estimate_step(work, device).low >= bytes_per_micro_step(work) / device.bytes_per_second


def test_short_sequences_use_less_of_the_card() -> None:
    device = gpu_speed(A100)
    small = shape(layers=24, hidden=2048, ffn=5504, heads=16, kv_heads=16)
    short, long = (estimate_tokens_per_second(Workload(small, sequence=s), device).likely for s in (256, 4096))
    assert long > 3 * short


def test_the_demo_takes_minutes_on_two_cores_and_not_hours() -> None:
    hours = estimate_hours(DEMO_WORK, cpu_speed(LAPTOP), RunPlan(tokens=120_000))
    assert 20 / 3600 < hours.low < hours.likely < 5 / 60
    assert hours.high < 0.5


@given(st.integers(1, 8), st.integers(32, 8192), st.floats(1e3, 1e12), st.sampled_from(["cpu", "gpu"]))
@settings(max_examples=80, deadline=None)
def test_hours_and_money_are_ordered_and_add_up(batch: int, length: int, tokens: float, kind: str) -> None:
    home = LAPTOP if kind == "cpu" else machine(card())
    device = device_speed(home)
    hours = estimate_hours(Workload(LLAMA_3B, batch=batch, sequence=length), device, RunPlan(tokens))
    for tariff in (Tariff(False), Tariff(True), Tariff(True, 2.0, None, 4)):
        cost = estimate_cost(hours, device, tariff)
        assert 0 < cost.low <= cost.likely <= cost.high
        assert sum(part.amount for part in cost.breakdown) == pytest.approx(cost.likely)
    assert 0 < hours.low <= hours.likely <= hours.high
    assert sum(part.amount for part in hours.breakdown) == pytest.approx(hours.likely)


def test_a_known_price_is_used_and_a_tariff_too() -> None:
    device = gpu_speed(card())
    hours = estimate_hours(Workload(LLAMA_3B), device, RunPlan(1e7))
    rented = estimate_cost(hours, device, Tariff(True, 3.0))
    assert rented.likely == pytest.approx((hours.likely + 0.25) * 3.0)
    cheap, dear = (estimate_cost(hours, device, Tariff(False, None, price)).likely for price in (0.1, 0.2))
    assert dear == pytest.approx(2 * cheap)


def test_an_unknown_card_gets_the_middle_of_its_size() -> None:
    unknown = gpu_speed(card("Fancy 9000", 24))
    assert "no profile" in unknown.source
    assert unknown.flops_per_second > 0


def test_cards_without_bfloat16_are_much_slower() -> None:
    turing = replace(card("T4 16GB", 16), compute_capability=(7, 5))
    rates = [
        estimate_tokens_per_second(Workload(LLAMA_3B, sequence=2048, compute_bytes=width), gpu_speed(turing)).likely
        for width in (2, 4)
    ]
    assert rates[0] > 3 * rates[1]


def test_disk_counts_the_download_only_when_there_is_one() -> None:
    work = Workload(LLAMA_3B)
    there, away = (estimate_disk(work, DiskPlan(LLAMA_3B, on_disk)) for on_disk in (True, False))
    assert away.likely - there.likely == pytest.approx(2 * LLAMA_3B.parameters)
    grown = estimate_disk(Workload(LLAMA_3B, Method.FULL), DiskPlan(LLAMA_3B, True, writes_grown_model=True))
    assert grown.likely > 2 * LLAMA_3B.parameters * 2
    for estimate in (there, away, grown, estimate_host_ram(work)):
        assert estimate.low <= estimate.likely <= estimate.high
        assert sum(part.amount for part in estimate.breakdown) == pytest.approx(estimate.likely)
