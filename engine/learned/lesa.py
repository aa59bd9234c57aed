"""LESA: for every kind of matrix, a basis common to all layers and a predictor of what lies between two of them.

Owns the order of work and the memory it takes. Must not know files' names. The maths is in `spectrum` and `predictor`.
Norms and biases have too few numbers to learn from: they are the mean of the neighbours' (the authors' code copies
those of layer 0). Source: Yang et al., "LESA: Learnable LLM Layer Scaling-Up", ACL 2025 (arXiv 2502.13794).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.learned.kinds import Kind, MadeLayer
from engine.learned.predictor import Predictor, Samples, train
from engine.learned.progress import Report
from engine.learned.spectrum import Spectrum, decompose
from engine.learned.tensors import TensorFile, read_tensor

SAMPLE_BYTES = 256 * 1024**2
"""Coefficients held for one epoch of training."""
CHUNK_BYTES = 64 * 1024**2
"""Inputs of the predictor at once."""


@dataclass(frozen=True, slots=True)
class Lesa:
    """What all kinds share."""

    made: Sequence[MadeLayer]
    step: int
    """How far the next layer of the same kind is."""
    seed: int
    losses: dict[str, float] = field(default_factory=dict)
    """Kind -> mean loss of its predictor's last epoch."""


def make_layers(work: Lesa, kinds: Sequence[Kind], target: TensorFile, report: Report) -> None:
    """All made layers' tensors, kind after kind."""
    for done, kind in enumerate(kinds):
        report("learn", done, len(kinds), kind.rule.pattern)
        if kind.is_matrix and _is_uniform(kind):
            _predict_kind(work, kind, target)
        else:
            _average_kind(work, kind, target)
    report("learn", len(kinds), len(kinds), "")


def _is_uniform(kind: Kind) -> bool:
    """Whether all layers have it in one shape, so that one basis serves them; else neighbours are averaged."""
    layers = sorted(kind.layers)
    return len({header.shape for header in kind.layers.values()}) == 1 and layers == list(range(len(layers)))


def _average_kind(work: Lesa, kind: Kind, target: TensorFile) -> None:
    for layer in work.made:
        header = kind.layers.get(layer.base)
        if header is not None:
            first, second = (read_tensor(kind.layers[index]).float() for index in (layer.base, layer.other))
            target.write(layer.name(header), first.lerp(second, layer.share))


def _predict_kind(work: Lesa, kind: Kind, target: TensorFile) -> None:
    spectrum = decompose(kind)
    seed = _seed(work.seed, kind)
    predictor, loss = train(_samples(kind, spectrum, seed), spectrum.rank, work.step, seed)
    work.losses[kind.rule.pattern] = loss
    for layer in work.made:
        target.write(layer.name(kind.layers[layer.base]), _between(kind, spectrum, predictor, layer))


def _seed(seed: int, kind: Kind) -> int:
    """A seed for each kind, so that adding one kind does not change another."""
    digest = hashlib.sha256(f"{seed}|{kind.rule.pattern}|{kind.head}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _samples(kind: Kind, spectrum: Spectrum, seed: int) -> Samples:
    """The same rows of every layer: all of them when they fit, else as many as do, others in each epoch."""
    row_bytes = len(kind.layers) * spectrum.rank * 4
    rows = max(1, min(spectrum.columns, SAMPLE_BYTES // row_bytes))
    if rows == spectrum.columns:
        everything = _sample(kind, spectrum, torch.arange(rows))
        return lambda epoch: everything
    draw = torch.Generator().manual_seed(seed ^ 1)

    def another(epoch: int) -> Tensor:
        return _sample(kind, spectrum, torch.randperm(spectrum.columns, generator=draw)[:rows].sort().values)

    return another


def _sample(kind: Kind, spectrum: Spectrum, rows: Tensor) -> Tensor:
    sample = torch.empty(len(kind.layers), len(rows), spectrum.rank)  # (L, n, r)
    for layer, header in sorted(kind.layers.items()):
        matrix = spectrum.oriented(read_tensor(header))
        for begin, part in _chunks(rows, spectrum.rank):
            sample[layer, begin : begin + len(part)] = spectrum.coefficients(matrix, part)
    return sample


def _between(kind: Kind, spectrum: Spectrum, predictor: Predictor, layer: MadeLayer) -> Tensor:
    """The stored matrix of one made layer, computed in slices of rows of coefficients."""
    first, second = (spectrum.oriented(read_tensor(kind.layers[index])) for index in (layer.base, layer.other))
    made = torch.empty(spectrum.columns, len(spectrum.basis), dtype=first.dtype)  # (k, d)
    for begin, rows in _chunks(torch.arange(spectrum.columns), spectrum.rank):
        before, after = spectrum.coefficients(first, rows), spectrum.coefficients(second, rows)
        made[begin : begin + len(rows)] = spectrum.matrix_rows(predictor.at(before, after, layer.share))
    return made if spectrum.transposed else made.T


def _chunks(rows: Tensor, rank: int) -> list[tuple[int, Tensor]]:
    """(first place, rows) of slices that keep the predictor's inputs small."""
    count = max(1, CHUNK_BYTES // (2 * rank * 4))
    return [(begin, rows[begin : begin + count]) for begin in range(0, len(rows), count)]
