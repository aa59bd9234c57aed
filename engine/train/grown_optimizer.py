"""AdamW for parameters that hold old and new entries: two learning rates, two step counts, and old entries that wait.

Owns the update rule and the parameter groups. Must not know models beyond names, nor the loop.

Parameters that are wholly old or wholly new take torch's own fused AdamW. A widened matrix takes the same formula
(Loshchilov & Hutter, arXiv 1711.05101) with rate and bias correction chosen per entry:

    m <- m + (1 - b1)(g - m)     v <- v + (1 - b2)(g^2 - v)
    p <- p - lr wd p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)         lr, t: of old or of new entries

Own step counts matter: the moments of new entries begin at zero when those of old ones may be thousands of steps old.
With a shared count, a first step would be up to (1 - b1) / sqrt(1 - b2) = 3 times too long, later ones 6 times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from engine.jobs.spec import TrainingSection
from engine.train.parts import Kind, Part

BETAS = (0.9, 0.999)
EPSILON = 1e-8
STEP, NEW_STEP = "step", "new_step"


class GrownAdamW(AdamW):
    """Groups carry `part` ("old", "new", "mixed"); a mixed group's `lr` is that of old entries."""

    def __init__(self, groups: Iterable[dict[str, Any]], parts: Mapping[int, Part], lr: float) -> None:
        super().__init__(groups, lr=lr, betas=BETAS, eps=EPSILON, fused=True)
        self._parts = parts
        """id of a mixed parameter -> its part."""
        self.old_waits = False
        """Old entries of mixed parameters stay as they are, to the bit, and so do their moments."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update. Wholly old and new parameters by torch, mixed ones here."""
        held: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            if group["part"] == Kind.MIXED:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        held.append((parameter, parameter.grad))
                        parameter.grad = None
        loss: float | None = super().step(closure)
        for parameter, gradient in held:
            parameter.grad = gradient
        new_lr = next((float(group["lr"]) for group in self.param_groups if group["part"] == Kind.NEW), 0.0)
        for group in self.param_groups:
            if group["part"] == Kind.MIXED:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update_mixed(parameter, group, new_lr)
        return loss

    def _update_mixed(self, parameter: Tensor, group: dict[str, Any], new_lr: float) -> None:
        state = self.state[parameter]
        if not state:
            state.update(fresh_state(parameter))
        new = self._parts[id(parameter)].new_entries(parameter)
        old_lr = 0.0 if self.old_waits else float(group["lr"])
        state[NEW_STEP] += 1
        if not self.old_waits:
            state[STEP] += 1
        first, second, gradient = state["exp_avg"], state["exp_avg_sq"], parameter.grad
        assert gradient is not None
        (beta1, beta2), waits = group["betas"], self.old_waits
        _towards(first, gradient, 1 - beta1, new if waits else None)
        _towards(second, gradient * gradient, 1 - beta2, new if waits else None)
        times = max(int(state[STEP]), 1), int(state[NEW_STEP])
        correct1 = [1 - beta1**t for t in times]
        correct2 = [math.sqrt(1 - beta2**t) for t in times]
        denominator = (second.sqrt() / torch.where(new, correct2[1], correct2[0])).add_(group["eps"])
        moved = parameter * (1 - torch.where(new, new_lr, old_lr) * group["weight_decay"])
        moved -= torch.where(new, new_lr / correct1[1], old_lr / correct1[0]) * first / denominator
        parameter.copy_(torch.where(new, moved, parameter) if waits else moved)


def _towards(moment: Tensor, value: Tensor, share: float, where: Tensor | None) -> None:
    """moment <- moment + share (value - moment), only where `where` holds."""
    difference = (value - moment).mul_(share)
    moment.add_(difference if where is None else difference.mul_(where))


def fresh_state(parameter: Tensor) -> dict[str, Tensor]:
    """Moments of zero, before the first step."""
    return {
        STEP: torch.zeros((), dtype=torch.float32),
        NEW_STEP: torch.zeros((), dtype=torch.float32),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    parts: Mapping[str, Part],
    decayed: Iterable[str],
    training: TrainingSection,
    *,
    first: Kind,
) -> list[dict[str, Any]]:
    """Groups by part and by weight decay; the first one's rate is what the journal shows. Every part has a group, if
    an empty one, so that its rate is there to be read."""
    decayed = set(decayed)
    rates = {Kind.OLD: training.learning_rate, Kind.NEW: new_rate(training), Kind.MIXED: training.learning_rate}
    found: dict[tuple[Kind, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        found.setdefault((parts[name].kind, name in decayed), []).append(parameter)
    order = sorted(Kind, key=lambda kind: (kind is not first, kind.value))
    return [
        {
            "params": found.get((kind, decays), []),
            "part": kind.value,
            "lr": rates[kind],
            "weight_decay": training.weight_decay if decays else 0.0,
        }
        for kind in order
        for decays in (True, False)
        if (kind, decays) in found or (not decays and kind is not Kind.MIXED)
    ]


def new_rate(training: TrainingSection) -> float:
    """Peak learning rate of new parameters."""
    return training.new_learning_rate or training.learning_rate
