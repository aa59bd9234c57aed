"""What happens at the end of a step on several ranks: the leader decides, the followers do the same.

    leader      step ─► alone: journal, evaluate, obey ─► decision ─┬─► save together (fsdp2) or alone (ddp) ─► step
    followers   step ─► wait; empty passes (fsdp2) ─────────────────┴─► save together (fsdp2) ────────────────► step

Owns the decision's form, the followers' callback, and checkpoints that all ranks write. Must not know what the leader
decides by (`engine.train.loop`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from transformers import TrainerCallback

from engine.distributed import sharded
from engine.distributed.parallel import Parallel
from engine.train.checkpointing import Resume, trainer_output
from engine.train.ranked import pieces_wanted
from engine.train.trainer import TokenTrainer

SCHEDULER = "scheduler.pt"
STATE = "trainer_state.json"


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the leader knows of a training when it begins, and every rank must have the same."""

    first_step: int
    pieces: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What all ranks do after a step."""

    stop: bool
    save_together: bool


class ShardedTraining:
    """The Trainer's state as shards: written and read by all ranks at once."""

    def __init__(self, run_dir: Path, trainer: Any, parallel: Parallel) -> None:
        self._run_dir = run_dir
        self._trainer = trainer
        self._parallel = parallel

    def _named(self) -> dict[str, nn.Parameter]:
        return {name: one for name, one in self._parallel.model.named_parameters() if one.requires_grad}

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self._trainer.optimizer
        plain: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
        return plain

    def save(self) -> None:
        """Into the folder that `engine.train.checkpointing.take_over` takes."""
        state, company = self._trainer.state, self._parallel.company
        company.life.doing(f"step {self._trainer.first_step + state.global_step}: saving", slow=True)
        folder = trainer_output(self._run_dir) / f"checkpoint-{state.global_step}"
        if company.leads:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self._trainer.lr_scheduler.state_dict(), folder / SCHEDULER)
            state.save_to_json(str(folder / STATE))
        dist.barrier(group=company.control)
        sharded.save(company, folder, self._named(), self._optimizer())

    def load(self, folder: Path) -> None:
        """Parameters, moments and rates, as they were; for the first step of another attempt."""
        optimizer = self._optimizer()
        sharded.load(self._parallel.company, folder, self._named(), optimizer)
        scheduler = self._trainer.lr_scheduler
        scheduler.load_state_dict(torch.load(folder / SCHEDULER, map_location="cpu", weights_only=True))
        sharded.restore_rates(optimizer, scheduler.get_last_lr())

    def load_parameters(self, folder: Path) -> None:
        """What was trained, where no step is left."""
        sharded.load(self._parallel.company, folder, self._named(), None)


class Leading:
    """What the leader's callback adds to a step's end; `engine.train.loop` calls it."""

    def __init__(
        self, training: ShardedTraining, trainer: TokenTrainer, parallel: Parallel, resume: Resume | None
    ) -> None:
        self._training = training
        self._trainer = trainer
        self._parallel = parallel
        self._company = parallel.company
        self._resume = resume

    @property
    def shards(self) -> bool:
        return self._company.shards

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Around the whole training: all ranks begin it together, and after it the leader works alone."""
        self._parallel.go()
        _begin_together(self._trainer, self._parallel)
        yield
        self._company.alone()

    def load_trained(self) -> None:
        """What was trained to the end, with all ranks."""
        assert self._resume is not None
        self._parallel.go()
        self._training.load_parameters(self._resume.path)
        self._company.alone()

    def pieces(self, before: int) -> int:
        """In how many micro-batches are computed from here on; `before`: as a checkpoint says."""
        return max(before, pieces_wanted())

    def begin(self) -> None:
        """All ranks are about to train."""
        if self._resume is not None and self.shards:
            self._training.load(self._resume.path)

    def step_is_done(self, step: int) -> None:
        """From here on the leader works alone."""
        self._company.life.doing(f"step {step} is done", step=step, slow=True)
        self._company.alone()

    def decide(self, *, stop: bool, save: bool) -> bool:
        """Tell the others; whether all save together now."""
        together = save and self.shards
        self._parallel.go()
        self._company.tell(Decision(stop=stop, save_together=together))
        return together

    def save(self) -> None:
        """With the others."""
        self._training.save()


def leading_of(run_dir: Path, trainer: TokenTrainer, resume: Resume | None) -> Leading | None:
    """None for a worker alone."""
    if trainer.parallel is None:
        return None
    return Leading(ShardedTraining(run_dir, trainer, trainer.parallel), trainer, trainer.parallel, resume)


class Following(TrainerCallback):
    """The callback of every rank but the first."""

    def __init__(
        self, training: ShardedTraining, trainer: TokenTrainer, parallel: Parallel, resume: Resume | None
    ) -> None:
        self._training = training
        self._trainer = trainer
        self._parallel = parallel
        self._resume = resume

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """As the leader's: a checkpoint holds the rates of before a setback."""
        if self._resume is not None and self._parallel.company.shards:
            self._training.load(self._resume.path)
        self._trainer.renew_rates()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """`on_log` follows at once."""
        control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> Any:
        """Wait for the leader's decision, and do as it says."""
        if logs is None or "loss" not in logs:
            return control  # the Trainer's summary at the end
        state.log_history.clear()
        self._parallel.go()
        decision: Decision = self._parallel.company.tell(Decision(stop=False, save_together=False))
        if decision.save_together:
            with contextlib.suppress(CheckpointException):  # the leader has it too, and ends the run
                self._training.save()
        control.should_training_stop = control.should_training_stop or decision.stop
        return control


def _begin_together(trainer: TokenTrainer, parallel: Parallel) -> None:
    """The leader's numbers on every rank: shares of a step and what dropout draws follow from them. A collective."""
    told = parallel.company.tell(Beginning(trainer.first_step, trainer.pieces))
    trainer.first_step, trainer.pieces = told.first_step, told.pieces
    parallel.company.life.computes_in(told.pieces)


def follow_training(run_dir: Path, trainer: TokenTrainer, parallel: Parallel, resume: Resume | None) -> None:
    """A follower's part in a training: wait until the leader begins, train, and be at the leader's service again."""
    complete = resume is not None and resume.progress.complete
    if complete and not parallel.company.shards:
        return  # the leader reads what was trained by itself
    parallel.go()
    training = ShardedTraining(run_dir, trainer, parallel)
    if resume is not None and complete:
        return training.load_parameters(resume.path)
    _begin_together(trainer, parallel)
    trainer.add_callback(Following(training, trainer, parallel, resume))
    trainer.train(resume_from_checkpoint=str(resume.path) if resume is not None else None)
