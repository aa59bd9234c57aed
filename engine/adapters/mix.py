"""Several adapters of one base become one adapter, tensor by tensor, with the error of every matrix.

Owns the order of steps. Must not know formulas. Memory holds one matrix of the base at a time, and of every adapter the
factors for it; updates are multiplied out a few rows at a time.

    checks ─► plan (mix_plan) ─► one tensor after the other (mix_compute) ─► file ─► config, report ─► rename
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from engine.adapters.base import Base, check_base, read_base
from engine.adapters.mix_compute import Mixed, Squares, mix_biases, mix_factors, mix_rows, mix_whole
from engine.adapters.mix_plan import Blend, Form, MixPlan, plan_mix
from engine.adapters.mix_write import (
    REPORT,
    AdapterFile,
    check_out,
    own_config,
    peft_config,
    staged,
    tensor_names,
    write_small_files,
)
from engine.adapters.origin import commit_of, read_origin, write_origin
from engine.adapters.recipe import EXACT, Recipe, Share, weights_of
from engine.errors import EngineError
from engine.jobs.mix_report import LayerError, MixReport
from engine.models.adapter import base_of_adapter
from engine.surgery.expand import peak_rss_bytes
from engine.surgery.numbers import Array

OnTensor = Callable[[int, int, str], None]
"""Called with (tensors done, of how many, the next one's name)."""


@dataclass(frozen=True, slots=True)
class MixRequest:
    """One mix."""

    shares: tuple[Share, ...]
    out: Path
    recipe: Recipe = EXACT
    base: Path | None = None
    """The model's folder; found by what the adapters name where it is not given, and done without where it can be."""
    force: bool = False
    test: bool = True
    """Also whether every adapter alone at weight 1 gives itself back."""


def mix_adapters(request: MixRequest, on_tensor: OnTensor = lambda done, of, name: None) -> MixReport:
    """Write the mixed adapter; `request.out` is there then, and not before.

    Raises EngineError `adapter.*`, `safetensors.*`, `disk.full`.
    """
    from engine.adapters.identity import identity_report  # which mixes

    check_out(request.out, [share.adapter.path for share in request.shares], force=request.force)
    weights_of(request.shares, request.recipe)
    base = find_base(request.shares, request.base)
    worst: float | None = None
    if request.test:
        beside = request.out.parent if request.out.parent.is_dir() else None
        worst = max(identity_report(share, base, beside).relative_error for share in request.shares)
    return write_mix(request, base, on_tensor, identity_error=worst)


def write_mix(
    request: MixRequest,
    base: Base | None,
    on_tensor: OnTensor = lambda done, of, name: None,
    *,
    identity_error: float | None = None,
) -> MixReport:
    """The mix alone, on a base that was checked. Raises EngineError as `mix_adapters`."""
    started = time.monotonic()
    shares, recipe = request.shares, request.recipe
    weights = weights_of(shares, recipe)
    check_out(request.out, [share.adapter.path for share in shares], force=request.force)
    own_config(shares)
    plan = plan_mix(shares, recipe, base)
    name, revision = _named(shares, base)
    config = peft_config(plan, shares, name, revision)
    with staged(request.out) as folder:
        layers, squares = _write(folder, plan, weights, recipe, on_tensor)
        write_small_files(folder, config, shares)
        if base is not None:
            write_origin(folder, base.folder, name=name or base.folder.name, revision=revision)
        report = MixReport(
            method=recipe.method.value,
            adapters=tuple(share.label for share in shares),
            weights=tuple(share.weight for share in shares),
            layers=layers,
            relative_error=squares.relative,
            rank=max(layer.rank for layer in layers),
            out=str(request.out),
            size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
            density=recipe.density if not recipe.is_sum else 1.0,
            identity_error=identity_error,
            seconds=time.monotonic() - started,
            peak_rss_bytes=peak_rss_bytes(),
        )
        (folder / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return report


def find_base(shares: Sequence[Share], given: Path | None) -> Base | None:
    """The base of all adapters, checked; None where none is given or found here and their records agree. Raises
    EngineError `adapter.other_base`."""
    folder = given
    if folder is None:
        _check_records(shares)
        for share in shares:
            try:
                folder = base_of_adapter(share.adapter.path)
                break
            except EngineError:
                continue
    if folder is None:
        return None
    for share in shares:
        check_base(share.adapter, folder)
    return read_base(folder)


def _check_records(shares: Sequence[Share]) -> None:
    """What the adapters themselves say of their bases."""
    first = shares[0]
    for share in shares[1:]:
        one, other = read_origin(first.adapter.path), read_origin(share.adapter.path)
        if one is not None and other is not None and one.fingerprint and other.fingerprint:
            same, named = one.fingerprint == other.fingerprint, (one.name, other.name)
        else:
            named = (first.adapter.config.base, share.adapter.config.base)
            same = named[0] == named[1] or not all(named)
        if not same:
            raise EngineError(
                "adapter.other_base",
                f"{first.label} and {share.label} name different bases.",
                cause=f"They are {named[0]!r} and {named[1]!r}.",
                next_step="Give the one base that both were trained on with --base, if it is one and the same.",
            )


def _named(shares: Sequence[Share], base: Base | None) -> tuple[str, str]:
    """How the result names its base: as the first adapter does, else by its folder."""
    config = shares[0].adapter.config
    if config.base:
        return config.base, config.revision
    return (str(base.folder.resolve()), commit_of(base.folder)) if base is not None else ("", "")


def _write(
    folder: Path, plan: MixPlan, weights: Sequence[float], recipe: Recipe, on_tensor: OnTensor
) -> tuple[tuple[LayerError, ...], Squares]:
    blends = (*plan.blends, *plan.copied)
    shapes = {name: shape for blend in blends for name, shape in tensor_names(plan, blend).items()}
    layers: list[LayerError] = []
    total = Squares()
    with AdapterFile(folder, shapes) as file:
        for number, blend in enumerate(blends):
            on_tensor(number, len(blends), blend.name)
            squares = Squares()
            for name, first, values in pieces(plan, blend, weights, recipe, squares):
                file.put(name, values, first)
            total.difference += squares.difference
            total.true += squares.true
            if blend.changes:
                layers.append(squares.error(blend.name.removesuffix(".weight"), blend.rank))
    on_tensor(len(blends), len(blends), "")
    return tuple(layers), total


def pieces(
    plan: MixPlan, blend: Blend, weights: Sequence[float], recipe: Recipe, squares: Squares
) -> Iterator[tuple[str, int, Array]]:
    """(tensor of the result, first number, numbers) of one blend; its error is added to `squares`."""
    names = list(tensor_names(plan, blend))
    own = [weights[number] for number, _ in blend.changes]
    if blend.form is Form.FACTORS:
        mixed, found = mix_factors(blend, own, recipe, dora=plan.dora)
        yield from _named_factors(names, mixed)
    elif blend.form is Form.WHOLE:
        done, found = 0, Squares()
        for values, difference, true in mix_whole(blend, own, recipe):
            found.add(difference, true)
            yield names[0], done, values
            done += values.size
    else:
        values, found = (mix_rows if blend.form is Form.ROWS else mix_biases)(blend, own, recipe)
        yield names[0], 0, values
    squares.difference += found.difference
    squares.true += found.true


def _named_factors(names: Sequence[str], mixed: Mixed) -> Iterator[tuple[str, int, Array]]:
    """In the order of `tensor_names`: A, B, magnitudes, a bias of zeros."""
    yield names[0], 0, mixed.right
    yield names[1], 0, mixed.left
    for name in names[2:]:
        magnitudes = name.endswith("lora_magnitude_vector")
        yield (
            name,
            0,
            mixed.magnitude if magnitudes and mixed.magnitude is not None else np.zeros(len(mixed.left), "f4"),
        )
