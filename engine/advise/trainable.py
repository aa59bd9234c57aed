"""Which parameters the patterns of training.trainable mean, and how much less they take than all.

Owns the matching by stored names. Must not know tensors in memory: the worker matches the loaded model's own names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from engine.errors import EngineError
from engine.estimate.estimate import Estimate
from engine.expansion.axes import Dim
from engine.expansion.layouts.registry import layout_for
from engine.expansion.sizes import config_inventory
from engine.jobs.spec import JobSpec
from engine.models.headers import read_headers
from engine.models.source import ModelRef

TIED_HEAD = "lm_head.weight"
_LEARNING = ("gradients", "optimizer")
"""Parts of a memory estimate that only what learns has."""


def trained_share(
    patterns: Sequence[str],
    ref: ModelRef,
    *,
    key: str = "training.trainable",
    grown: Mapping[str, Any] | None = None,
) -> float:
    """Share of the model's parameters that the patterns mean; 1 where its names are not here. `grown` is the config of
    what growth makes of the model before it learns.

    Raises EngineError `spec.trainable`, with `key`, for a pattern that means none.
    """
    if not patterns or ref.path is None or not ref.has_weights:
        return 1.0
    stored = {tensor.name: math.prod(tensor.shape) for tensor in read_headers(ref.path).tensors}
    sizes = stored if grown is None else grown_sizes(grown, ref.name)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in (*sizes, *stored, TIED_HEAD)):
            raise EngineError(
                "spec.trainable",
                f'{key} = "{pattern}" is the name of no parameter of {ref.name}'
                f"{'.' if grown is None else ', nor of what it has grown to by then.'}",
                cause=f"Parameters are called as {_examples(sizes)}.",
                next_step='Patterns match whole names: "*.mlp.*", "model.layers.3.*", "*norm*".',
                key=key,
            )
    meant = sum(size for name, size in sizes.items() if any(fnmatchcase(name, pattern) for pattern in patterns))
    return meant / sum(sizes.values())


def grown_sizes(config: Mapping[str, Any], name: str) -> dict[str, int]:
    """The parameters that a model with this config stores, and how large each is. Raises EngineError `expansion.*`."""
    layout = layout_for(config, name)
    dims, sizes = layout.dims, dict[str, int]()
    for holding in config_inventory(layout, config).holdings:
        rule = holding.rule
        size = math.prod(holding.extents)
        layers = sorted(holding.layers) if holding.layers is not None else (0,)
        experts = range(dims.of(Dim.EXPERT) if "{e}" in rule.pattern else 1)
        heads = range(dims.of(rule.counted) if rule.counted is not None else 1)
        for layer, expert, head in product(layers, experts, heads):
            sizes[rule.pattern.format(i=layer, e=expert, h=head)] = size
    return sizes


def check_trainable(spec: JobSpec, ref: ModelRef) -> None:
    """The patterns of every stage before the first growth. Raises EngineError `spec.trainable`. Those of later stages
    are held against the grown model, where that is planned."""
    for number, stage in enumerate(spec.staged(), 1):
        if stage.expansion.grows:
            return
        trained_share(stage.training.trainable, ref, key=key_of(spec, number))


def key_of(spec: JobSpec, number: int) -> str:
    """Where the patterns of a stage, counted from 1, are set."""
    own = bool(spec.stages) and spec.stages[number - 1].trainable is not None
    return f"stages[{number}].trainable" if own else "training.trainable"


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
