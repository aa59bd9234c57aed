"""Look at this machine: every probe in its own thread with a time limit, put together into one Machine.

Owns the parallel run of the probes and what a late or failing one means. Must not know how any probe reads.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from engine.errors import EngineError
from engine.hardware import amd, apple, cpu, disk, libraries, memory, nvidia
from engine.hardware.findings import GpuFindings
from engine.hardware.gpu_profiles import find_gpu_profile
from engine.hardware.label import machine_label
from engine.hardware.machine import Cpu, Disk, Gpu, Machine, Problem, Ram, Source

T = TypeVar("T")
Probe = Callable[[float], Any]

PROBES: Mapping[str, Probe] = {
    "nvidia": nvidia.probe,
    "amd": amd.probe,
    "apple": apple.probe,
    "processor": lambda _: cpu.read_cpu(),
    "memory": lambda _: memory.read_ram(),
    "disk": lambda _: disk.read_disks(),
    "libraries": lambda _: libraries.read_libraries(),
}
_TOOL_MARGIN = 0.1
"""The part of the limit kept for killing a hanging tool and reporting it."""


@dataclass(frozen=True, slots=True)
class _Answer:
    name: str
    value: Any = None
    error: str = ""


def detect(*, probe_seconds: float = 2.0, on_probe: Callable[[str], None] | None = None) -> Machine:
    """This machine, within `probe_seconds` whatever hangs. `on_probe` hears the name of each probe as it ends.

    It is called in the caller's thread. A probe that is late or fails becomes a Problem; nothing is raised.
    """
    answers = run_probes(PROBES, probe_seconds, on_probe)
    late = tuple(_missing_problem(name, answers.get(name), probe_seconds) for name in PROBES if _failed(answers, name))
    found = [_value(answers, name, GpuFindings()) for name in ("nvidia", "amd", "apple")]
    no_libraries: libraries.Found = ({}, None)
    versions, build = _value(answers, "libraries", no_libraries)
    gpus, profile_problems = _with_profiles(tuple(gpu for findings in found for gpu in findings.gpus))
    processor = _value(answers, "processor", Cpu("unknown processor", os.cpu_count() or 1))
    disks: tuple[Disk, ...] = _value(answers, "disk", ())
    problems = (
        *late,
        *(problem for findings in found for problem in findings.problems),
        *profile_problems,
        *libraries.problems(versions, build, gpus, found[0].driver_cuda),
    )
    return Machine(
        gpus=gpus,
        cpu=processor,
        ram=_value(answers, "memory", Ram(0, 0, Source.SYSTEM)),
        disks=disks,
        libraries=versions,
        problems=problems,
        label=machine_label(gpus, processor),
    )


def run_probes(
    probes: Mapping[str, Probe], limit_seconds: float, on_probe: Callable[[str], None] | None = None
) -> dict[str, _Answer]:
    """Run all probes at once; whoever has not answered when the limit is over is left out and left behind."""
    deadline = time.monotonic() + limit_seconds
    queue: SimpleQueue[_Answer] = SimpleQueue()
    for name, probe in probes.items():
        arguments = (name, probe, max(limit_seconds - _TOOL_MARGIN, limit_seconds / 2), queue)
        threading.Thread(target=_run_probe, args=arguments, name=f"probe-{name}", daemon=True).start()
    answers: dict[str, _Answer] = {}
    while len(answers) < len(probes):
        try:
            answer = queue.get(timeout=max(deadline - time.monotonic(), 0))
        except Empty:
            break
        answers[answer.name] = answer
        if on_probe is not None:
            on_probe(answer.name)
    return answers


def _run_probe(name: str, probe: Probe, limit_seconds: float, queue: SimpleQueue[_Answer]) -> None:
    """Thread body. Whatever a probe raises becomes its answer, and later a Problem."""
    try:
        queue.put(_Answer(name, probe(limit_seconds)))
    except Exception as error:
        queue.put(_Answer(name, error=f"{type(error).__name__}: {error}"))


def _failed(answers: dict[str, _Answer], name: str) -> bool:
    return name not in answers or bool(answers[name].error)


def _value(answers: dict[str, _Answer], name: str, default: T) -> T:
    """The probe's value, or `default` when it is late or failed."""
    if _failed(answers, name):
        return default
    value: T = answers[name].value
    return value


def _missing_problem(name: str, answer: _Answer | None, limit_seconds: float) -> Problem:
    if answer is None:
        what = f"Looking at {name} took longer than {limit_seconds:g} s and was given up."
        return Problem(
            name, what, "Try again with 'scaler-wizard doctor'; a hanging driver or network disk needs repair."
        )
    return Problem(
        name, f"Looking at {name} failed: {answer.error}.", "Please report this with 'scaler-wizard doctor'."
    )


def _with_profiles(gpus: tuple[Gpu, ...]) -> tuple[tuple[Gpu, ...], tuple[Problem, ...]]:
    """Name the entry of `profiles/gpus.toml` for each card; slices have none, as a card's rates are not theirs."""
    try:
        return tuple(replace(gpu, profile="" if gpu.mig else _profile_id(gpu)) for gpu in gpus), ()
    except EngineError as error:
        return gpus, (Problem("profiles", error.what, error.next_step),)


def _profile_id(gpu: Gpu) -> str:
    found = find_gpu_profile(gpu.name, None if gpu.unified_memory else gpu.vram_bytes or None)
    return found.id if found and found.vendor == gpu.vendor else ""
