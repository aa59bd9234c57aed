"""The self-test: one adapter at weight 1 gives itself back.

Owns the comparison of two adapters. The mix is really written, read again as any adapter is, and held against the
original, update by update; peft's own function for mixing is off by 0.14 to 0.83 here for rsLoRA, DoRA, PiSSA and
biases.
"""

from __future__ import annotations

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
from engine.adapters.tensors import read_float
from engine.adapters.update import bias_of

TOLERANCE = 1e-5


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
    """`beside`: on which disk the mix is written for a moment. Raises EngineError as mixing does."""
    with tempfile.TemporaryDirectory(prefix=".identity-", dir=beside) as folder:
        out = Path(folder) / "alone"
        request = MixRequest((Share(share.adapter, 1.0, share.name),), out, test=False)
        write_mix(request, base)
        return _compared(share, read_adapter(out), base)


def _compared(share: Share, result: AdapterFolder, base: Base | None) -> IdentityReport:
    total, worst, worst_tensor, count = Squares(), 0.0, "", 0
    for name, squares in differences(share.adapter, result, base):
        count += 1
        total.difference += squares.difference
        total.true += squares.true
        if squares.relative >= worst:
            worst, worst_tensor = squares.relative, name
    return IdentityReport(
        adapter=share.label,
        kind=share.adapter.config.kind,
        tensors=count,
        relative_error=total.relative,
        worst_tensor=worst_tensor,
        worst_error=worst,
        passed=total.relative <= TOLERANCE,
    )


def differences(one: AdapterFolder, other: AdapterFolder, base: Base | None) -> Iterator[tuple[str, Squares]]:
    """(tensor, its error) for every tensor of the base that either adapter changes; `one` is the truth."""
    first, second = changes_of([Share(one)], base), changes_of([Share(other)], base)
    for name in dict.fromkeys((*first, *second)):
        yield name, _difference(name, [dict(found.get(name, ())).get(0) for found in (first, second)], base)


def _difference(name: str, changes: list[Change | None], base: Base | None) -> Squares:
    true, found = (_source(name, change, base) if change is not None else None for change in changes)
    if isinstance(true, Factors) and isinstance(found, Factors) and true.gain is None and found.gain is None:
        parts = np.concatenate((true.left, -found.left), axis=1), np.concatenate((true.right, found.right), axis=0)
        return Squares(product_norm(*parts) ** 2, product_norm(true.left, true.right) ** 2)
    shape = next(source.shape for source in (true, found) if source is not None)
    squares = Squares()
    for begin, end in chunks(shape):
        nothing = np.zeros((end - begin, shape[1]), np.float32)
        wanted = true.rows(begin, end) if true is not None else nothing
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
