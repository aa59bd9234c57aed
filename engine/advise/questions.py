"""The question graph: what is asked, why, in which order, and what depends on what.

Owns the shape of `profiles/questions.toml`, visibility, defaults and the reading of typed answers. One graph drives
the TUI, `--plain` prompts and flags. Must not know machines, the matrix, or what was answered so far (a session does).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import msgspec

from engine.errors import EngineError
from engine.profiles import load_profile
from engine.units import format_count, format_usd, parse_count

AnswerValue = str | int | float


class QuestionKind(StrEnum):
    CHOICE = "choice"
    NUMBER = "number"
    TEXT = "text"
    PATH = "path"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Option:
    """One offered answer. Numbers, texts, paths and models may also be typed freely."""

    value: AnswerValue
    label: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds when the answer to `question` is one of `is_in`."""

    question: str
    is_in: tuple[AnswerValue, ...]

    def holds(self, answers: Mapping[str, AnswerValue]) -> bool:
        """Whether the condition holds under `answers`."""
        return answers.get(self.question) in self.is_in


@dataclass(frozen=True, slots=True)
class DefaultRule:
    """The default is `value` while `condition` holds, and `also` where there is one."""

    condition: Condition
    value: AnswerValue
    also: Condition | None = None

    def holds(self, answers: Mapping[str, AnswerValue]) -> bool:
        """Whether both hold under `answers`."""
        return self.condition.holds(answers) and (self.also is None or self.also.holds(answers))


@dataclass(frozen=True, slots=True)
class Question:
    """One step of the wizard."""

    id: str
    text: str
    why: str
    """Why it is asked."""
    affects: str
    """What the answer changes, in words."""
    kind: QuestionKind
    default: AnswerValue
    options: tuple[Option, ...] = ()
    default_when: tuple[DefaultRule, ...] = ()
    depends_on: tuple[str, ...] = ()
    visible_when: tuple[Condition, ...] = ()
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    allow_empty: bool = False

    def default_for(self, answers: Mapping[str, AnswerValue]) -> AnswerValue:
        """The default under earlier answers."""
        for rule in self.default_when:
            if rule.holds(answers):
                return rule.value
        return self.default


@dataclass(frozen=True, slots=True)
class QuestionGraph:
    """All questions in the order they are asked."""

    questions: tuple[Question, ...]

    def question(self, question_id: str) -> Question:
        """The question `question_id`. Raises EngineError `question.unknown`."""
        for question in self.questions:
            if question.id == question_id:
                return question
        known = ", ".join(question.id for question in self.questions)
        raise EngineError("question.unknown", f"There is no question '{question_id}'.", next_step=f"Known: {known}.")

    def with_defaults(self, answers: Mapping[str, AnswerValue]) -> dict[str, AnswerValue]:
        """`answers` plus the default of every question not in it; hidden questions get theirs too."""
        full = dict(answers)
        for question in self.questions:
            if question.id not in full:
                full[question.id] = question.default_for(full)
        return full

    def visible(self, answers: Mapping[str, AnswerValue]) -> tuple[Question, ...]:
        """The questions of this branch, in order."""
        full = self.with_defaults(answers)
        return tuple(q for q in self.questions if all(condition.holds(full) for condition in q.visible_when))

    def dependants(self, question_id: str) -> tuple[str, ...]:
        """Ids of all questions that depend on `question_id`, directly or through others, in order."""
        reached = {question_id}
        for question in self.questions:
            hidden_by = {condition.question for condition in question.visible_when}
            if reached & (set(question.depends_on) | hidden_by):
                reached.add(question.id)
        return tuple(q.id for q in self.questions if q.id in reached and q.id != question_id)


def flag_name(question: Question) -> str:
    """`budget_usd` -> "--budget-usd"."""
    return "--" + question.id.replace("_", "-")


def parse_answer(question: Question, text: str) -> AnswerValue:
    """A typed or flagged answer as a checked value; numbers choose an option by value, never by position.

    Raises EngineError `answer.*` that names the flag and what is possible.
    """
    stripped = text.strip()
    if question.kind is QuestionKind.NUMBER:
        return check_answer(question, _parse_number(question, stripped))
    return check_answer(question, stripped)


def check_answer(question: Question, value: AnswerValue) -> AnswerValue:
    """`value` as the question's type, or EngineError `answer.*`."""
    if question.kind is QuestionKind.NUMBER:
        return _check_number(question, value)
    text = str(value).strip()
    if question.kind is QuestionKind.CHOICE:
        return _check_choice(question, text)
    if not text and not question.allow_empty:
        example = f"{question.default or question.options[0].value}"
        raise EngineError(
            "answer.empty",
            f"'{question.id}' needs an answer.",
            next_step=f"Name a folder, a hub id, or {example}."  # it has no flag: it is the word behind a command
            if question.id == "model"
            else f"For example {flag_name(question)} {example!r}.",
        )
    if len(text) > 4096 or "\0" in text or "\n" in text:
        raise EngineError("answer.text", f"The answer to '{question.id}' is not one line of text.")
    return text


