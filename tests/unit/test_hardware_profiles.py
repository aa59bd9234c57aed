"""The card list: every figure sourced, names found whichever way they are written, what-if machines."""

from __future__ import annotations

import pytest

from engine.errors import EngineError
from engine.hardware.gpu_profiles import find_gpu_profile, load_gpu_profiles, near_names
from engine.hardware.machine import Cpu, Machine, Problem, Ram, Source
from engine.hardware.simulate import price_range, rent, simulate
from engine.units import GIB, MIB

BASE = Machine(
    gpus=(), cpu=Cpu("x", 8), ram=Ram(32 * GIB, 30 * GIB, Source.SYSTEM), disks=(), libraries={"torch": "2.13.0+cpu"},
    problems=(Problem("torch", "old", "new"),), label="no GPU, 8 cores", price_usd_per_hour=2.0,
)  # fmt: skip


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_figure_of_every_card_has_a_source() -> None:
    profiles = load_gpu_profiles()
    assert len(profiles) >= 47
    for profile in profiles:
        figures = {
            "vram": profile.vram_bytes, "bandwidth": profile.bandwidth_gb_per_s, "tflops": profile.bf16_tflops,
            "tdp": profile.tdp_watts, "rent": profile.rent_low_usd_per_hour,
        }  # fmt: skip
        for figure, value in figures.items():
            assert bool(value) == (figure in profile.sources), f"{profile.name}: {figure}"
        assert profile.read_on


def test_figures_are_physically_sensible() -> None:
    for profile in load_gpu_profiles():
        if profile.vram_bytes:
            assert 0.88 < profile.visible_bytes / profile.vram_bytes <= 1.02, profile.name
        assert 100 <= profile.bandwidth_gb_per_s <= 10_000, profile.name
        if profile.rent_low_usd_per_hour is not None:
            assert profile.rent_high_usd_per_hour is not None
            assert profile.rent_low_usd_per_hour <= profile.rent_high_usd_per_hour
        if profile.vendor == "nvidia":
            assert profile.compute_capability is not None
            assert profile.bf16_native == (profile.compute_capability >= (8, 0)), profile.name


def test_every_card_is_found_by_its_own_name_and_ids_are_unique() -> None:
    profiles = load_gpu_profiles()
    assert len({profile.id for profile in profiles}) == len(profiles)
    for profile in profiles:
        found = find_gpu_profile(profile.name)
        assert found is not None
        assert found.id == profile.id


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("name", "vram_mib", "expected"),
    [
        ("NVIDIA GeForce RTX 4090", 24564, "RTX 4090 24GB"),
        ("4090", None, "RTX 4090 24GB"),
        ("rtx4090", None, "RTX 4090 24GB"),
        ("NVIDIA GeForce RTX 3060", 12288, "RTX 3060 12GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 8188, "RTX 4060 Ti 8GB"),
        ("RTX4060Ti 16GB", None, "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 16376, "RTX 4070 Ti SUPER 16GB"),
        ("4080s", None, "RTX 4080 SUPER 16GB"),
        ("NVIDIA A100-SXM4-80GB", 81920, "A100 80GB"),
        ("NVIDIA A100-PCIE-40GB", 40960, "A100 40GB"),
        ("a100-80", None, "A100 80GB"),
        ("a100-40", None, "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", 81559, "H100 SXM 80GB"),
        ("NVIDIA H100 PCIe", 81559, "H100 PCIe 80GB"),
        ("NVIDIA H200", 143771, "H200 141GB"),
        ("Tesla T4", 15360, "T4 16GB"),
        ("Tesla V100-SXM2-16GB", 16160, "V100 16GB"),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "RTX 6000 Ada 48GB"),
        ("NVIDIA RTX A6000", 49140, "RTX A6000 48GB"),
        ("AMD Instinct MI300X OAM", 196592, "MI300X 192GB"),
        ("AMD Radeon 8060S Graphics (gfx1151)", None, "Ryzen AI Max+ 395"),
        ("m4 max", None, "Apple M4 Max"),
    ],
)
def test_a_name_means_its_card(name: str, vram_mib: int | None, expected: str) -> None:
    found = find_gpu_profile(name, vram_mib * MIB if vram_mib else None)
    assert found is not None
    assert found.name == expected


@pytest.mark.parametrize(
    ("name", "vram_mib"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376),
        ("NVIDIA GeForce RTX 4090 D", 24564),
        ("NVIDIA GeForce RTX 3060", 8192),
        ("Quadro RTX 6000", 24576),
        ("Radeon", None),
        ("", None),
    ],
)
def test_a_card_that_is_not_listed_is_not_taken_for_one_that_is(name: str, vram_mib: int | None) -> None:
    assert find_gpu_profile(name, vram_mib * MIB if vram_mib else None) is None


