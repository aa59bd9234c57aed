"""NVIDIA: nvidia-smi's formats and complaints, NVML call by call, and real fake tools on the PATH."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from engine.hardware import nvidia, nvidia_smi
from engine.hardware.findings import GpuFindings, only_visible
from engine.hardware.machine import Gpu, Ram, Source
from engine.hardware.nvml import read_nvml
from engine.units import GIB, MIB

DATA = Path(__file__).parent.parent / "data" / "hardware"


def host_ram() -> Ram:
    return Ram(120 * GIB, 100 * GIB, Source.SYSTEM)


def parse(name: str, fields: tuple[str, ...] = nvidia_smi.FIELDS) -> tuple[Gpu, ...]:
    return nvidia_smi.parse((DATA / name).read_text(), fields, host_ram)


# ── nvidia-smi ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_box_of_eight_cards_stays_eight_cards() -> None:
    gpus = parse("nvidia-smi-8x-h100.csv")
    assert [gpu.index for gpu in gpus] == list(range(8))
    assert {gpu.vram_bytes for gpu in gpus} == {81559 * MIB}
    assert gpus[7].free_vram_bytes == 80973 * MIB
    assert gpus[0].compute_capability == (9, 0)
    assert gpus[0].power_limit_watts == 700
    assert gpus[0].display_active is False
    assert gpus[0].pcie_width == 16


def test_fields_that_wsl2_does_not_know_are_none_and_cost_nothing_else() -> None:
    (gpu,) = parse("nvidia-smi-wsl2.csv")
    assert gpu.power_limit_watts is None
    assert gpu.mig == ""
    assert gpu.display_active is True
    assert (gpu.vram_bytes, gpu.free_vram_bytes) == (8188 * MIB, 7098 * MIB)


def test_a_card_that_refuses_memory_figures_has_the_hosts_memory() -> None:
    (gpu,) = parse("nvidia-smi-gb10.csv")
    assert gpu.unified_memory
    assert (gpu.vram_bytes, gpu.free_vram_bytes) == (120 * GIB, 100 * GIB)


def test_an_old_driver_is_read_with_fewer_fields() -> None:
    gpus = parse("nvidia-smi-old-driver.csv", nvidia_smi.OLD_FIELDS)
    assert [gpu.name for gpu in gpus] == ["GeForce GTX 1080", "Tesla K80"]
    assert gpus[0].compute_capability is None


def test_mig_slices_replace_the_card_that_is_split() -> None:
    text = [(DATA / f"nvidia-smi-a100-mig-{part}.txt").read_text() for part in ("list", "table")]
    findings = nvidia_smi.with_slices(GpuFindings(parse("nvidia-smi-a100-mig.csv")), *text)
    assert [(gpu.index, gpu.mig) for gpu in findings.gpus] == [(0, "3g.40gb"), (0, "2g.20gb"), (0, "1g.10gb"), (1, "")]
    assert findings.gpus[2].vram_bytes == 9728 * MIB
    assert findings.gpus[2].free_vram_bytes == (9728 - 12) * MIB
    assert "3 MIG slices" in findings.problems[0].what


def test_a_mig_card_without_slices_has_nothing_free_and_says_so() -> None:
    findings = nvidia_smi.with_slices(GpuFindings(parse("nvidia-smi-a100-mig.csv")), "", "")
    assert findings.gpus[0].mig == "enabled"
    assert findings.gpus[0].free_vram_bytes == 0
    assert "no slices" in findings.problems[0].what


@pytest.mark.parametrize(
    ("name", "fragment"),
    [("no-driver", "not running"), ("mismatch", "updated while the old one"), ("wsl2-blocked", "Windows")],
)
def test_each_complaint_of_nvidia_smi_is_explained_with_a_next_step(name: str, fragment: str) -> None:
    (problem,) = nvidia_smi.explain((DATA / f"nvidia-smi-{name}.txt").read_text())
    assert fragment in problem.what
    assert problem.next_step


def test_no_devices_is_a_normal_state() -> None:
    assert nvidia_smi.explain((DATA / "nvidia-smi-no-devices.txt").read_text()) == ()


def test_an_unknown_complaint_is_quoted() -> None:
    (problem,) = nvidia_smi.explain("The quick brown fox\nmore")
    assert "The quick brown fox" in problem.what


@pytest.mark.parametrize(("driver", "cuda"), [("580.95.05", (13, 0)), ("535.161.08", (12, 2)), ("470.256", (11, 4))])
def test_a_driver_version_tells_its_newest_cuda(driver: str, cuda: tuple[int, int]) -> None:
    assert nvidia_smi.driver_cuda(driver) == cuda


# ── tools on the PATH ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on the PATH; pynvml counts as not installed, so that the tool is asked on any machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(nvidia, "load_nvml", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


def install(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_probe_asks_again_with_fewer_fields_when_a_driver_is_old(tools: Path) -> None:
    refusal, answer = DATA / "nvidia-smi-old-driver.err", DATA / "nvidia-smi-old-driver.csv"
    install(tools, f'case "$1" in *compute_cap*) cat {refusal}; exit 2;; *) cat {answer};; esac')
    findings = nvidia.probe(5)
    assert [gpu.name for gpu in findings.gpus] == ["GeForce GTX 1080", "Tesla K80"]
    assert findings.driver_cuda == (10, 1)


def test_a_driver_mismatch_is_a_problem_and_no_gpu(tools: Path, tmp_path: Path) -> None:
    install(tools, f"cat {DATA / 'nvidia-smi-mismatch.txt'}; exit 18")
    findings = nvidia.probe(5, tmp_path)
    assert findings.gpus == ()
    assert "updated" in findings.problems[0].what


def test_a_hanging_nvidia_smi_is_killed_with_its_children(tools: Path, tmp_path: Path) -> None:
    marker = tmp_path / "pids"
    install(tools, f"sleep 60 & echo $$ $! > {marker}; wait")
    pids: list[int] = []
    for limit_seconds in (1.0, 4.0, 16.0):  # a busy machine may not even start the tool in the first
        started = time.monotonic()
        findings = nvidia.probe(limit_seconds, tmp_path)
        assert time.monotonic() - started < 50, "shorter than the tool would take"
        assert "did not answer" in findings.problems[0].what
        if marker.exists() and (pids := [int(word) for word in marker.read_text().split()]):
            break
    assert len(pids) == 2, "the tool never came to start its child"
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "the hanging tool was left running"
        os.sched_yield()


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_card_on_the_bus_without_a_driver_is_noticed(tools: Path, tmp_path: Path) -> None:
    install(tools, "echo No devices were found; exit 6")
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030000\n")
    assert "no working NVIDIA driver" in nvidia.probe(5, tmp_path).problems[0].what
    (device / "class").write_text("0x040300\n")  # the card's sound output alone is no card
    assert nvidia.probe(5, tmp_path).problems == ()


# ── NVML ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_real_library_without_a_driver_is_a_clean_state() -> None:
    pynvml = nvidia.load_nvml()
    assert pynvml is not None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        assert read_nvml(pynvml, host_ram) is None
    else:
        findings = read_nvml(pynvml, host_ram)
        assert findings is not None
        assert len(findings.gpus) >= pynvml.nvmlDeviceGetCount()


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_LibRmVersionMismatch(NVMLError):
    pass


class FakeNvml:
    """pynvml's functions over a list of cards; whatever a card does not know raises "not supported"."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, cards: list[dict[str, Any]], init_error: Exception | None = None) -> None:
        self.cards, self.init_error = cards, init_error

    def nvmlInit(self) -> None:
        if self.init_error:
            raise self.init_error

    def nvmlShutdown(self) -> None: ...

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"550.54.14"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 12040

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self.cards[index]

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: dict[str, Any], number: int) -> dict[str, Any]:
        if number >= len(card["slices"]):
            raise NVMLError_NotSupported
        slice_: dict[str, Any] = card["slices"][number]
        return slice_

    def __getattr__(self, function: str) -> Any:
        def call(card: dict[str, Any], *_: Any) -> Any:
            if function not in card:
                raise NVMLError_NotSupported
            return card[function]

        if not function.startswith("nvml"):
            raise AttributeError(function)
        return call


