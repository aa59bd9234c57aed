"""The worker as one of several processes: how it joins the others, which strategy they use, how it gives up.

Owns the choice between copies and shards, what is refused, and the words of a rank that fails. Must not know the loop.
Imported by workers that are ranks only; torch is there by then.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.distributed.company import Company, is_peer_lost, meet
from engine.distributed.life import Life
from engine.errors import EngineError, ExitCode
from engine.jobs import events as ev
from engine.jobs import ranks
from engine.jobs.crew import PIECES
from engine.jobs.spec import ContextSection, JobSpec, Optimizer, Task
from engine.models.source import ModelRef
from engine.train.checkpointing import Resume
from engine.train.environment import Device
from engine.train.failure import explain
from engine.train.pieces import StepOutOfMemory

if TYPE_CHECKING:
    from engine.distributed.parallel import Parallel
    from engine.train.attempt import Attempt

DDP, FSDP2 = "ddp", "fsdp2"
_SHARDED_TASKS = (Task.LORA, Task.QLORA, Task.FULL)
_NEEDED_SHARE = 0.75
"""Of a card's memory: what may be weights, gradients and moments; the rest is for activations."""


def pieces_wanted() -> int:
    """In how many pieces micro-batches are computed since memory ran out on some rank."""
    return max(int(os.environ.get(PIECES, "1") or 1), 1)


def join(run_dir: Path, life: Life, device: Device) -> Company:
    """Meet the others. Raises EngineError `ranks.*`."""
    return meet(life.place, life, run_dir, device=device.torch_device, device_name=device.name, strategy=DDP)


def agree(company: Company, spec: JobSpec, resume: Resume | None) -> Resume | None:
    """The leader's strategy and checkpoint, on every rank. Raises EngineError `ranks.not_sharded`,
    `ranks.nothing_to_divide`."""
    if not any(stage.task.trains for stage in spec.staged()):
        raise EngineError(
            "ranks.nothing_to_divide",
            f'A job with task = "{spec.task.value}" has no steps that {company.world} processes could divide.',
            next_step="Start it with one process.",
            exit_code=ExitCode.RUN_FAILED,
        )
    wanted = spec.distributed.strategy
    if resume is not None:
        wanted = FSDP2 if resume.is_sharded else DDP
    company.strategy = company.tell(wanted)
    if company.strategy == FSDP2:
        refuse_shards(spec)
    return company.tell(resume)


def settle(attempt: Attempt, ref: ModelRef) -> None:
    """Of "auto": copies where a card holds one, else shards. A collective; then the journal says who has met."""
    company, spec = attempt.company, attempt.spec
    if company is None:
        return
    if company.strategy == "auto":
        company.strategy = company.tell(DDP if _fits(spec, ref, attempt.device) or _reason(spec) else FSDP2)
    attempt.journal.write(
        ev.Ranks(
            t=time.time(),
            world=company.world,
            strategy=company.strategy,
            backend=company.backend,
            hosts=company.hosts,
            devices=company.devices,
        )
    )


def _fits(spec: JobSpec, ref: ModelRef, device: Device) -> bool:
    """Weights, and of what learns gradients and two moments in float32, against the card's memory."""
    if not device.is_cuda or ref.path is None:
        return True
    import torch

    from engine.models.headers import read_headers

    parameters = sum(tensor.elements for tensor in read_headers(ref.path).tensors)
    each_bytes = 16.0 if spec.task is Task.FULL else 2.0 if spec.quantization_kind == "none" else 0.6
    return parameters * each_bytes <= _NEEDED_SHARE * torch.cuda.get_device_properties(0).total_memory


def _reason(spec: JobSpec) -> str:
    """Why this job cannot be sharded; empty where it can."""
    if spec.task not in _SHARDED_TASKS or spec.grows:
        return "Weights that were grown are trained with step counts per entry, which shards do not keep."
    if spec.stages:
        return "Between stages the optimizer's moments go along as whole tensors."
    if spec.training.optimizer is not Optimizer.ADAMW:
        return "bitsandbytes' optimizers keep one scale per block of a whole tensor."
    if spec.context != ContextSection():
        return "Windows are trained and measured with the whole model at hand."
    return ""


def refuse_shards(spec: JobSpec) -> None:
    """Raises EngineError `ranks.not_sharded`."""
    reason = _reason(spec)
    if reason:
        raise EngineError(
            "ranks.not_sharded",
            f'task = "{spec.task.value}" of this spec cannot be trained with distributed.strategy = "fsdp2".',
            cause=reason,
            next_step='Set distributed.strategy = "ddp": every card then holds the whole model.',
            exit_code=ExitCode.RUN_FAILED,
        )


def base_device(attempt: Attempt) -> str:
    """Where a base model is loaded: a card need not hold the whole of what it will have a share of."""
    company = attempt.company
    sharded = company is not None and company.shards and attempt.spec.quantization_kind == "none"
    return "cpu" if sharded else attempt.device.torch_device


def parallel_of(attempt: Attempt, model: Any, base: Any) -> Parallel | None:
    """The model on all ranks, a collective; None for a worker alone."""
    from engine.distributed.parallel import Copies, Shards

    company, device = attempt.company, attempt.device
    if company is None:
        return None
    company.life.doing(f"placing the model ({company.strategy})", slow=True)
    if company.shards:
        offload = attempt.spec.distributed.cpu_offload
        return Shards(company, model, base, device=device.torch_device, dtype=device.compute_dtype, offload=offload)
    return Copies(company, model, base, device=device.torch_device, dtype=device.compute_dtype)


def give_up(error: BaseException) -> ranks.Failure:
    """The last words of a rank, for the runner. Smaller pieces help where memory ran out in a step, and only there."""
    if not isinstance(error, EngineError) and is_peer_lost(error):
        text = " ".join(str(error).split())[:300]
        return ranks.Failure(kind=ranks.PEER, what="The connection to another process was lost.", cause=text)
    in_step = isinstance(error, StepOutOfMemory)
    words = explain(error.__cause__ or error if in_step else error)
    kind = ranks.MEMORY if in_step else ranks.ERROR
    return ranks.Failure(kind=kind, what=words.what, cause=words.cause, next_step=words.next_step)
