"""The whole detection: limits, parallel probes, labels, the doctor's report, and what is never imported."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from engine.hardware import detect as detect_module
from engine.hardware import nvidia
from engine.hardware.detect import detect, run_probes
from engine.hardware.doctor import raw_outputs, report
from engine.hardware.label import machine_label, short_name
from engine.hardware.machine import Cpu, Gpu, Machine, Problem, Source
from engine.units import MIB

DATA = Path(__file__).parent.parent / "data" / "hardware"


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An nvidia-smi on the PATH; pynvml counts as not installed."""
    folder.mkdir()
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(nvidia, "load_nvml", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_this_machine_is_described() -> None:
    heard: list[str] = []
    machine = detect(probe_seconds=30, on_probe=heard.append)
    assert sorted(heard) == sorted(detect_module.PROBES)
    assert machine.cpu.cores >= 1
    assert 0 < machine.ram.available_bytes <= machine.ram.total_bytes
    assert [disk.purpose for disk in machine.disks] == ["runs", "models"]
    assert machine.libraries["torch"]
    assert machine.label
    assert not machine.simulated


def test_a_hanging_nvidia_smi_is_a_problem_and_delays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", monkeypatch, "sleep 60")
    started = time.monotonic()
    machine = detect(probe_seconds=2.0)
    assert time.monotonic() - started < 30
    assert machine.gpus == ()
    assert any(problem.where == "nvidia" for problem in machine.problems)
    assert machine.cpu.name


def test_cards_of_a_mixed_box_keep_their_own_memory_and_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "bin", monkeypatch, f"cat {DATA / 'nvidia-smi-mixed.csv'}")
    machine = detect(probe_seconds=30)
    assert [gpu.profile for gpu in machine.gpus] == ["rtx-4090-24gb", "rtx-3060-12gb"]
    assert [gpu.vram_bytes for gpu in machine.gpus] == [24564 * MIB, 12288 * MIB]
    assert machine.label == "RTX 4090 + RTX 3060"


def test_a_laptop_card_is_not_taken_for_the_desktop_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", monkeypatch, f"cat {DATA / 'nvidia-smi-wsl2.csv'}")
    (gpu,) = detect(probe_seconds=30).gpus
    assert gpu.profile == ""


def test_a_late_probe_is_left_behind_and_the_others_count() -> None:
    release = threading.Event()
    probes = {"quick": lambda _: 1, "stuck": lambda _: release.wait(60), "broken": lambda _: 1 // 0}
    try:
        started = time.monotonic()
        answers = run_probes(probes, 0.5)
        assert time.monotonic() - started < 30
        assert sorted(answers) == ["broken", "quick"]
        assert "ZeroDivisionError" in answers["broken"].error
    finally:
        release.set()


def test_a_failing_probe_becomes_a_problem_and_the_rest_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: float) -> None:
        raise OSError("stale file handle")

    monkeypatch.setattr(detect_module, "PROBES", {**detect_module.PROBES, "disk": broken})
    machine = detect(probe_seconds=30)
    assert machine.disks == ()
    assert any(problem.where == "disk" and "stale file handle" in problem.what for problem in machine.problems)
    assert machine.ram.total_bytes > 0
    assert report(machine)["disk"] == {"path": "", "free_bytes": 0}


def test_detection_imports_no_heavy_library() -> None:
    code = (
        "import sys; import engine.hardware.detect as d\n"
        "early = [n for n in ('pynvml','psutil','torch','numpy','textual') if n in sys.modules]\n"
        "d.detect(probe_seconds=30)\n"
        "late = [n for n in ('torch','numpy','transformers','bitsandbytes','textual') if n in sys.modules]\n"
        "print(early, late)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert output.stdout.strip() == "[] []"


# ── labels ────────────────────────────────────────────────────────────────────────────────────────────────────────
def card(name: str) -> Gpu:
    return Gpu(0, name, "nvidia", 24564 * MIB, 23000 * MIB, Source.NVML)


def test_labels_are_short_and_count_equal_cards() -> None:
    cpu = Cpu("x", 2)
    assert machine_label((), cpu) == "no GPU, 2 cores"
    assert machine_label((), Cpu("x", 1)) == "no GPU, 1 core"
    assert machine_label((card("NVIDIA GeForce RTX 4090"),) * 2, cpu) == "2x RTX 4090"
    assert short_name("NVIDIA A100-SXM4-80GB MIG 1g.10gb") == "A100-SXM4-80GB MIG 1g.10gb"
    assert short_name("NVIDIA") == "NVIDIA"


# ── doctor ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_doctors_report_has_the_promised_keys_and_is_json() -> None:
    machine = detect(probe_seconds=30)
    with_card = Machine(
        gpus=(card("NVIDIA GeForce RTX 4090"),), cpu=machine.cpu, ram=machine.ram, disks=machine.disks,
        libraries=machine.libraries, problems=(Problem("a", "b", "c"),),
    )  # fmt: skip
    tree = json.loads(json.dumps(report(with_card)))
    assert list(tree)[:6] == ["gpus", "cpu", "ram", "disk", "libraries", "problems"]
    assert list(tree["gpus"][0])[:5] == ["name", "vendor", "vram_bytes", "free_vram_bytes", "source"]
    assert tree["gpus"][0]["source"] == "nvml"
    assert set(tree["cpu"]) == {"name", "cores"}
    assert tree["ram"]["total_bytes"] == machine.ram.total_bytes
    assert tree["disk"]["path"].endswith("runs")
    assert tree["disk"]["free_bytes"] > 0
    assert tree["problems"] == [{"where": "a", "what": "b", "next_step": "c"}]


def test_raw_outputs_are_what_the_tool_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", monkeypatch, f"cat {DATA / 'nvidia-smi-a100-mig-table.txt'}")
    outputs = raw_outputs()
    assert any("MIG devices" in text for text in outputs.values())
    assert any(command.endswith("nvidia-smi -L") for command in outputs)
