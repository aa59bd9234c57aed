"""The dry run as callers above the line ask for it: a process that follows the very job on fake tensors.

Owns starting that process, keeping its answers, and turning one into an estimate. Must not know torch: the following is
`engine.rehearsal.dry_run`'s. An answer holds for the job and the versions of the libraries and of our own code that was
followed; it is kept under the hash of all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from engine.advise.fit import calibration_for
from engine.advise.spec_growth import SpecGrowth
from engine.advise.spec_plan import workload_of
from engine.errors import EngineError, ExitCode
from engine.estimate.calibration import Calibration
from engine.estimate.estimate import Estimate, Origin, Part
from engine.estimate.memory import measuring_allocated
from engine.estimate.process import base_parts, process_bounds
from engine.estimate.rehearsal import DryRun, Rehearsal, rehearsal_of
from engine.estimate.workload import DeviceKind, Method, Packing4Bit, Purpose, Workload
from engine.hardware.machine import Machine
from engine.jobs import layout
from engine.jobs.launch import child_environment, module_command
from engine.jobs.spec import JobSpec
from engine.models.architecture import Architecture
from engine.models.config import text_part
from engine.models.resolve import resolve_model
from engine.paths import ensure_writable, state_home

FOLDER = "dry-runs"
MODULE = "engine.rehearsal.dry_run"
LIMIT_SECONDS = 60.0
"""A job that takes longer is traced at its full depth, or the machine is busy; the formula answers at once."""
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
_FOLLOWED = (
    *("rehearsal", "train/model.py", "train/also_trained.py", "train/checkpointing.py"),
    *("evaluation/head.py", "estimate/rehearsal.py"),
)
"""Our own code that decides an answer."""


class _Failure(msgspec.Struct, frozen=True):
    """The words of an EngineError."""

    code: str
    what: str
    cause: str = ""
    next_step: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    """What the process writes instead of an answer."""

    error: _Failure


def dry_run(
    spec: JobSpec,
    architecture: Architecture,
    machine: Machine,
    *,
    trained_share: float = 1.0,
    growth: SpecGrowth | None = None,
) -> Estimate:
    """Process memory in bytes of the device that trains, from following the job; the parts sum to `likely`.

    `trained_share` is the share of positions that carry loss; `growth` what becomes of the model before it is trained.
    Raises EngineError `dry_run.*`, `rehearsal.*`, `model.*`, `hub.*`.
    """
    work = workload_of(spec, architecture, machine, trained_share=trained_share, growth=growth)
    stored = growth.config if growth else resolve_model(spec.model.source, revision=spec.model.revision).config
    config = config_of(stored)
    return estimate_from(dry_run_of(work, config), work, calibration_for(machine))


def config_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's own part of a `config.json`, which says what kind of model it is."""
    whole = dict(tree)
    part, key = text_part(whole)
    if key and not part.get("model_type"):
        return {**part, "model_type": whole.get("model_type", "")}
    return part


def dry_run_of(work: Workload, config: dict[str, Any], *, limit_seconds: float = LIMIT_SECONDS) -> DryRun:
    """Allocated bytes at the peak of a step of `work` on the model that `config` describes, kept or followed now.

    Raises EngineError `dry_run.unsupported`, `dry_run.slow`, `dry_run.died`, and `rehearsal.*` for models that
    transformers cannot build or that cannot be followed without data.
    """
    _require_traceable(work)
    rehearsal = rehearsal_of(work, config)
    path = dry_runs_dir() / f"{_key(rehearsal)}.json"
    known = _kept(path)
    if known is not None:
        return known
    answer = _ask(rehearsal, limit_seconds)
    with contextlib.suppress(EngineError, OSError):  # an answer that cannot be kept is still an answer
        ensure_writable(path.parent)
        layout.write_atomic(path, msgspec.json.format(msgspec.json.encode(answer)) + b"\n")
    return answer


def dry_runs_dir() -> Path:
    """Where answers are kept."""
    return state_home() / FOLDER


def estimate_from(answer: DryRun, work: Workload, calibration: Calibration | None = None) -> Estimate:
    """Process memory: what was followed, cuBLAS workspaces, allocator slack and context, the last two as the formula's.

    What runs here allocated over the formula does not apply: nothing of the formula is in what was followed.
    """
    if calibration is not None:
        calibration = replace(calibration, allocated_factor=None)
    workspaces = float(work.workspace_bytes) if work.device is DeviceKind.GPU else 0.0
    measuring = max(measuring_allocated(work) - answer.total - workspaces, 0.0)
    allocated = answer.total + workspaces + measuring
    low, likely, high = process_bounds(allocated, work, calibration)
    parts = (*_followed_parts(answer, work, workspaces), *base_parts(allocated, work, calibration))
    if measuring:
        text = f"keys and values of {work.measured_tokens:,} tokens, over what a step takes"
        parts = (Part("measuring by length", measuring, text, "formula"), *parts)
    return Estimate(low, likely, high, "bytes", Origin.DRY_RUN, parts)


