"""How far a student's next-token distribution is from a teacher's: the formulas, one value per position.

Owns the arithmetic. Must not know models, chunks or batches. Plain differentiable PyTorch in float32 (float64 stays
float64); gradients flow to the student alone.

C: positions, V: vocabulary, K: kept tokens. p is the teacher's distribution, q the student's, both softmax(logits / T).
Every divergence is multiplied by T^2: the gradient of a softened softmax shrinks with 1 / T^2, so the balance with the
labels' cross-entropy stays what it was at T = 1 (Hinton, Vinyals, Dean, arXiv 1503.02531, section 2).
A distance across vocabularies (`across`) is a sum of differences of probabilities: its gradient shrinks with 1 / T
(of an absolute value the sign stays, and a softened probability changes by 1 / T per logit), so T is its factor (own
derivation; the paper of the loss has none).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.distill.knowledge import FullLogits, TopLogits
from engine.jobs.spec_distillation import DistillationSection, DistillLoss, MissingMass

CrossVocabulary = Callable[[Tensor, Tensor, float], Tensor]
"""(student's logits (C, Vs), teacher's (C, Vt), T) -> (C,), for vocabularies that share no ids."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """What is minimised."""

    kind: DistillLoss = DistillLoss.FORWARD_KL
    temperature: float = 1.0
    beta: float = 0.5
    missing_mass: MissingMass = MissingMass.REST
    vocabulary: int = 0
    """Ids from 0 that mean the same to both; the student's others are left out of its softmax. 0 for all."""
    across: CrossVocabulary | None = None
    """Used instead of `kind` where the vocabularies differ."""

    @classmethod
    def of(cls, section: DistillationSection, vocabulary: int = 0, across: CrossVocabulary | None = None) -> Divergence:
        """As the spec says."""
        return cls(section.loss, section.temperature, section.beta, section.missing_mass, vocabulary, across)

    def __call__(self, student: Tensor, teacher: FullLogits | TopLogits) -> Tensor:
        """Nats per position: the student's logits (C, V) -> (C,), T^2 included; across vocabularies the distance, T
        included."""
        if isinstance(teacher, TopLogits):
            found = self._of_top(self._log_softmax(self._shared(student)), teacher)
        elif self.across is not None:
            found = self.across(student, teacher.logits, self.temperature)
        else:
            found = self.between(
                self._log_softmax(self._shared(teacher.logits)), self._log_softmax(self._shared(student))
            )
        if isinstance(teacher, FullLogits) and teacher.known is not None:
            found = found.masked_fill(~teacher.known, 0.0)
        return found * self.temperature ** (1 if self.across is not None else 2)

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The divergence of two lists of log-probabilities (C, M) -> (C,), without T^2.

        forward_kl: sum p (log p - log q)
        reverse_kl: sum q (log q - log p)
        jsd:        beta sum p (log p - log m) + (1 - beta) sum q (log q - log m), m = beta p + (1 - beta) q
                    (generalised Jensen-Shannon, GKD, Agarwal et al., arXiv 2306.13649, equation 1)
        """
        match self.kind:
            case DistillLoss.FORWARD_KL:
                return _kl(log_p, log_q)
            case DistillLoss.REVERSE_KL:
                return _kl(log_q, log_p)
            case DistillLoss.JSD:
                log_m = torch.logaddexp(log_p + math.log(self.beta), log_q + math.log1p(-self.beta))
                return self.beta * _kl(log_p, log_m) + (1 - self.beta) * _kl(log_q, log_m)

    def _of_top(self, log_q: Tensor, teacher: TopLogits) -> Tensor:
        """Over the teacher's K most likely tokens. What becomes of the rest of the probability:

        rest:        one more outcome, whose probability is what is missing, p's and q's own: a divergence of two
                     distributions over K + 1 outcomes, never above that of the whole vocabulary (by merging outcomes,
                     the data-processing inequality), and 0 only where every kept probability agrees
        renormalise: both divided by their own mass inside the K: says nothing about how much mass q leaves outside
        zero:        the terms outside are left out and nothing is rescaled: sum over the K of the same summands; no
                     divergence, below 0 where q has more mass inside than p
        """
        log_p = _precise(teacher.log_probs)  # (C, K)
        kept = log_q.gather(-1, teacher.ids.long())  # (C, K)
        match self.missing_mass:
            case MissingMass.REST if log_p.shape[-1] < log_q.shape[-1]:
                others = log_q.scatter(-1, teacher.ids.long(), float("-inf")).logsumexp(-1, keepdim=True)  # (C, 1)
                missing = _precise(teacher.missing_log_mass)[:, None]
                return self.between(torch.cat([log_p, missing], -1), torch.cat([kept, others], -1))
            case MissingMass.RENORMALISE:
                return self.between(torch.log_softmax(log_p, -1), torch.log_softmax(kept, -1))
            case _:
                return self.between(log_p, kept)

    def _shared(self, logits: Tensor) -> Tensor:
        return logits[:, : self.vocabulary] if self.vocabulary else logits

    def _log_softmax(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(_precise(logits) / self.temperature, -1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b): (C, M), (C, M) -> (C,)."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of the labels, nats per position: (C, V), (C,) -> (C,)."""
    return torch.nn.functional.cross_entropy(_precise(logits), targets, reduction="none")


def hidden_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over the width: (N, D), (N, D) -> (N,) (TinyBERT, Jiao et al., arXiv 1909.10351,
    equation 8, without its learnt projection: the widths are equal)."""
    return (_precise(student) - _precise(teacher)).square().mean(-1)
