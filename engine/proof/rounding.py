"""Tensors whose stored type had to round them, with the values they would have had.

Owns deciding which tensors those are and evaluating them from their recipes. Must not know models. Every replaced row
is first held against the stored one: a stored number further away than rounding explains is an error, not a rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.errors import EngineError, ExitCode
from engine.expansion.certificate import Certificate
from engine.expansion.maps import Fill
from engine.expansion.plan_io import plan_from_tree
from engine.expansion.recipe import Recipe
from engine.models.headers import Headers
from engine.surgery.evaluate import Evaluator
from engine.surgery.order import prepare
from engine.surgery.planes import Slice
from engine.surgery.reader import TensorReader
from engine.surgery.shards import DEFAULT_SHARD_BYTES

UNIT = {"BF16": 2.0**-8, "F16": 2.0**-10, "F32": 2.0**-23}
"""Largest relative error of rounding to nearest, doubled: the computation before it may have rounded once more."""
SMALLEST = {"BF16": 1e-38, "F16": 1.2e-7, "F32": 1e-38}
"""Below it a stored number has lost digits."""


class UnroundedTensors:
    """The tensors of a grown model that were rounded when they were stored."""

    def __init__(self, recipes: Mapping[str, Recipe], source: Headers, seed: int) -> None:
        self._reader = TensorReader(source.tensors)
        self._recipes = recipes
        self._seed = seed
        self._evaluators: dict[str, Evaluator] = {}

    def names(self) -> frozenset[str]:
        """Which tensors."""
        return frozenset(self._recipes)

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows `begin` to `end` before rounding, float32 or float64."""
        if name not in self._evaluators:
            self._evaluators = {name: Evaluator(self._recipes[name], self._reader, self._seed)}
        evaluator, shape = self._evaluators[name], self._recipes[name].shape
        row = math.prod(shape[1:])
        planes, rows, columns = evaluator.planes.new
        if planes > 1:
            parts = [Slice(plane, 0, rows) for plane in range(begin, end)]
        else:
            each = row // columns  # 1; a row of a plain copy is as many rows of one column
            parts = [Slice(0, begin * each, end * each)]
        values = np.concatenate([evaluator.values(part) for part in parts])
        return torch.from_numpy(np.ascontiguousarray(values)).reshape(end - begin, *shape[1:])

    def check(self, name: str, stored: Tensor, unrounded: Tensor) -> None:
        """Raises EngineError `proof.not_as_planned` when the stored rows are not the unrounded ones, rounded."""
        dtype = self._recipes[name].dtype
        allowed = unrounded.abs() * UNIT[dtype] + SMALLEST[dtype]
        wrong = (stored.to(unrounded.dtype) - unrounded).abs() > allowed
        if bool(wrong.any()):
            raise EngineError(
                "proof.not_as_planned",
                f"'{name}' is not what the plan makes of the source: {int(wrong.sum())} of {wrong.numel()} numbers.",
                cause="The file was changed after it was written, or written by another version.",
                exit_code=ExitCode.RUN_FAILED,
            )

    def close(self) -> None:
        """Close the source's files."""
        self._reader.close()


def unrounded_tensors(
    source_dir: Path, certificate: Certificate, source: Headers, grown: Headers
) -> UnroundedTensors | None:
    """None where storage rounded nothing, or the certificate holds no plan (and then a stored tensor is all there is).

    Raises EngineError `expansion.*`, `surgery.*` when the plan does not fit the source.
    """
    if not certificate.plan:
        return None
    plan = plan_from_tree(certificate.plan)
    recipes = prepare(source_dir, plan, DEFAULT_SHARD_BYTES).recipes
    stored = {tensor.name for tensor in grown.tensors}
    dtypes = {tensor.name: tensor.dtype for tensor in source.tensors}
    rounded = {recipe.name: recipe for recipe in recipes if recipe.name in stored and storage_rounds(recipe, dtypes)}
    return UnroundedTensors(rounded, source, plan.seed) if rounded else None


def storage_rounds(recipe: Recipe, source_dtypes: Mapping[str, str]) -> bool:
    """Whether the recipe's copied values may need more digits than its stored type has."""
    if recipe.constant is not None or any(source.made for source in recipe.sources) or not recipe.sources:
        return False
    widest = max((_digits(source_dtypes.get(source.name, "F32")) for source in recipe.sources), default=0)
    own = _digits(recipe.dtype)
    if own < widest:
        return True
    if own >= _digits("F32"):
        return False
    runs = [run for axis in recipe.maps for run in axis if run.fill in (Fill.COPY, Fill.MEAN)]
    blended = len(recipe.sources) > 1 and not any(run.source for run in runs)
    computed = any(run.fill is Fill.MEAN or run.noise for run in runs) or bool(recipe.noise) or bool(recipe.shift)
    factors = [recipe.scale, *(run.scale for run in runs), *(source.weight for source in recipe.sources)]
    return blended or computed or not all(_is_power_of_two(factor) for factor in factors)


def _is_power_of_two(factor: float) -> bool:
    return math.frexp(abs(factor))[0] == 0.5


def _digits(dtype: str) -> int:
    return {"BF16": 8, "F16": 11, "F32": 24, "F64": 53}.get(dtype, 24)
