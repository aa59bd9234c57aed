"""The loss of a micro-batch with a teacher: labels, teacher and hidden states, never more logits than a chunk's.

Owns the mix, the chunks and what is told of the parts. Must not know batches, steps or where knowledge comes from.

    a = ce_weight, h = hidden_weight, N trained positions of the micro-batch, T the temperature

    sum over N of   a CE(labels)  +  (1 - a) T^2 D(teacher, student)  +  h MSE(hidden states, mean over layers)

Only trained positions count, in every part: the trainer divides by their number in the whole step, as it does for
labels alone. On answers of the student's own there are no labels, and the teacher has their share too:
T^2 D + h MSE. Across vocabularies (ULD) T stands in the place of T^2. With a = 1 the teacher gives hidden states only,
and no chunk of its logits is computed.

Head and divergence of a chunk are run again in the backward pass (`torch.utils.checkpoint`), the student's and the
teacher's alike, so what is alive grows with N x D and with C x V, not with N x V.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from engine.distill.hidden import LayerEar
from engine.distill.knowledge import Knowledge, TeacherView
from engine.distill.losses import Divergence, cross_entropy, hidden_distance
from engine.errors import EngineError
from engine.evaluation.head import Wanted
from engine.evaluation.model import LoadedModel

CHUNK_BYTES = 64 * 1024**2
"""Of one float32 tensor (C, V); about ten of that size are alive in the backward pass of a chunk."""
PARTS = ("labels", "teacher", "hidden")


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the parts."""

    labels: float = 0.5
    """The teacher's is the rest."""
    hidden: float = 0.0


@dataclass(slots=True)
class Objective:
    """One per training. Mutable: it gathers the parts of the step under way."""

    student: LoadedModel
    knowledge: Knowledge
    divergence: Divergence
    weights: Weights
    ear: LayerEar | None = None
    """On the student's layers, where hidden states are compared."""
    chunk_tokens: int = 0
    """C; 0 for as many as `CHUNK_BYTES` hold."""
    _sums: list[Tensor] = field(default_factory=list)
    """(3,) of each micro-batch of the step, before weights."""
    own_answers: bool = False
    """Whether the step under way learns on what the student wrote."""

    def begin_step(self) -> None:
        """Forget the parts of the step before, or of a try that failed."""
        self._sums, self.own_answers = [], False

    def loss(self, model: Any, wanted: Wanted, targets: Tensor, *, own_answers: bool = False) -> Tensor:
        """Sum over the wanted positions, nats; `model` is the student as it is called. Raises EngineError
        `distill.*`, `train.head_not_in_pieces`."""
        self.own_answers = own_answers
        view = self.knowledge.at(wanted)
        hidden, streams = self._student(model, wanted)
        found = self._in_chunks(hidden, targets, view, own_answers=own_answers)  # (2,)
        labels, teacher = found.unbind()
        apart = self._apart(streams, view)
        self._sums.append(torch.stack([labels, teacher, apart]).detach())
        share = 0.0 if own_answers else self.weights.labels
        loss: Tensor = (1 - share) * teacher + self.weights.hidden * apart
        return loss + share * labels if share else loss

    def parts(self, count: int) -> dict[str, float]:
        """Of the step so far, nats per trained token, before their weights; waits for the device."""
        if not self._sums:
            return {}
        values = (torch.stack(self._sums).double().sum(0) / max(count, 1)).tolist()
        told = dict(zip(PARTS, values, strict=True))
        if self.own_answers:
            del told["labels"]
        if not self.weights.hidden:
            del told["hidden"]
        if not self._teacher_speaks:
            del told["teacher"]
        return told

    @property
    def _teacher_speaks(self) -> bool:
        """Whether its logits count."""
        return self.own_answers or self.weights.labels < 1

    def _student(self, model: Any, wanted: Wanted) -> tuple[Tensor, tuple[Tensor, ...]]:
        try:
            # Of weights in float32 the head alone computes as all do only under autocast: they are compared here.
            with self.student.autocast():
                if self.ear is None:
                    return self.student.head.hidden_at(model, wanted), ()
                with self.ear.listening(wanted.positions):
                    hidden = self.student.head.hidden_at(model, wanted)
            return hidden, self.ear.taken()
        except EngineError as error:
            if error.code != "train.head_not_in_pieces":
                raise
            raise EngineError(
                error.code,
                error.what,
                cause=error.cause,
                next_step='Such a model can only learn from labels: set distillation.teacher = "".',
                exit_code=error.exit_code,
            ) from error

    def _apart(self, streams: tuple[Tensor, ...], view: TeacherView) -> Tensor:
        """Summed over positions, the mean of the layers."""
        if not streams:
            return torch.zeros((), device=self.student.device)
        pairs = zip(streams, view.hidden, strict=True)
        return torch.stack([hidden_distance(own, theirs).sum() for own, theirs in pairs]).mean()

    # ── chunks ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _in_chunks(self, hidden: Tensor, targets: Tensor, view: TeacherView, *, own_answers: bool) -> Tensor:
        """Sums of the labels' and the teacher's part, (N, D), (N,) -> (2,)."""
        size = self.chunk_tokens or max(1, CHUNK_BYTES // (4 * self.student.vocab_size))
        total = len(targets)
        if not total:
            return hidden.sum() * torch.zeros(2, device=hidden.device)  # no position, and still a gradient of zeros
        sums = [
            checkpoint(
                self._chunk,
                hidden[first : first + size],
                targets[first : first + size],
                view,
                first,
                own_answers,
                use_reentrant=False,
            )
            for first in range(0, total, size)
        ]
        return torch.stack(sums).sum(0)

    def _chunk(self, hidden: Tensor, targets: Tensor, view: TeacherView, first: int, own_answers: bool) -> Tensor:
        speaks = own_answers or self.weights.labels < 1
        teacher = view.chunk(first, first + len(targets)) if speaks else None
        with self.student.autocast():
            logits = self.student.head.logits_of_hidden(hidden)  # (C, V)
        apart = logits.new_zeros((), dtype=torch.float32) if teacher is None else self.divergence(logits, teacher).sum()
        if own_answers:
            return torch.stack([torch.zeros_like(apart), apart])
        learns = torch.enable_grad() if self.weights.labels and torch.is_grad_enabled() else torch.no_grad()
        with learns:
            labels = cross_entropy(logits, targets).sum()
        return torch.stack([labels, apart])