def format_answer(question: Question, value: AnswerValue) -> str:
    """The answer as people read it: an option's label, else the value with its unit."""
    for option in question.options:
        if option.value == value:
            return option.label
    if question.kind is not QuestionKind.NUMBER or isinstance(value, str):
        return str(value) or "none"
    if question.unit == "usd":
        return format_usd(value)
    if question.unit == "usd_per_hour":
        return f"{format_usd(value)} an hour"
    if question.unit == "usd_per_kwh":
        return f"{format_usd(value)} per kWh"
    if question.unit == "length":
        return f"{int(value):,} tokens"
    return f"{format_count(value)} {question.unit}"


def _check_choice(question: Question, text: str) -> str:
    values = [str(option.value) for option in question.options]
    if text in values:
        return text
    raise EngineError(
        "answer.choice",
        f"'{text}' is no answer to '{question.id}'.",
        cause=question.text,
        next_step=f"Choose one of: {', '.join(values)}.",
    )


def _check_number(question: Question, value: AnswerValue) -> float | int:
    number = _parse_number(question, value) if isinstance(value, str) else value
    low, high = question.minimum, question.maximum
    if (
        isinstance(number, bool)
        or number != number
        or (low is not None and number < low)
        or (high is not None and number > high)
    ):
        raise EngineError(
            "answer.range",
            f"{number:,} is outside what '{question.id}' allows.",
            next_step=f"Give a number from {low or 0:,.0f} to {high or 0:,.0f}.",
        )
    return int(number) if float(number).is_integer() else float(number)


def _parse_number(question: Question, text: str) -> float:
    cleaned = text.strip().lstrip("$").strip()
    binary = re.fullmatch(r"([0-9]+)\s*[kK]", cleaned)
    if question.unit == "length" and binary:
        return float(int(binary.group(1)) * 1024)
    if re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", cleaned):
        return float(cleaned)
    try:
        return float(parse_count(cleaned))
    except EngineError as error:
        raise EngineError(
            "answer.number",
            f"'{text}' is no number for '{question.id}'.",
            cause=question.text,
            next_step=f"For example {flag_name(question)} {question.default}.",
        ) from error


class _OptionFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: str | int | float
    label: str
    hint: str = ""


class _ConditionFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    question: str
    is_in: list[str | int | float]


class _DefaultFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    question: str
    is_in: list[str | int | float]
    value: str | int | float
    also: _ConditionFile | None = None

    @property
    def rule(self) -> DefaultRule:
        also = None if self.also is None else Condition(self.also.question, tuple(self.also.is_in))
        return DefaultRule(Condition(self.question, tuple(self.is_in)), self.value, also)


class _QuestionFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    id: str
    text: str
    why: str
    affects: str
    kind: QuestionKind
    default: str | int | float
    options: list[_OptionFile] = []
    default_when: list[_DefaultFile] = []
    depends_on: list[str] = []
    visible_when: list[_ConditionFile] = []
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    allow_empty: bool = False


class _GraphFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    question: list[_QuestionFile]


@lru_cache(maxsize=1)
def load_graph() -> QuestionGraph:
    """The graph of `profiles/questions.toml`. Raises EngineError when the file is wrong."""
    return _graph_of(load_profile("questions.toml", _GraphFile))


def _graph_of(file: _GraphFile) -> QuestionGraph:
    seen: set[str] = set()
    for entry in file.question:
        needed = {
            *entry.depends_on,
            *(c.question for c in entry.visible_when),
            *(d.question for d in entry.default_when),
            *(d.also.question for d in entry.default_when if d.also is not None),
        }
        missing = sorted(needed - seen)
        if missing or entry.id in seen:
            raise EngineError(
                "question.order",
                f"questions.toml: '{entry.id}' refers to {missing or 'an id that is taken'}.",
                next_step="A question may only depend on questions above it, and ids are unique.",
            )
        seen.add(entry.id)
    return QuestionGraph(tuple(_question_of(entry) for entry in file.question))


def _question_of(entry: _QuestionFile) -> Question:
    return Question(
        id=entry.id,
        text=entry.text,
        why=entry.why,
        affects=entry.affects,
        kind=entry.kind,
        default=entry.default,
        options=tuple(Option(o.value, o.label, o.hint) for o in entry.options),
        default_when=tuple(default.rule for default in entry.default_when),
        depends_on=tuple(entry.depends_on),
        visible_when=tuple(Condition(c.question, tuple(c.is_in)) for c in entry.visible_when),
        unit=entry.unit,
        minimum=entry.minimum,
        maximum=entry.maximum,
        allow_empty=entry.allow_empty,
    )
