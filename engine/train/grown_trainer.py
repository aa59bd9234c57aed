"""The Trainer for whole weights: own groups and schedules, checkpoints that hold what learns, old entries that join.

Owns the subclass. Must not know stages or folders' names. `_load_from_checkpoint` is the one private method of
transformers' Trainer that is replaced (it insists on a complete model); `tests/train/test_grown_training.py` fails when
it is called no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from engine.evaluation.model import LoadedModel
from engine.jobs.spec import Optimizer, TrainingSection
from engine.schedule.rates import rate_curve, unfreeze_step
from engine.train.grown_model import GrownModel
from engine.train.grown_optimizer import GrownAdamW, new_rate, parameter_groups
from engine.train.parts import Kind
from engine.train.trained_weights import load_trained, save_trained
from engine.train.trainer import TokenTrainer

if TYPE_CHECKING:
    from engine.distributed.parallel import Parallel

Moments = Mapping[str, Mapping[str, Tensor]]
"""Parameter name -> optimizer state as `GrownAdamW` keeps it: moments of the stage before, grown."""


class GrownTrainer(TokenTrainer):
    """Trains the parameters of a `GrownModel` as its parts ask for."""

    def __init__(
        self,
        loaded: LoadedModel,
        dataset: Dataset[Any],
        arguments: TrainingArguments,
        grown: GrownModel,
        training: TrainingSection,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__(loaded, dataset, arguments, training, parallel=parallel)
        self.grown = grown
        self.carried: Moments = {}
        self.grown_optimizer: GrownAdamW | None = None
        self.add_callback(_Joining(self))

    @property
    def old_from(self) -> int:
        """Step at which old entries join; 0 where they learn from the start, or never."""
        return unfreeze_step(self.training, self.state.max_steps) if self.grown.joins_later else 0

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Groups by part; the moments of the stage before where they were carried."""
        if self.optimizer is not None:
            return self.optimizer
        grown, training = self.grown, self.training
        named = list(grown.ever_learning())
        first = Kind.OLD if grown.task == "full" else Kind.NEW
        decayed = self.get_decay_parameter_names(grown.model)
        groups = parameter_groups(named, grown.parts, decayed, training, first=first)
        if training.optimizer is Optimizer.ADAMW:
            mixed = {id(p): grown.parts[n] for n, p in named if grown.parts[n].kind is Kind.MIXED}
            self.optimizer = self.grown_optimizer = GrownAdamW(groups, mixed, training.learning_rate)
            self._take_along(dict(named))
        else:
            self.optimizer = self._eight_bit(groups)
        return self.optimizer

    def _eight_bit(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """bitsandbytes' AdamW keeps one scale per block, so a widened matrix has one rate: that of new parameters."""
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.grown.model)
        for group in groups:
            if group["part"] == Kind.MIXED:
                group["part"], group["lr"] = Kind.NEW.value, new_rate(self.training)
        optimizer: torch.optim.Optimizer = kind([group for group in groups if group["params"]], **settings)
        return optimizer

    def _take_along(self, named: Mapping[str, nn.Parameter]) -> None:
        assert self.grown_optimizer is not None
        for name, state in self.carried.items():
            parameter = named.get(name)
            if parameter is not None:
                kept = {key: value.to(parameter.device, torch.float32) for key, value in state.items()}
                self.grown_optimizer.state[parameter] = kept
        self.carried = {}

    def rate_factors(self, steps: int) -> list[Callable[[int], float]]:
        """A factor per part: only new parameters warm up again, old ones begin when they join."""
        assert self.optimizer is not None
        joins = unfreeze_step(self.training, steps) if self.grown.joins_later else 0
        curve = rate_curve(self.training, steps, old_from=joins)
        parts = [group["part"] for group in self.optimizer.param_groups]
        return [curve.new_factor if part == Kind.NEW else curve.factor for part in parts]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What learns, and nothing that the model's own files hold already."""
        assert output_dir is not None
        save_trained(Path(output_dir), self.grown.ever_learning())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.parallel is not None and self.parallel.company.shards:
            return  # read by all ranks together, once there is an optimizer (`engine.train.ranked_loop`)
        load_trained(Path(resume_from_checkpoint), self.grown.ever_learning())


class _Joining(TrainerCallback):
    """Holds old entries still until they join: no gradient, no decay, no moment."""

    def __init__(self, trainer: GrownTrainer) -> None:
        self._trainer = trainer
        self._waiting: bool | None = None
        self._hooks: list[Any] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Looked at before every step, so that a resume anywhere finds the same."""
        trainer = self._trainer
        if trainer.grown.task != "new_coordinates":
            return
        waiting = not trainer.grown.joins_later or state.global_step < trainer.old_from
        if waiting != self._waiting:
            self._waiting = waiting
            if waiting:
                self._hold()
            else:
                self._join()

    def _hold(self) -> None:
        grown = self._trainer.grown
        for name, parameter in grown.learning():
            part = grown.parts[name]
            if part.kind is Kind.MIXED:
                hook = parameter.register_post_accumulate_grad_hook(_only_new(part))  # type: ignore[no-untyped-call]
                self._hooks.append(hook)
        if self._trainer.grown_optimizer is not None:
            self._trainer.grown_optimizer.old_waits = True

    def _join(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        for _, parameter in self._trainer.grown.ever_learning():
            parameter.requires_grad_(True)
        if self._trainer.parallel is not None:
            self._trainer.parallel.more_learns()
        if self._trainer.grown_optimizer is not None:
            self._trainer.grown_optimizer.old_waits = False


def _only_new(part: Any) -> Callable[[Tensor], None]:
    """Zeroes the gradient of old entries, so that it counts neither in the update nor in the norm that is clipped."""

    def mask(parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(~part.new_entries(parameter.grad), 0.0)

    return mask
