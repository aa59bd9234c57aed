"""What a teacher says about some positions of a batch, and who can be asked: the one seam between losses and teachers.

Owns the protocol and its two forms. Must not know where knowledge comes from: a model in memory
(`engine.distill.teacher`), files (`engine.distill.cache`) or another vocabulary.

B: batch, T: tokens, N: positions asked, C: positions of a chunk, V: the vocabulary that both share, K: kept tokens,
D: width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.evaluation.head import Wanted

LEAST_MASS = 1e-12
"""Missing mass is never less: its logarithm stays a number."""


@dataclass(frozen=True, slots=True)
class FullLogits:
    """Everything the teacher thinks of C positions."""

    logits: Tensor  # (C, V), any float type; at temperature 1
    known: Tensor | None = None  # (C,) bool
    """Where there is knowledge at all; None for everywhere. Elsewhere the teacher's loss is 0."""


@dataclass(frozen=True, slots=True)
class TopLogits:
    """The teacher's K most likely tokens of C positions, at the temperature of the loss.

    They cannot be brought to another temperature: that of the tokens left out is not known.
    """

    ids: Tensor  # (C, K), integers
    log_probs: Tensor  # (C, K), nats, of the whole distribution: their mass is below 1
    missing_log_mass: Tensor  # (C,), nats: logarithm of the probability of all other tokens together


class TeacherView(Protocol):
    """One micro-batch, asked about at its N wanted positions."""

    @property
    def hidden(self) -> tuple[Tensor, ...]:
        """(N, D) of each compared layer, in the order asked for; () where hidden states are not compared."""
        ...

    def chunk(self, first: int, last: int) -> FullLogits | TopLogits:
        """Of wanted positions first <= n < last, on the student's device. Called once in the forward pass and once
        more in the backward pass, in any order, always without gradients; says the same both times."""
        ...


class Knowledge(Protocol):
    """A teacher, in whatever form."""

    def at(self, wanted: Wanted) -> TeacherView:
        """A micro-batch: ids and positions (B, T), and flat positions (N,) whose next token is learnt. Position ids
        restart at 0 with every packed row. Draws nothing from any random generator. Raises EngineError `distill.*`."""
        ...


@torch.no_grad()
def top_of(logits: Tensor, k: int, temperature: float) -> TopLogits:
    """The k largest of softmax(logits / temperature), computed in float32: (C, V) -> (C, min(k, V)).

    The missing mass is summed from the tokens left out, not taken from 1, where rounding would eat it.
    """
    log_probs = torch.log_softmax(logits.float() / temperature, -1)  # (C, V)
    kept, ids = log_probs.topk(min(k, log_probs.shape[-1]), -1)  # (C, K)
    rest = log_probs.scatter(-1, ids, float("-inf"))
    return TopLogits(ids, kept, rest.logsumexp(-1).clamp_min(torch.tensor(LEAST_MASS).log().item()))
