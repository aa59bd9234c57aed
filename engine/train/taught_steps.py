"""Steps with a teacher: whose answers they learn on, and their loss; what the trainer asks where there is one.

Owns turning the student's own answers into micro-batches, and what happens when memory runs out over them. Must not
know how a teacher is held (`engine.train.teaching`), nor journals.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engine.data.rows import EncodedRow, RowKind
from engine.distill.objective import Objective
from engine.distill.onpolicy import PROMPTS_PER_BATCH, OwnAnswer, Writing, is_own_step, prompts_of, write_answers
from engine.evaluation.head import Wanted
from engine.evaluation.model import LoadedModel
from engine.helper_process import is_out_of_memory
from engine.train.batches import Collator, make_dataset
from engine.train.pieces import Split, out_of_memory, release

OWN_ANSWERS = "own_answers"
"""Key of a micro-batch: whether the student wrote what it learns on."""

NO_PROMPT = (
    "A step that was to learn on the student's own answers found no prompt in its rows, and learns on the rows instead."
)


@dataclass(frozen=True, slots=True)
class Written:
    """The student answered the prompts of a step."""

    step: int
    answers: tuple[OwnAnswer, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """New ones."""
        return sum(len(one.answer) for one in self.answers)


@dataclass(frozen=True, slots=True)
class Batching:
    """Of own answers: as the stage's rows are."""

    pad_id: int
    max_length: int
    batch_size: int
    packing: bool


@dataclass(frozen=True, slots=True)
class TaughtSteps:
    """Of one training."""

    student: LoadedModel
    objective: Objective
    writing: Writing
    batching: Batching
    tell: Callable[[Written], None]
    warn: Callable[[str], None]
    """Told every time; what is said twice is for the other side to leave out."""
    look: Callable[[], None]
    """Called at the beginning of every step."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Of a micro-batch, summed over its trained tokens, nats. Raises EngineError `distill.*`."""
        wanted = _wanted(inputs)
        return self.objective.loss(model, wanted, inputs["targets"], own_answers=bool(inputs.get(OWN_ANSWERS)))

    def items(self, items: list[Any], step: int, pieces: int) -> tuple[list[Any], Split | None]:
        """What step `step`, from 1 over all stages, learns on: its data, or in their place, item by item, lists of
        micro-batches with own answers to their prompts, written in batches that are `pieces` times smaller. A Split
        where memory ran out over them.

        Raises EngineError `train.out_of_memory` where a single answer does not fit, `distill.nothing_aligned`.
        """
        self.objective.begin_step()
        self.look()
        if not is_own_step(self.writing, step):
            return items, None
        batches = [batch for item in items for batch in (item if isinstance(item, list) else [item])]
        prompts = prompts_of([_wanted(batch) for batch in batches])
        if not prompts:
            self.warn(NO_PROMPT)
            return items, None
        began = time.perf_counter()
        answers, split = self._write(prompts, step, pieces)
        self.tell(Written(step, tuple(answers), time.perf_counter() - began))
        return _dealt(self._batches(answers), len(items)), split

    def _write(
        self, prompts: Sequence[tuple[int, ...]], step: int, pieces: int
    ) -> tuple[list[OwnAnswer], Split | None]:
        cause = ""
        while True:
            try:
                answers = write_answers(self.student, prompts, self.writing, step, pieces)
                return answers, Split(pieces, cause, answers=True) if cause else None
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                cause = " ".join(str(error).split())[:300] or type(error).__name__
            release(self.student.model)
            if pieces >= min(PROMPTS_PER_BATCH, len(prompts)):
                raise out_of_memory("answers of the student's own", cause)
            pieces *= 2

    def _batches(self, answers: Sequence[OwnAnswer]) -> list[dict[str, Any]]:
        """Micro-batches of the size that the stage's have."""
        rows = [
            EncodedRow(
                input_ids=one.prompt + one.answer,
                trained=(False,) * len(one.prompt) + (True,) * len(one.answer),
                line=number,
                kind=RowKind.CHAT,
                full_length=len(one.prompt) + len(one.answer),
            )
            for number, one in enumerate(answers, 1)
        ]
        batching = self.batching
        sequences = make_dataset(rows, batching.max_length, packing=batching.packing).sequences
        collate, size = Collator(batching.pad_id), batching.batch_size
        return [
            {**collate(sequences[first : first + size]), OWN_ANSWERS: True} for first in range(0, len(sequences), size)
        ]


def _dealt(batches: list[dict[str, Any]], items: int) -> list[Any]:
    """Into as many lists as the Trainer counts micro-batches; the first may be empty."""
    borders = [len(batches) * number // items for number in range(items + 1)]
    return [batches[first:last] for first, last in itertools.pairwise(borders)]


def _wanted(batch: dict[str, Any]) -> Wanted:
    return Wanted(batch["input_ids"], batch["position_ids"], batch["positions"], batch.get("attention_mask"))
