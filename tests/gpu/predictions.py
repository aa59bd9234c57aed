"""What the tiers say about a configuration before it is measured.

Owns asking the formula and the dry run. Must not know measurements.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import msgspec

from engine.estimate.memory import memory_bounds, peak_of
from engine.estimate.process import base_of, slack_of
from engine.estimate.rehearsal import DryRun, Rehearsal
from engine.estimate.workload import DeviceKind, Workload
from engine.units import GIB
from tests.gpu.grid import Configuration

LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Formula:
    """Bytes; `low` to `high` is the process."""

    allocated: float
    reserved: float
    process: float
    low: float
    high: float
    phase: str


def formula(configuration: Configuration, device: DeviceKind = DeviceKind.GPU) -> Formula:
    """The first tier. What a paged optimizer holds is not torch's, and not counted."""
    work = replace(configuration.work, device=device)
    peak = peak_of(work)
    allocated = peak.allocated - (peak.optimizer if configuration.paged else 0.0)
    reserved = allocated * (1 + slack_of(work).likely)
    low, _, high = memory_bounds(work)
    return Formula(allocated, reserved, reserved + base_of(work).likely, low, high, peak.phase)


def longest_sequence(work: Workload, cap_gib: float, *, slack: str = "low") -> int:
    """The longest sequence whose memory stays under the cap, to 64 tokens; 0 for none. "low" counts no holes: torch
    gives them back before it fails."""
    low, high = 0, LONGEST
    while high - low > 64:
        middle = (low + high) // 2
        one = replace(work, sequence=middle)
        share = getattr(slack_of(one), slack)
        low, high = (middle, high) if peak_of(one).allocated * (1 + share) <= cap_gib * GIB else (low, middle)
    return low


def dry_allocated(configuration: Configuration, answer: DryRun) -> float:
    """Bytes that torch would count: the dry run's total and the workspaces."""
    paged = answer.kinds.get("optimizer", 0.0) if configuration.paged else 0.0
    return answer.total - paged + configuration.work.workspace_bytes


class DryRuns:
    """A pool of processes, each of which imports torch once; they leave the accelerator alone."""

    def __init__(self, workers: int) -> None:
        self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quietly)

    def start(self, configuration: Configuration) -> object:
        """A future of JSON: the DryRun, or an error's text."""
        return self._pool.submit(_dry_run, msgspec.json.encode(configuration.rehearsal))

    def close(self) -> None:
        """Drop what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _quietly() -> None:
    os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    os.nice(10)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)


def _dry_run(text: bytes) -> tuple[bytes, str]:
    from engine.rehearsal.dry_run import dry_run

    try:
        answer = dry_run(msgspec.json.decode(text, type=Rehearsal))
        plain = {name: str(version) for name, version in answer.versions.items()}
        return msgspec.json.encode(msgspec.structs.replace(answer, versions=plain)), ""
    except Exception as error:  # one that cannot be traced is a finding, not the end of the others
        return b"", f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