def _followed_parts(answer: DryRun, work: Workload, workspaces: float) -> tuple[Part, ...]:
    names = ["weights", "adapter", "gradients", "optimizer", "activations", "logits and loss", "temporary buffers"]
    if work.method is not Method.ADAPTER:
        names.remove("adapter")
    if work.purpose is not Purpose.TRAIN:
        names = [name for name in names if name not in ("gradients", "optimizer")]
    source = "followed on fake tensors with " + ", ".join(f"{name} {text}" for name, text in answer.versions.items())
    where = f"at the peak, {_STRETCH_WORDS.get(answer.stretch, answer.stretch)}{_depth_words(answer, work)}"
    parts = []
    for name in names:
        size = answer.kinds.get(name, 0.0)
        text = (where if name == names[0] else "alive then") if size else "not alive at the peak"
        if name == "temporary buffers" and workspaces:
            size, text = size + workspaces, f"{text}; cuBLAS workspaces"
        parts.append(Part(name, size, text, source if name == names[0] else "dry run"))
    return tuple(parts)


_STRETCH_WORDS = {
    "forward": "in the forward pass",
    "loss": "while the loss is computed",
    "top layer": "while the top layer goes backward",
    "bottom layer": "while the bottom layer goes backward",
    "step": "in the optimizer step",
}


def _depth_words(answer: DryRun, work: Workload) -> str:
    if len(answer.depths) < 2:
        return ""
    tried = " and ".join(f"{depth}" for depth in answer.depths)
    return f"; {tried} layers followed, carried on to {work.architecture.layers}"


def _require_traceable(work: Workload) -> None:
    """What the process cannot follow is refused here, by name, instead of answered as something else."""
    beyond = {
        "sharding over several cards": work.shards > 1,
        "a teacher": work.teacher is not None,
        "generation": work.purpose is Purpose.GENERATE,
        "activations that wait in host RAM without gradient checkpointing": work.offload_activations
        and not work.checkpointing,
        "a job that trains nothing": not work.targets and work.purpose is Purpose.EVALUATE,
        "an optimizer in host RAM": work.optimizer_on_host,
        "updates during the backward pass": work.step_in_backward,
        "GPTQ weights": work.packing is Packing4Bit.GPTQ,
        "new blocks beside 4-bit weights": work.packed and work.method is Method.NEW_BLOCKS,
    }
    for what, asked in beyond.items():
        if asked:
            raise EngineError(
                "dry_run.unsupported",
                f"A dry run cannot follow {what}.",
                next_step="Leave --dry-run out: the formula covers it.",
            )


# ── keeping ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _key(rehearsal: Rehearsal) -> str:
    parts = [msgspec.json.encode(rehearsal, order="sorted")]
    parts += [f"{name} {_version(name)}".encode() for name in _LIBRARIES]
    parts.append(_own_code())
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:32]


@cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


@cache
def _own_code() -> bytes:
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for name in _FOLLOWED:
        path = package / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            with contextlib.suppress(OSError):
                digest.update(file.read_bytes())
    return digest.digest()


def _kept(path: Path) -> DryRun | None:
    """A readable answer; a damaged one counts as none and is written anew."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DryRun)
    except (OSError, msgspec.MsgspecError):
        return None


# ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _ask(rehearsal: Rehearsal, limit_seconds: float) -> DryRun:
    try:
        done = subprocess.run(
            module_command(MODULE),
            input=msgspec.json.encode(rehearsal),
            capture_output=True,
            env={**child_environment(), "CUDA_VISIBLE_DEVICES": ""},
            timeout=limit_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            "dry_run.slow",
            f"The dry run was not done within {limit_seconds:g} s.",
            cause="Every layer of this model differs, or the machine is busy.",
            next_step="Leave --dry-run out: the formula's estimate stands.",
            exit_code=ExitCode.RUN_FAILED,
        ) from error
    try:
        return msgspec.json.decode(done.stdout, type=DryRun)
    except msgspec.MsgspecError:
        raise _refusal(done) from None


def _refusal(done: subprocess.CompletedProcess[bytes]) -> EngineError:
    try:
        failed = msgspec.json.decode(done.stdout, type=_Refusal).error
    except msgspec.MsgspecError:
        last = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()][-1:]
        cause = "".join(last).strip()[:300]
        if done.returncode < 0:
            cause = f"It was ended by signal {-done.returncode}; 9 is the kernel short of memory."
        return EngineError(
            "dry_run.died",
            "The dry run ended without an answer.",
            cause=cause,
            next_step="The formula's estimate stands.",
            exit_code=ExitCode.RUN_FAILED,
        )
    return EngineError(failed.code, failed.what, cause=failed.cause, next_step=failed.next_step)
