"""The small network that learns what lies between two layers, row by row of their coefficients.

Owns the network and its training. Must not know files or kinds of matrix.

    (row of V_i-1, row of V_i+1)  ->  256  ->  256  ->  row of V_i         ReLU between

    loss = (1 - l) mean (predicted - true)^2  +  l mean (|predicted| - |true|)^2       l = 5e-5

AdamW, learning rate 1e-3, batches of 64 rows, 5 epochs, as in LESA (arXiv 2502.13794). Two differences: coefficients
are scaled to a mean square of 1 (in the paper they are entries of orthonormal columns, hence the smaller the deeper
the net), and each epoch sees another random share of the rows when all of them do not fit in memory.
A network that cannot predict a row predicts towards zero, so inserted layers are quieter than their neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

HIDDEN_UNITS = 256
EPOCHS = 5
BATCH_ROWS = 64
LEARNING_RATE = 1e-3
NORM_WEIGHT = 5e-5

Sample = Tensor  # (L, n, r): the same n rows of every layer's coefficients
Samples = Callable[[int], Sample]
"""Epoch -> rows to learn from."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """Three affine layers."""

    parameters: tuple[Tensor, ...]

    @classmethod
    def drawn(cls, rank: int, draw: torch.Generator) -> Predictor:
        """Untrained, uniform within 1 / sqrt(inputs)."""
        sizes = ((2 * rank, HIDDEN_UNITS), (HIDDEN_UNITS, HIDDEN_UNITS), (HIDDEN_UNITS, rank))
        parameters = []
        for inputs, outputs in sizes:
            for shape in ((outputs, inputs), (outputs,)):
                values = (torch.rand(shape, generator=draw) * 2 - 1) * inputs**-0.5
                parameters.append(values.requires_grad_())
        return cls(tuple(parameters))

    def __call__(self, before: Tensor, after: Tensor) -> Tensor:
        """What lies between: (n, r), (n, r) -> (n, r)."""
        first, first_bias, second, second_bias, last, last_bias = self.parameters
        hidden = torch.relu(torch.cat([before, after], dim=-1) @ first.T + first_bias)
        hidden = torch.relu(hidden @ second.T + second_bias)
        predicted: Tensor = hidden @ last.T + last_bias
        return predicted

    def at(self, before: Tensor, after: Tensor, share: float) -> Tensor:
        """At `share` of the way: the prediction in the middle, straight lines from it to both neighbours."""
        with torch.no_grad():
            middle = self(before, after)
            if share <= 0.5:
                return before.lerp(middle, 2 * share)
            return middle.lerp(after, 2 * share - 1)


def train(samples: Samples, rank: int, step: int, seed: int) -> tuple[Predictor, float]:
    """A predictor, and its mean loss in the last epoch (about 1 when it has learned nothing).

    `step` is how far a neighbour is: the period of a net whose layers differ in a pattern.
    """
    draw = torch.Generator().manual_seed(seed)
    predictor = Predictor.drawn(rank, draw)
    optimizer = torch.optim.AdamW(predictor.parameters, lr=LEARNING_RATE)
    loss_sum = torch.zeros(())
    rows = 0
    for epoch in range(EPOCHS):
        loss_sum, rows = torch.zeros(()), 0
        for before, true, after in _batches(samples(epoch), step, draw):
            loss = between_loss(predictor(before, after), true)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.detach() * len(true)
            rows += len(true)
    return predictor, float(loss_sum) / max(rows, 1)


def between_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Squared error, and a little of the squared difference in length: (n, r), (n, r) -> ()."""
    error = (predicted - true).square().mean()
    lengths = [torch.linalg.vector_norm(rows, dim=-1) for rows in (predicted, true)]
    gap = (lengths[0] - lengths[1]).square().mean()
    loss: Tensor = (1 - NORM_WEIGHT) * error + NORM_WEIGHT * gap
    return loss


def _batches(sample: Sample, step: int, draw: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows of layers i - step, i, i + step for every i that has both, in random order."""
    layers, rows = sample.shape[0], sample.shape[1]
    middles = layers - 2 * step
    order = torch.randperm(middles * rows, generator=draw)
    for begin in range(0, len(order), BATCH_ROWS):
        picked = order[begin : begin + BATCH_ROWS]
        layer, row = picked // rows + step, picked % rows
        yield sample[layer - step, row], sample[layer, row], sample[layer + step, row]
