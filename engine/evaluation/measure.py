"""One measurement of a model, before or after: task loss, exact match, forgetting, sample answers.

Owns what is measured and how much of it. Must not know training or where results are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from engine.data.rows import EncodedRow
from engine.evaluation.answers import Question, answer_all
from engine.evaluation.model import LoadedModel
from engine.evaluation.rows import score_rows
from engine.jobs.card import Scores

Report = Callable[[str, int, int], None]
"""(what is measured, done, total)."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """Scores and the answers to the fixed prompts, in their order."""

    scores: Scores
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What a model is measured with; the same before and after."""

    heldout: Sequence[EncodedRow]
    base_text: Sequence[EncodedRow]
    questions: Sequence[Question]
    exact_match_rows: int
    max_new_tokens: int

    def measure(self, model: LoadedModel, report: Report = lambda *_: None) -> Measurement:
        """Everything, on `model` as it is now."""
        began = time.monotonic()
        task = score_rows(model, self.heldout, lambda done, total: report("held-out rows", done, total))
        verdicts = [verdict for verdict in task.answered if verdict is not None][: self.exact_match_rows]
        base = score_rows(model, self.base_text, lambda done, total: report("base text", done, total))
        report("sample answers", 0, len(self.questions))
        answers = answer_all(model, self.questions, self.max_new_tokens)
        scores = Scores(
            task_loss=task.loss,
            task_tokens=task.tokens,
            exact_match=sum(verdicts) / len(verdicts) if verdicts else None,
            exact_match_rows=len(verdicts),
            base_perplexity=math.exp(min(base.loss, 700.0)) if base.tokens else None,
            base_tokens=base.tokens,
            seconds=time.monotonic() - began,
        )
        return Measurement(scores=scores, answers=tuple(answers))
