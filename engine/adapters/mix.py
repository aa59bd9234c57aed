"""Several adapters of one base become one adapter, tensor by tensor, with the error of every matrix.

Owns the order of steps. Must not know formulas. Memory holds one matrix of the base at a time, and of every adapter the
factors for it; updates are multiplied out a few rows at a time.

    checks ─► plan (mix_plan) ─► one tensor after the other (mix_compute) ─► file ─► config, report ─► rename
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.adapters.base import Base, check_base, read_base
from engine.adapters.mix_compute import Mixed, Squares, mix_biases, mix_factors, mix_rows, mix_whole
from engine.adapters.mix_plan import Blend, Form, MixPlan, plan_mix
from engine.adapters.mix_write import (
    AdapterFile,
    check_out,
    own_config,
    peft_config,
    size_of,
    staged,
    tensor_names,
    write_small_files,
)
from engine.adapters.origin import commit_of, packed_as, read_origin, write_origin
from engine.adapters.recipe import EXACT, Recipe, Share, used_shares, weights_of
from engine.adapters.replacing import REPORT
from engine.errors import EngineError, ExitCode
from engine.jobs.mix_report import LayerError, MixReport
from engine.models.adapter import base_of_adapter
from engine.surgery.expand import peak_rss_bytes
from engine.surgery.numbers import Array

OnTensor = Callable[[int, int, str], None]
"""Called with (tensors done, of how many, the next one's name)."""
_TEST = ".identity"
"""In the folder that is being written, so that a kill leaves one folder and no more."""


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
    """Also whether every adapter alone gives itself back."""


def mix_adapters(request: MixRequest, on_tensor: OnTensor = lambda done, of, name: None) -> MixReport:
    """Write the mixed adapter; `request.out` is there then, and not before.

    Raises EngineError `adapter.*`, `safetensors.*`, `disk.full`.
    """
    shares = used_shares(request.shares)
    weights_of(shares, request.recipe)
    check_out(request.out, _folders(request.shares), request.base, force=request.force)
    base = find_base(shares, request.base)
    job = _planned(request, base)
    with staged(request.out, job.needed_bytes, force=request.force) as folder:
        worst = _tested(shares, base, folder / _TEST) if request.test else None
        return _filled(folder, job, on_tensor, worst)


def write_mix(request: MixRequest, base: Base | None, on_tensor: OnTensor = lambda done, of, name: None) -> MixReport:
    """The mix alone, on a base that was checked. Raises EngineError as `mix_adapters`."""
    job = _planned(request, base)
    with staged(request.out, job.needed_bytes, force=request.force) as folder:
        return _filled(folder, job, on_tensor, None)


@dataclass(frozen=True, slots=True)
class _Job:
    """Everything known before the first byte."""

    request: MixRequest
    shares: tuple[Share, ...]
    """Those that have a weight."""
    weights: tuple[float, ...]
    base: Base | None
    plan: MixPlan
    config: Mapping[str, Any]
    name: str
    revision: str
    started: float

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the result."""
        blends = (*self.plan.blends, *self.plan.copied)
        return {name: shape for blend in blends for name, shape in tensor_names(self.plan, blend).items()}

    @property
    def needed_bytes(self) -> int:
        """Of the weights."""
        return size_of(self.shapes)


def _planned(request: MixRequest, base: Base | None) -> _Job:
    started = time.monotonic()
    shares = used_shares(request.shares)
    weights = weights_of(shares, request.recipe)
    folder = base.folder if base is not None else None
    check_out(request.out, _folders(request.shares), folder, force=request.force)
    own_config(shares)
    plan = plan_mix(shares, request.recipe, base)
    name, revision = _named(shares, base)
    return _Job(
        request, shares, weights, base, plan, peft_config(plan, shares, name, revision), name, revision, started
    )


def _folders(shares: Sequence[Share]) -> list[Path]:
    return [share.adapter.path for share in shares]


def _tested(shares: Sequence[Share], base: Base | None, folder: Path) -> float:
    """The largest error of the self-tests, which are written in `folder`. Raises EngineError `adapter.self_test`."""
    from engine.adapters.identity import identity_report  # which mixes

    folder.mkdir()
    worst = 0.0
    for share in shares:
        report = identity_report(share, base, folder)
        worst = max(worst, report.relative_error)
        if not report.passed:
            raise EngineError(
                "adapter.self_test",
                f"{share.label} mixed alone is not itself, so no mix of it can be trusted; nothing was written.",
                cause=f"'{report.worst_tensor}' is off by {report.worst_error:.1e} of its update, all together by "
                f"{report.relative_error:.1e}.",
                next_step=f"See it whole with: scaler-wizard adapters test {shlex.quote(str(share.adapter.path))}",
                exit_code=ExitCode.RUN_FAILED,
            )
    folder.rmdir()
    return worst


def _filled(folder: Path, job: _Job, on_tensor: OnTensor, identity_error: float | None) -> MixReport:
    request, shares, recipe = job.request, job.shares, job.request.recipe
    layers, squares = _write(folder, job, on_tensor)
    resizing = job.plan.resizing
    order = sorted(range(len(shares)), key=lambda number: number not in resizing)  # whose tokenizer knows all tokens
    write_small_files(folder, job.config, [shares[number] for number in order])
    if job.base is not None:
        write_origin(folder, job.base.folder, name=job.name or job.base.folder.name, revision=job.revision)
    report = MixReport(
        method=recipe.method.value,
        adapters=tuple(share.label for share in request.shares),
        weights=tuple(share.weight for share in request.shares),
        layers=layers,
        relative_error=squares.relative,
        cut_error=None if recipe.is_sum else squares.cut,
        rank=max(layer.rank for layer in layers),
        out=str(request.out),
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        density=recipe.density if not recipe.is_sum else 1.0,
        identity_error=identity_error,
        seconds=time.monotonic() - job.started,
        peak_rss_bytes=peak_rss_bytes(),
    )
    (folder / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return report


def find_base(shares: Sequence[Share], given: Path | None) -> Base | None:
    """The base of all adapters, checked; None where none is given or found here and their records agree, and where what
    they name is packed: its numbers cannot be read. Raises EngineError `adapter.other_base`, `adapter.packed_base`."""
    folder = given
    if folder is None:
        _check_records(shares)
        folder = next(filter(None, map(_named_base, shares)), None)
    elif method := packed_as(folder):
        raise packed_base(folder, method)
    if folder is None:
        return None
    for share in shares:
        check_base(share.adapter, folder)
    return read_base(folder)


def needed_base(shares: Sequence[Share], given: Path | None) -> Base:
    """The base of all adapters, of which nothing can be done without. Raises EngineError `adapter.other_base`,
    `adapter.no_base`, `adapter.packed_base`."""
    folders = [given] if given is not None else [_named_folder(share) for share in shares]
    for folder in filter(None, folders):
        if method := packed_as(folder):
            raise packed_base(folder, method, needed=True)
    if (found := find_base(shares, given)) is not None:
        return found
    raise EngineError(
        "adapter.no_base",
        "The base of these adapters is not here.",
        cause=f"They name '{shares[0].adapter.config.base}'.",
        next_step="Give its folder with --base.",
    )


def _named_base(share: Share) -> Path | None:
    """The folder that the adapter names, where it is here and holds plain weights."""
    folder = _named_folder(share)
    return None if folder is None or packed_as(folder) else folder


def _named_folder(share: Share) -> Path | None:
    try:
        return base_of_adapter(share.adapter.path)
    except EngineError:
        return None


def packed_base(base: Path, method: str, *, needed: bool = False) -> EngineError:
    """The refusal of a base whose numbers cannot be read; `needed`: nothing goes without one."""
    way_out = "Give the 16-bit model it was made from with --base"
    return EngineError(
        "adapter.packed_base",
        f"Adapters are mixed by the numbers of their base, and those of {base} are packed ({method}).",
        next_step=f"{way_out}." if needed else f"{way_out}, or leave --base out: plain LoRA needs none.",
    )


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


def _write(folder: Path, job: _Job, on_tensor: OnTensor) -> tuple[tuple[LayerError, ...], Squares]:
    plan, weights, recipe = job.plan, job.weights, job.request.recipe
    blends = (*plan.blends, *plan.copied)
    layers: list[LayerError] = []
    total = Squares()
    with AdapterFile(folder, job.shapes) as file:
        for number, blend in enumerate(blends):
            on_tensor(number, len(blends), blend.name)
            squares = Squares()
            for name, first, values in pieces(plan, blend, weights, recipe, squares):
                file.put(name, values, first)
            total.join(squares)
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
    squares.join(found)


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