def card(name: str, total_mib: int, free_mib: int, **more: Any) -> dict[str, Any]:
    memory = SimpleNamespace(total=total_mib * MIB, free=free_mib * MIB, used=(total_mib - free_mib) * MIB)
    return {"nvmlDeviceGetName": name, "nvmlDeviceGetMemoryInfo": memory, **more}


def test_nvml_reads_every_figure() -> None:
    fake = FakeNvml(
        [
            card(
                "NVIDIA GeForce RTX 4090", 24564, 23000,
                nvmlDeviceGetCudaComputeCapability=(8, 9), nvmlDeviceGetPowerManagementLimit=450_000,
                nvmlDeviceGetDisplayActive=1, nvmlDeviceGetCurrPcieLinkWidth=16, nvmlDeviceGetMigMode=[0, 0],
            )
        ]
    )  # fmt: skip
    findings = read_nvml(fake, host_ram)
    assert findings is not None
    assert findings.driver_cuda == (12, 4)
    assert findings.gpus == (
        Gpu(
            0, "NVIDIA GeForce RTX 4090", "nvidia", 24564 * MIB, 23000 * MIB, Source.NVML, compute_capability=(8, 9),
            driver="550.54.14", power_limit_watts=450.0, display_active=True, pcie_width=16,
        ),
    )  # fmt: skip