# ── what-if machines ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("text", "label", "count", "vram_bytes", "source"),
    [
        ("RTX 4090", "RTX 4090 24GB", 1, 24564 * MIB, Source.PROFILE),
        ("2x RTX 3090", "2x RTX 3090 24GB", 2, 24576 * MIB, Source.PROFILE),
        ("2x24G", "2x 24 GB GPU", 2, 24 * GIB, Source.USER),
        ("24G", "24 GB GPU", 1, 24 * GIB, Source.USER),
        ("4x a100-80", "4x A100 80GB", 4, 81920 * MIB, Source.PROFILE),
        ("8xh100", "8x H100 SXM 80GB", 8, 81559 * MIB, Source.PROFILE),
    ],
)
def test_a_what_if_machine_is_what_was_asked_for(
    text: str, label: str, count: int, vram_bytes: int, source: Source
) -> None:
    machine = simulate(text, BASE)
    assert machine.simulated
    assert machine.label == label
    assert [gpu.index for gpu in machine.gpus] == list(range(count))
    assert {(gpu.vram_bytes, gpu.free_vram_bytes, gpu.source) for gpu in machine.gpus} == {
        (vram_bytes, vram_bytes, source)
    }
    assert (machine.cpu, machine.ram, machine.libraries) == (BASE.cpu, BASE.ram, BASE.libraries)
    assert machine.problems == ()
    assert machine.price_usd_per_hour is None


def test_different_cards_can_be_put_together() -> None:
    machine = simulate("RTX 4090 + RTX 3060", BASE)
    assert [gpu.vram_bytes for gpu in machine.gpus] == [24564 * MIB, 12288 * MIB]


def test_an_open_memory_size_takes_the_smaller_card_and_says_so() -> None:
    machine = simulate("4060 ti", BASE)
    assert machine.gpus[0].profile == "rtx-4060-ti-8gb"
    assert "RTX 4060 Ti 16GB" in machine.problems[0].next_step


def test_a_machine_with_shared_memory_needs_its_size_and_shares_it() -> None:
    with pytest.raises(EngineError, match="several memory sizes"):
        simulate("Apple M4 Max", BASE)
    machine = simulate("Apple M4 Max 64G", BASE)
    assert machine.ram.total_bytes == 64 * GIB
    assert 0 < machine.gpus[0].vram_bytes < 64 * GIB


def test_no_gpu_can_be_simulated_too() -> None:
    machine = simulate("none", BASE)
    assert machine.simulated
    assert machine.label == "no GPU, 8 cores"


@pytest.mark.parametrize("text", ["RTX 4095", "banana", "", "x", "2x", "-1x24G", "Ti", "24Q", "💥"])
def test_an_unknown_card_is_refused_with_near_names(text: str) -> None:
    with pytest.raises(EngineError) as caught:
        simulate(text, BASE)
    assert caught.value.code == "gpu.unknown"
    assert "GB" in caught.value.cause
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("0x RTX 4090", "gpu.count"),
        ("1000x RTX 4090", "gpu.count"),
        ("99999999999999999999x24G", "gpu.count"),
        ("40x 24G + 40x 24G", "gpu.count"),
        ("0G", "gpu.size"),
        ("9000T", "gpu.size"),
    ],
)
def test_absurd_machines_are_refused(text: str, code: str) -> None:
    with pytest.raises(EngineError) as caught:
        simulate(text, BASE)
    assert caught.value.code == code


def test_near_names_are_near() -> None:
    assert near_names("RTX 4099")[0] == "RTX 4090 24GB"
    assert near_names("💥")


def test_a_rented_machine_costs_its_cards_and_stays_within_the_range() -> None:
    machine = simulate("2x A100 80GB", BASE)
    profile = find_gpu_profile("A100 80GB")
    assert profile is not None
    rented = rent(machine, profile)
    prices = price_range(machine)
    assert prices is not None
    assert prices.low_usd_per_hour == pytest.approx(2 * 0.87)
    assert prices.high_usd_per_hour == pytest.approx(2 * 2.79)
    assert rented.price_usd_per_hour == pytest.approx(prices.typical_usd_per_hour)
    assert prices.low_usd_per_hour < prices.typical_usd_per_hour < prices.high_usd_per_hour


def test_a_card_nobody_rents_out_has_no_price() -> None:
    profile = find_gpu_profile("RTX 4080")
    assert profile is not None
    with pytest.raises(EngineError, match="No rental price"):
        rent(simulate("RTX 4080", BASE), profile)
    assert price_range(simulate("24G", BASE)) is None
