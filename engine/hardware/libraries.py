"""Versions of what training needs, read from package metadata: nothing is imported, nothing can crash.

Owns the list of libraries and the check that torch's CUDA build suits the NVIDIA driver. Must not know any job.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from engine.hardware.machine import Gpu, Problem

NAMES = (
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "tokenizers", "huggingface_hub",
    "textual", "nvidia-ml-py", "psutil", "pyarrow", "jinja2",
)  # fmt: skip
NEEDED = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers")


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What the installed torch was built for, and what bitsandbytes has for it."""

    version: str
    cuda: tuple[int, int] | None = None
    hip: str = ""
    kernels: tuple[str, ...] | None = None
    """The kernel libraries bitsandbytes ships ("cpu", "cuda128", "rocm71"); None when that is unknown."""

    @property
    def cpu_only(self) -> bool:
        """True for a build that can use neither CUDA nor ROCm (Apple's Metal needs no special build)."""
        return self.cuda is None and not self.hip


Found = tuple[dict[str, str | None], TorchBuild | None]
"""Versions by distribution, and the torch build."""


def read_libraries() -> Found:
    """Everything this module can read about the environment."""
    return read_versions(), read_torch_build()


def read_versions() -> dict[str, str | None]:
    """Distribution name -> version, None when it is not installed."""
    return {name: installed_version(name) for name in NAMES}


def installed_version(name: str) -> str | None:
    """The version in the package's metadata; None when it is missing or damaged."""
    from importlib import metadata

    try:
        return metadata.version(name) or None
    except (metadata.PackageNotFoundError, KeyError, ValueError, OSError):
        return None


def read_torch_build() -> TorchBuild | None:
    """The torch build from the text of `torch/version.py`; None when torch is not installed."""
    from importlib import metadata

    try:
        distribution = metadata.distribution("torch")
        version = distribution.version
        path = Path(str(distribution.locate_file("torch/version.py")))
    except (metadata.PackageNotFoundError, KeyError, ValueError, OSError):
        return None
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return replace(parse_torch_build(version, text), kernels=read_kernels())


def read_kernels() -> tuple[str, ...] | None:
    """The compiled kernels inside the installed bitsandbytes; None when it is not installed."""
    from importlib import metadata

    try:
        folder = Path(str(metadata.distribution("bitsandbytes").locate_file("bitsandbytes")))
        names = [path.stem for path in folder.iterdir() if path.suffix in (".so", ".dylib", ".dll")]
    except (metadata.PackageNotFoundError, OSError, ValueError):
        return None
    return tuple(sorted(name.removeprefix("lib").removeprefix("bitsandbytes_") for name in names))


def parse_torch_build(version: str, text: str) -> TorchBuild:
    """Version "2.13.0+cu128" and the text of version.py -> the build. The file wins: plain versions carry no tag."""
    cuda = _assigned(text, "cuda")
    hip = _assigned(text, "hip")
    tag = version.partition("+")[2]
    if not text and (match := re.fullmatch(r"cu(\d+)(\d)", tag)):
        cuda = f"{match.group(1)}.{match.group(2)}"
    if not text and tag.startswith("rocm"):
        hip = tag.removeprefix("rocm")
    numbers = re.match(r"(\d+)\.(\d+)", cuda)
    return TorchBuild(version, (int(numbers.group(1)), int(numbers.group(2))) if numbers else None, hip)


def _assigned(text: str, name: str) -> str:
    match = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match.group(1) if match else ""


def problems(
    versions: dict[str, str | None],
    build: TorchBuild | None,
    gpus: tuple[Gpu, ...],
    driver_cuda: tuple[int, int] | None,
) -> tuple[Problem, ...]:
    """What is missing or does not fit together."""
    found = [
        Problem("libraries", f"{name} is not installed, so nothing can be trained.", f"pip install {name}")
        for name in NEEDED
        if name in versions and versions[name] is None
    ]
    if versions.get("bitsandbytes", "") is None:
        found.append(
            Problem("libraries", "bitsandbytes is not installed, so QLoRA is not possible.", "pip install bitsandbytes")
        )
    vendors = {gpu.vendor for gpu in gpus}
    if "nvidia" in vendors and versions.get("nvidia-ml-py", "") is None:
        next_step = "pip install nvidia-ml-py"
        found.append(Problem("libraries", "nvidia-ml-py is not installed, so GPU meters stay empty.", next_step))
    if build is not None:
        found.extend(_build_problems(build, vendors, driver_cuda))
        found.extend(_kernel_problems(build, vendors))
    return tuple(found)


def _kernel_problems(build: TorchBuild, vendors: set[str]) -> list[Problem]:
    """bitsandbytes is there but cannot work: without kernels at all, or without any for torch's CUDA major version."""
    if build.kernels is None:
        return []
    if not build.kernels:
        what = "bitsandbytes is installed without its compiled kernels, so QLoRA is not possible."
        return [Problem("libraries", what, "pip install --force-reinstall bitsandbytes")]
    if "nvidia" not in vendors or build.cuda is None:
        return []
    if any(kernel.startswith(f"cuda{build.cuda[0]}") for kernel in build.kernels):
        return []
    what = f"bitsandbytes has no kernels for CUDA {build.cuda[0]}.{build.cuda[1]}, which torch {build.version} uses."
    return [Problem("libraries", what, "Update bitsandbytes, or install torch for a CUDA version that it supports.")]


def _build_problems(build: TorchBuild, vendors: set[str], driver_cuda: tuple[int, int] | None) -> list[Problem]:
    """torch against the cards. Within one CUDA major version an older driver works (minor-version compatibility)."""
    if "nvidia" in vendors and build.cuda is None:
        what = f"torch {build.version} is not a CUDA build, so it cannot use the NVIDIA GPU."
        return [Problem("torch", what, "Install the CUDA build of the same version; pytorch.org names the command.")]
    if "amd" in vendors and "nvidia" not in vendors and not build.hip:
        what = f"torch {build.version} is not a ROCm build, so it cannot use the AMD GPU."
        return [Problem("torch", what, "Install the ROCm build of the same version; pytorch.org names the command.")]
    if "nvidia" in vendors and build.cuda and driver_cuda and build.cuda[0] > driver_cuda[0]:
        wanted, offered = (".".join(map(str, version)) for version in (build.cuda, driver_cuda))
        what = f"The NVIDIA driver is too old: it supports CUDA {offered}, torch {build.version} needs CUDA {wanted}."
        return [Problem("torch", what, f"Update the driver, or install a torch build for CUDA {driver_cuda[0]}.x.")]
    return []
