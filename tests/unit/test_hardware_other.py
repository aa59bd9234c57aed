"""AMD, Apple, processor, memory, disks, libraries: parsers over recorded outputs and made-up roots."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.hardware import amd, apple, cpu, disk, libraries, memory
from engine.hardware.libraries import TorchBuild, parse_torch_build
from engine.hardware.machine import Gpu, Ram, Source
from engine.units import GIB, MIB

DATA = Path(__file__).parent.parent / "data" / "hardware"


def host_ram() -> Ram:
    return Ram(128 * GIB, 100 * GIB, Source.SYSTEM)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# ── AMD ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_rocm_smi_lists_eight_accelerators() -> None:
    gpus = amd.parse_rocm_smi((DATA / "rocm-smi-8x-mi300x.json").read_text())
    assert len(gpus) == 8
    assert gpus[0].name == "AMD Instinct MI300X OAM"
    assert gpus[0].vram_bytes == 206_141_652_992
    assert gpus[0].free_vram_bytes == 206_141_652_992 - 297_795_584
    assert gpus[0].driver == "6.10.5"
    assert gpus[0].power_limit_watts == 750


def test_the_graphics_part_of_a_processor_is_no_training_card(tmp_path: Path) -> None:
    gpus = amd.parse_rocm_smi((DATA / "rocm-smi-7900xt-raphael.json").read_text())
    assert [gpu.name for gpu in gpus] == ["Radeon RX 7900 XT", "Raphael"]
    assert [gpu.name for gpu in amd.usable_gpus(gpus, host_ram, tmp_path)] == ["Radeon RX 7900 XT"]


def test_a_carve_out_is_not_all_the_memory_of_a_shared_memory_machine(tmp_path: Path) -> None:
    gpus = amd.parse_rocm_smi((DATA / "rocm-smi-strix-halo.json").read_text())
    write(tmp_path, {"sys/class/drm/card1/device/mem_info_vram_total": "536870912\n",
                     "sys/class/drm/card1/device/mem_info_gtt_total": f"{96 * GIB}\n"})  # fmt: skip
    (gpu,) = amd.usable_gpus(gpus, host_ram, tmp_path)
    assert gpu.unified_memory
    assert gpu.vram_bytes == 512 * MIB + 96 * GIB


@pytest.mark.parametrize("text", ["", "not json", "{", "[]", '{"card0": 3}', '{"system": []}'])
def test_broken_rocm_smi_output_means_no_cards(text: str) -> None:
    assert amd.parse_rocm_smi(text) == ()


def test_sysfs_gives_amd_cards_without_rocm(tmp_path: Path) -> None:
    write(tmp_path, {
        "sys/class/drm/card1/device/mem_info_vram_total": f"{24 * GIB}\n",
        "sys/class/drm/card1/device/mem_info_vram_used": f"{GIB}\n",
        "sys/class/drm/card1/device/product_name": "AMD Radeon RX 7900 XTX\n",
        "sys/class/drm/card1-DP-1/device/mem_info_vram_total": f"{24 * GIB}\n",
        "sys/class/drm/card0/device/vendor": "0x8086\n",
    })  # fmt: skip
    (gpu,) = amd.read_sysfs(tmp_path)
    assert (gpu.name, gpu.free_vram_bytes, gpu.source) == ("AMD Radeon RX 7900 XTX", 23 * GIB, Source.SYSFS)


# ── Apple ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_mac_offers_the_part_of_its_memory_that_metal_recommends() -> None:
    facts = (DATA / "sysctl-m4-max.txt").read_text()
    displays = (DATA / "system-profiler-m4-max.json").read_text()
    (gpu,) = apple.parse(facts, displays, Ram(48 * GIB, 20 * GIB, Source.SYSTEM))
    assert gpu.name == "Apple M4 Max"
    assert 35 * GIB < gpu.vram_bytes < 37.44 * GIB
    assert gpu.free_vram_bytes == 20 * GIB
    assert gpu.unified_memory


def test_the_users_own_metal_limit_counts() -> None:
    assert apple.working_set_bytes(64 * GIB, wired_limit_mib=57_344) == 56 * GIB


def test_an_intel_mac_has_no_usable_gpu() -> None:
    facts = "hw.memsize: 17179869184\nmachdep.cpu.brand_string: Intel(R) Core(TM) i7"
    assert apple.parse(facts, "", host_ram()) == ()


# ── processor and memory ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        (
            {
                "proc/self/cgroup": "0::/a.slice/b.scope\n",
                "sys/fs/cgroup/a.slice/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a.slice/b.scope/cpu.max": "max 100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ({"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, 16),
        ({}, 16),
    ],
)
def test_cores_respect_the_containers_quota(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert cpu.usable_cores(16, cpu.quota_cores(write(tmp_path, files))) == cores


def test_a_processor_name_comes_from_whatever_key_has_it() -> None:
    assert cpu.parse_cpu_name("processor : 0\nmodel name\t: AMD  Ryzen 9\n") == "AMD Ryzen 9"
    assert cpu.parse_cpu_name("processor : 0\nModel : Raspberry Pi 5\n") == "Raspberry Pi 5"
    assert cpu.parse_cpu_name("processor : 0\n") == ""


def test_version_two_limits_cut_the_memory_and_cache_counts_as_free(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/box\n",
        "sys/fs/cgroup/box/memory.max": f"{8 * GIB}\n",
        "sys/fs/cgroup/box/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/box/memory.stat": f"anon 5\ninactive_file {GIB}\n",
    }
    group = memory.group_memory(write(tmp_path, files))
    assert group == memory.GroupMemory(8 * GIB, 6 * GIB)
    assert memory.combine(64 * GIB, 50 * GIB, group) == Ram(8 * GIB, 6 * GIB, Source.CGROUP)


def test_a_limit_on_a_parent_group_binds_too(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    }
    group = memory.group_memory(write(tmp_path, files))
    assert group is not None
    assert group.limit_bytes == 4 * GIB


def test_version_one_says_no_limit_with_a_huge_number(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/docker/gone\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    root = write(tmp_path, files)
    assert memory.group_memory(root) is None
    write(root, {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n"})
    group = memory.group_memory(root)
    assert group is not None
    assert group.limit_bytes == 2 * GIB


def test_a_limit_above_the_machines_memory_changes_nothing() -> None:
    group = memory.GroupMemory(128 * GIB, 128 * GIB)
    assert memory.combine(64 * GIB, 50 * GIB, group) == Ram(64 * GIB, 50 * GIB, Source.SYSTEM)


# ── disks ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_folder_that_does_not_exist_yet_is_measured_on_its_parent(tmp_path: Path) -> None:
    wanted = tmp_path / "not" / "there" / "yet"
    assert disk.existing_parent(wanted) == tmp_path
    measured = disk.read_disk("runs", wanted)
    assert measured.path == str(wanted)
    assert 0 < measured.free_bytes <= measured.total_bytes


def test_the_model_cache_follows_the_hubs_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert disk.model_cache_dir() == tmp_path / ".cache/huggingface/hub"
    monkeypatch.setenv("HF_HOME", "/big/hf")
    assert disk.model_cache_dir() == Path("/big/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/bigger")
    assert disk.model_cache_dir() == Path("/bigger")


def test_the_runs_disk_comes_first_and_follows_the_wizards_home(own_home: Path) -> None:
    runs, models = disk.read_disks()
    assert (runs.purpose, runs.path) == ("runs", str(own_home / "runs"))
    assert models.purpose == "models"


# ── libraries ─────────────────────────────────────────────────────────────────────────────────────────────────────
CUDA_FILE = (
    "from typing import Optional\n__version__ = '2.13.0'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n"
)
KERNELS = ("cpu", "cuda118", "cuda128", "cuda130")


def gpu(vendor: str) -> Gpu:
    return Gpu(0, "card", vendor, GIB, GIB, Source.USER)


def whats(build: TorchBuild | None, vendor: str, driver: tuple[int, int] | None = None) -> str:
    return " ".join(problem.what for problem in libraries.problems({}, build, (gpu(vendor),), driver))


def test_the_torch_build_is_read_from_its_text() -> None:
    assert parse_torch_build("2.13.0", CUDA_FILE) == TorchBuild("2.13.0", (12, 8))
    assert parse_torch_build("2.13.0+cpu", "cuda: Optional[str] = None\nhip: Optional[str] = None\n").cpu_only
    assert parse_torch_build("2.13.0+rocm7.1", "cuda = None\nhip = '7.1.52802'\n").hip == "7.1.52802"
    assert parse_torch_build("2.13.0+cu128", "").cuda == (12, 8)
    assert parse_torch_build("2.13.0+cu118", "").cuda == (11, 8)


def test_a_cpu_build_beside_a_card_is_a_problem_and_without_a_card_is_none() -> None:
    build = TorchBuild("2.13.0+cpu")
    assert "not a CUDA build" in whats(build, "nvidia")
    assert "not a ROCm build" in whats(build, "amd")
    assert whats(build, "apple") == ""
    assert libraries.problems({}, build, (), None) == ()


def test_only_an_older_major_version_of_cuda_makes_a_driver_too_old() -> None:
    build = TorchBuild("2.13.0", (12, 8), kernels=KERNELS)
    assert whats(build, "nvidia", (12, 2)) == ""
    assert "too old" in whats(build, "nvidia", (11, 8))
    assert whats(build, "nvidia", (13, 0)) == ""


def test_bitsandbytes_without_kernels_for_the_cuda_version_is_a_problem() -> None:
    assert "no kernels for CUDA 12.9" in whats(TorchBuild("2.13.0", (12, 9), kernels=("cpu", "cuda118")), "nvidia")
    assert whats(TorchBuild("2.13.0", (12, 9), kernels=KERNELS), "nvidia") == ""
    assert "without its compiled kernels" in whats(TorchBuild("2.13.0", (12, 9), kernels=()), "nvidia")


def test_missing_libraries_are_states_with_a_next_step() -> None:
    versions = {"torch": None, "bitsandbytes": None, "peft": "0.21.2"}
    problems = libraries.problems(versions, None, (), None)
    assert [problem.next_step for problem in problems] == ["pip install torch", "pip install bitsandbytes"]


def test_this_environment_is_read_without_importing_it() -> None:
    versions, build = libraries.read_libraries()
    assert set(versions) == set(libraries.NAMES)
    assert build is not None
    assert build.version == versions["torch"]
    assert "cpu" in (build.kernels or ())