def test_a_card_that_knows_only_its_memory_is_still_a_card() -> None:
    findings = read_nvml(FakeNvml([card("Tesla K80", 11441, 11437)]), host_ram)
    assert findings is not None
    (gpu,) = findings.gpus
    assert (gpu.power_limit_watts, gpu.display_active, gpu.pcie_width, gpu.compute_capability) == (None,) * 4
    assert findings.problems == ()


def test_nvml_slices_are_cards_of_their_own() -> None:
    parent = card("NVIDIA A100-SXM4-80GB", 81920, 81000, nvmlDeviceGetMigMode=[1, 1], nvmlDeviceGetMaxMigDeviceCount=7)
    parent["slices"] = [card(f"NVIDIA A100-SXM4-80GB MIG {part}", 9728, 9700) for part in ("1g.10gb", "1g.10gb")]
    findings = read_nvml(FakeNvml([parent]), host_ram)
    assert findings is not None
    assert [gpu.mig for gpu in findings.gpus] == ["1g.10gb", "1g.10gb"]
    assert findings.gpus[0].vram_bytes == 9728 * MIB
    assert "2 MIG slices" in findings.problems[0].what


def test_unified_memory_falls_back_to_the_hosts() -> None:
    findings = read_nvml(FakeNvml([{"nvmlDeviceGetName": "NVIDIA GB10"}]), host_ram)
    assert findings is not None
    assert findings.gpus[0].unified_memory
    assert findings.gpus[0].vram_bytes == 120 * GIB


def test_a_mismatched_driver_is_explained() -> None:
    findings = read_nvml(FakeNvml([], NVMLError_LibRmVersionMismatch()), host_ram)
    assert findings is not None
    assert "updated" in findings.problems[0].what


# ── hidden cards ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("value", "kept"),
    [(None, [0, 1]), ("0,1", [0, 1]), ("1", [1]), ("", []), ("-1", []), ("1,7,0", [1]), ("GPU-8d9b", [0, 1])],
)
def test_cuda_visible_devices_hides_cards_and_says_so(value: str | None, kept: list[int]) -> None:
    findings = only_visible(parse("nvidia-smi-mixed.csv"), "CUDA_VISIBLE_DEVICES", value)
    assert [gpu.index for gpu in findings.gpus] == kept
    assert bool(findings.problems) == (len(kept) < 2)
