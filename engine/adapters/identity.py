"""The self-test: one adapter alone gives itself back, at weight 1 whole and at weight 0.5 half.

Owns the comparison of two adapters. The mix is really written, read again as any adapter is, and held against the
original, update by update; peft's own function for mixing is off by 0.14 to 0.83 here for rsLoRA, DoRA, PiSSA and
biases.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from engine.adapters.base import Base
from engine.adapters.changes import Change, Factors, load_change, load_factors
from engine.adapters.factors import product_norm
from engine.adapters.folder import AdapterFolder, read_adapter
from engine.adapters.methods import InMemory, RowSource, chunks
from engine.adapters.mix import MixRequest, write_mix
from engine.adapters.mix_compute import Squares
from engine.adapters.mix_plan import changes_of
from engine.adapters.recipe import Share
from engine.adapters.tensors import read_float, read_rows
from engine.adapters.update import bias_of

TOLERANCE = 1e-5
"""Of the Frobenius norm of every tensor's update."""
_ROUNDING = 1e-6
"""Of the norm of the base's tensor, where an update is a difference to it."""
_WEIGHTS = (1.0, 0.5)
"""At 1 what is put together wrongly may still come out right: the result is the adapter's own copy."""


class IdentityReport(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter against what mixing makes of it alone."""

    adapter: str
    kind: str
    tensors: int
    relative_error: float
    """Frobenius norm of the difference over that of the update, all tensors together."""
    worst_tensor: str
    worst_error: float
    passed: bool


def identity_report(share: Share, base: Base | None, beside: Path | None = None) -> IdentityReport:
    """The worse of what two weights give. `beside`: on which disk the mixes are written for a moment. Raises
    EngineError as mixing does."""
    with tempfile.TemporaryDirectory(prefix=".identity-", dir=beside) as folder:
        found = []
        for weight in _WEIGHTS:
            out = Path(folder) / f"at-{weight:g}"
            write_mix(MixRequest((Share(share.adapter, weight, share.name),), out, test=False), base)
            found.append(_compared(share, read_adapter(out), base, weight))
    return max(found, key=lambda report: (not report.passed, report.relative_error))


def _compared(share: Share, result: AdapterFolder, base: Base | None, weight: float) -> IdentityReport:
    total, worst, worst_tensor, count, passed = Squares(), 0.0, "", 0, True
    for name, squares, rounding in differences(share.adapter, result, base, weight):
        count += 1
        total.difference += squares.difference
        total.true += squares.true
        passed &= math.sqrt(squares.difference) <= TOLERANCE * math.sqrt(squares.true) + rounding
        if squares.relative >= worst:
            worst, worst_tensor = squares.relative, name
    return IdentityReport(
        adapter=share.label,
        kind=share.adapter.config.kind,
        tensors=count,
        relative_error=total.relative,
        worst_tensor=worst_tensor,
        worst_error=worst,
        passed=passed,
    )


def differences(
    one: AdapterFolder, other: AdapterFolder, base: Base | None, weight: float = 1.0
) -> Iterator[tuple[str, Squares, float]]:
    """(tensor, its error, how much of that float32 explains) for every tensor of the base that either adapter changes;
    `weight` times `one` is the truth."""
    first, second = changes_of([Share(one)], base), changes_of([Share(other)], base)
    for name in dict.fromkeys((*first, *second)):
        changes = [dict(found.get(name, ())).get(0) for found in (first, second)]
        yield name, _difference(name, changes, base, weight), _rounding(name, changes, base)


def _rounding(name: str, changes: list[Change | None], base: Base | None) -> float:
    """A small difference between large numbers is off by what these were rounded by."""
    stored = base.find(name) if base is not None else None
    if stored is None or not any(change is not None and change.needs_base for change in changes):
        return 0.0
    shape = (stored.shape[0] if stored.shape else 1, math.prod(stored.shape[1:]))
    squares = (float(np.sum(np.square(read_rows(stored, *span)), dtype=np.float64)) for span in chunks(shape))
    return _ROUNDING * math.sqrt(math.fsum(squares))


def _difference(name: str, changes: list[Change | None], base: Base | None, weight: float) -> Squares:
    true, found = (_source(name, change, base) if change is not None else None for change in changes)
    share = np.float32(weight)
    if isinstance(true, Factors) and isinstance(found, Factors) and true.gain is None and found.gain is None:
        left = share * true.left
        parts = np.concatenate((left, -found.left), axis=1), np.concatenate((true.right, found.right), axis=0)
        return Squares(product_norm(*parts) ** 2, product_norm(left, true.right) ** 2)
    shape = next(source.shape for source in (true, found) if source is not None)
    squares = Squares()
    for begin, end in chunks(shape):
        nothing = np.zeros((end - begin, shape[1]), np.float32)
        wanted = share * true.rows(begin, end) if true is not None else nothing
        got = found.rows(begin, end) if found is not None else nothing
        squares.add(got - wanted, wanted)
    return squares


def _source(name: str, change: Change, base: Base | None) -> RowSource:
    stored = base.find(name) if base is not None else None
    if change.bias is not None and (stored is None or change.whole is None):
        values = bias_of(change.bias)
        assert values is not None
        return InMemory(values.reshape(1, -1))
    if stored is None:
        return load_factors(change, None)
    needs = change.needs_base and change.adapted is not None
    return load_change(change, stored, read_float(stored) if needs else None)
