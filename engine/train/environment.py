"""What must be true of the worker process before torch is imported, and what it reports about itself.

Owns environment variables, the log redirection, seeds and threads, the choice of device and number type. Must not know
specs beyond single values, nor models. `prepare_process` has to run before the first import of torch: libgomp reads
its waiting policy once, when it is loaded.
"""

from __future__ import annotations

import importlib.metadata
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.hardware import nvidia
from engine.hardware.cpu import read_cpu
from engine.jobs.spec import Dtype

if TYPE_CHECKING:
    import torch

VARIABLES = {
    # Threads that wait at a barrier sleep instead of spinning. Whenever anything else wants the cores (the wizard
    # drawing its charts is enough), spinning threads hold them until the scheduler notices: measured on 2 busy cores, a
    # training step is 2 x and loading in 4 bit 20 x slower with the default.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_TELEMETRY": "1",
    "WANDB_DISABLED": "true",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}
"""Defaults; whatever the user has set stays."""

PROBE_SECONDS = 2.0
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "tokenizers")


@dataclass(frozen=True, slots=True)
class Device:
    """Where the model lives and computes."""

    torch_device: str
    """ "cpu", "cuda:0" or "mps"."""
    name: str
    """For people: the card, or the processor and its threads."""
    compute_dtype: torch.dtype

    @property
    def is_cuda(self) -> bool:
        return self.torch_device.startswith("cuda")


def prepare_process(log_path: Path | None, *, number: int | None = None) -> None:
    """Set the variables above and send everything that libraries print to `log_path`. `number`: of this process among
    those on its machine, each of which has a card of its own; None for one alone."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    os.environ["CUDA_VISIBLE_DEVICES"] = one_card(os.environ.get("CUDA_VISIBLE_DEVICES"), number)
    # bitsandbytes fetches compiled code from the hub when this package happens to be installed: remote code, refused.
    sys.modules["kernels"] = None  # type: ignore[assignment]
    if log_path is not None:
        handle = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for stream in (1, 2):
            os.dup2(handle, stream)
        os.close(handle)


def one_card(visible: str | None, number: int | None = None) -> str:
    """The card of this run: the first the user allows, else the one with most free memory, as the plan assumed. Of
    several processes: the one with this one's number.

    One run, one card: with more in sight transformers would wrap the model in DataParallel.
    """
    if number is not None:
        allowed = visible.split(",") if visible else []
        return allowed[number % len(allowed)] if allowed else str(number)
    if visible is not None:
        return visible.split(",")[0]
    cards = [gpu for gpu in nvidia.probe(PROBE_SECONDS).gpus if not gpu.mig]
    return str(max(cards, key=lambda gpu: gpu.free_vram_bytes).index) if cards else "0"


def choose_threads(threads: int, processes: int = 1) -> int:
    """`threads`, or every core this process may use when it is 0; its share where several `processes` use them."""
    return threads or max(read_cpu().cores // processes, 1)


def seed_everything(seed: int) -> None:
    """Seed every generator that training draws from."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # the CUDA generators too


def prepare_torch(threads: int, wanted: Dtype) -> Device:
    """Threads, determinism where it is free, device and compute type.

    On a CPU every operation used here is deterministic for a fixed number of threads. On CUDA the deterministic
    attention backward costs too much, so resumes there are equal within rounding, not bit for bit.
    """
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = False
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Device("cuda:0", torch.cuda.get_device_name(0), _dtype(wanted, native))
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    if torch.backends.mps.is_available():
        return Device("mps", "Apple GPU", _dtype(wanted, bfloat16_native=False))
    name = f"{read_cpu().name}, {threads} threads"
    return Device("cpu", name, _dtype(wanted, bfloat16_native=False))


def without_torch(threads: int) -> Device:
    """This machine for a job that computes nothing itself: growth, whose proof is a process of its own."""
    return Device("cpu", f"{read_cpu().name}, {threads} threads", None)  # type: ignore[arg-type]


def _dtype(wanted: Dtype, bfloat16_native: bool) -> torch.dtype:
    """bfloat16 where the hardware multiplies it; elsewhere float32, which is faster there and exact."""
    import torch

    if wanted is Dtype.AUTO:
        return torch.bfloat16 if bfloat16_native else torch.float32
    return torch.bfloat16 if wanted is Dtype.BFLOAT16 else torch.float32


def library_versions() -> dict[str, str]:
    """Versions that can change a result, without importing anything."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


def quiet_libraries() -> None:
    """No progress bars; messages of the libraries are warnings and worse, and go to the worker's log."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_warning()  # type: ignore[no-untyped-call]
