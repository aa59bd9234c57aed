"""Answers with types: what the rest of the engine reads instead of a dict.

Owns typed access to answered values and to facts found meanwhile (token counts of checked data). Must not know how
they were asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from engine.advise.questions import AnswerValue, check_answer, load_graph
from engine.jobs.spec_export import Destination

TEXT = "text"
"""Answer to the question about data: large text; which, is said by sources with weights."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Every question's value, defaults included. Make one with `answers_of`."""

    values: Mapping[str, AnswerValue] = field(default_factory=dict)
    measured_tokens: int | None = None
    """Tokens of one pass over the data, once it has been read; wins over any guess."""

    def get(self, question_id: str) -> AnswerValue:
        """The value of a question; its default when unanswered."""
        if question_id in self.values:
            return self.values[question_id]
        return load_graph().with_defaults(self.values)[question_id]

    def text(self, question_id: str) -> str:
        """The value as text."""
        return str(self.get(question_id))

    def number(self, question_id: str) -> float:
        """The value as a number."""
        return float(self.get(question_id))

    def with_values(self, **changed: AnswerValue) -> Answers:
        """A copy with some values replaced; nothing is recomputed."""
        return replace(self, values={**self.values, **changed})

    @property
    def model(self) -> str:
        """What the user called the model."""
        return self.text("model")

    @property
    def goal(self) -> str:
        """specialise, style, extraction, reasoning, long-documents, smaller or research."""
        return self.text("goal")

    @property
    def context(self) -> int:
        """Tokens to be read at once."""
        return int(self.number("context"))

    @property
    def trains_on_text(self) -> bool:
        """Whether it goes on training on large text, read as a stream, instead of rows."""
        return self.text("data") == TEXT

    @property
    def rented(self) -> bool:
        """Whether the hardware is paid by the hour."""
        return self.text("hardware") in ("rented", "this-rented")

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """The programs that the result is written for, beside a model's own folder."""
        output = self.text("output")
        return (Destination(output),) if output in (Destination.GGUF, Destination.OLLAMA) else ()

    @property
    def plans_for_this(self) -> bool:
        """Whether the job is for this very machine, owned or rented."""
        return self.text("hardware") in ("this", "this-rented")


def answers_of(given: Mapping[str, AnswerValue] | None = None, *, measured_tokens: int | None = None) -> Answers:
    """Checked `given` answers with the defaults of the rest. Raises EngineError on an unknown id or a bad value."""
    graph = load_graph()
    checked = {key: check_answer(graph.question(key), value) for key, value in (given or {}).items()}
    return Answers(graph.with_defaults(checked), measured_tokens)
