"""A model in memory as a teacher: asked in evaluation mode, without gradients, in the student's precision.

Owns how it is asked. Must not know how it was loaded or where its weights are (`engine.distill.streaming`).

Its layers run once per micro-batch and leave N hidden states; its head runs on a chunk of them at a time, as often as
the chunk's loss is computed. So a batch costs N x D, never N x V:

    ids (B, T) ──► layers ──► hidden (N, D) ──► [chunk ──► head ──► (C, V)] x N / C, and again in the backward pass
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from engine.distill.hidden import LayerEar
from engine.distill.knowledge import FullLogits, TopLogits, top_of
from engine.errors import EngineError, ExitCode
from engine.evaluation.adapter_switch import AdapterSwitch
from engine.evaluation.head import Wanted
from engine.evaluation.model import LoadedModel

Opened = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Says:
    """What of its knowledge a teacher gives."""

    vocabulary: int = 0
    """Ids from 0 that the student shares; 0 for all."""
    top_k: int = 0
    """0 for all logits."""
    temperature: float = 1.0
    """Of top-k log-probabilities."""


class ModelTeacher:
    """`Knowledge` of a loaded model."""

    def __init__(
        self,
        loaded: LoadedModel,
        says: Says,
        *,
        ear: LayerEar | None = None,
        as_teacher: Opened = contextlib.nullcontext,
        head_as_teacher: Opened = contextlib.nullcontext,
    ) -> None:
        """`as_teacher` opens the model as it teaches, where it is the student's own: without its adapter.
        `head_as_teacher` opens the head alone, for every chunk."""
        self.loaded = loaded
        self.says = says
        self._ear = ear
        self._as_teacher = as_teacher
        self._head_as_teacher = head_as_teacher

    def at(self, wanted: Wanted) -> ModelView:
        """Runs the layers. Raises EngineError `train.head_not_in_pieces`, `distillation.token_unknown`."""
        loaded, ear = self.loaded, self._ear
        _check_known(wanted.input_ids, loaded.model)
        wanted = _on(loaded.device, wanted)
        with self._open(), contextlib.nullcontext() if ear is None else ear.listening(wanted.positions):
            hidden = loaded.head.hidden_at(loaded.model, wanted)
        return ModelView(self, hidden, () if ear is None else ear.taken())

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        with self.loaded.inference(), self._as_teacher(), self.loaded.autocast():
            yield

    def logits_of(self, hidden: Tensor) -> Tensor:
        """(C, D) -> (C, V) of the shared vocabulary."""
        with torch.no_grad(), self._head_as_teacher(), self.loaded.autocast():
            logits = self.loaded.head.logits_of_hidden(hidden)
        return logits[:, : self.says.vocabulary] if self.says.vocabulary else logits


@dataclass(frozen=True, slots=True)
class ModelView:
    """`TeacherView` of one micro-batch."""

    teacher: ModelTeacher
    states: Tensor  # (N, D)
    hidden: tuple[Tensor, ...]

    def chunk(self, first: int, last: int) -> FullLogits | TopLogits:
        """Logits, or the most likely of them."""
        logits, says = self.teacher.logits_of(self.states[first:last]), self.teacher.says
        return top_of(logits, says.top_k, says.temperature) if says.top_k else FullLogits(logits)


def _check_known(ids: Tensor, model: Any) -> None:
    """Streams are not read beforehand: a token behind the teacher's embedding is seen here first, while an index out of
    range says nothing, and on a card ends the process."""
    rows = model.get_input_embeddings().weight.shape[0]
    largest = int(ids.max()) if ids.numel() else 0
    if largest >= rows:
        raise EngineError(
            "distillation.token_unknown",
            f"The data uses token {largest:,}, which the teacher does not have: it knows {rows:,}.",
            cause="The student's tokenizer has tokens that were added behind those of the teacher.",
            next_step='Choose a teacher with the same added tokens, or set distillation.tokenizers = "uld".',
            exit_code=ExitCode.RUN_FAILED,
        )


def _on(device: str, wanted: Wanted) -> Wanted:
    mask = wanted.attention_mask
    return replace(
        wanted,
        input_ids=wanted.input_ids.to(device),
        position_ids=wanted.position_ids.to(device),
        positions=wanted.positions.to(device),
        attention_mask=None if mask is None else mask.to(device),
    )


def own_teacher(student: LoadedModel, says: Says, ear: LayerEar | None = None) -> ModelTeacher:
    """The student without its adapter: no weights beside its own. The same ear hears both, one after the other."""
    model = student.model
    head = AdapterSwitch(model.get_output_embeddings())
    return ModelTeacher(student, says, ear=ear, as_teacher=AdapterSwitch(model).off, head_as_teacher=head.off)
