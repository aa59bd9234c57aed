"""Which parameters the patterns of training.trainable mean, and how much less they take than all.

Owns the matching by stored names. Must not know tensors in memory: the worker matches the loaded model's own names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from engine.errors import EngineError
from engine.estimate.estimate import Estimate
from engine.jobs.spec import JobSpec
from engine.models.headers import read_headers
from engine.models.source import ModelRef

TIED_HEAD = "lm_head.weight"
_LEARNING = ("gradients", "optimizer")
"""Parts of a memory estimate that only what learns has."""


def trained_share(patterns: Sequence[str], ref: ModelRef, *, key: str = "training.trainable") -> float:
    """Share of the model's parameters that the patterns mean; 1 where its names are not here.

    Raises EngineError `spec.trainable`, with `key`, for a pattern that means none.
    """
    if not patterns or ref.path is None or not ref.has_weights:
        return 1.0
    sizes = {tensor.name: math.prod(tensor.shape) for tensor in read_headers(ref.path).tensors}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in (*sizes, TIED_HEAD)):
            raise EngineError(
                "spec.trainable",
                f'{key} = "{pattern}" is the name of no parameter of {ref.name}.',
                cause=f"Parameters are called as {_examples(sizes)}.",
                next_step='Patterns match whole names: "*.mlp.*", "model.layers.3.*", "*norm*".',
                key=key,
            )
    meant = sum(size for name, size in sizes.items() if any(fnmatchcase(name, pattern) for pattern in patterns))
    return meant / sum(sizes.values())


def check_trainable(spec: JobSpec, ref: ModelRef) -> None:
    """The patterns of every stage. Raises EngineError `spec.trainable`. Layers that growth adds later are not known
    here, and a pattern for them alone is refused by the worker only."""
    if spec.grows:
        return
    for number, stage in enumerate(spec.staged(), 1):
        own = bool(spec.stages) and spec.stages[number - 1].trainable is not None
        trained_share(stage.training.trainable, ref, key=f"stages[{number}].trainable" if own else "training.trainable")


def with_share(memory: Estimate, share: float) -> Estimate:
    """The memory when only a share of the parameters learns."""
    if share >= 1.0:
        return memory
    saved = sum(part.amount for part in memory.breakdown if part.name in _LEARNING) * (1 - share)
    parts = tuple(
        replace(part, amount=part.amount * share, formula=f"{part.formula}; {share:.0%} of them learn")
        if part.name in _LEARNING
        else part
        for part in memory.breakdown
    )
    low, likely, high = memory.low - saved, memory.likely - saved, memory.high - saved
    return Estimate(max(low, 0.0), likely, high, memory.unit, memory.origin, parts)


def _examples(sizes: dict[str, int]) -> str:
    names = list(sizes)
    return ", ".join(dict.fromkeys((names[0], names[len(names) // 2], names[-1])))
