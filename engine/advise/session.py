"""One walk through the questions: where we are, what was answered, what a change recomputes, and the saved progress.

Owns the order of steps and the answers file. Must not know screens; the TUI, plain prompts and flags all drive this.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.advise.answers import Answers
from engine.advise.option_state import OptionContext, OptionState, option_states
from engine.advise.questions import AnswerValue, Question, QuestionGraph, check_answer, format_answer
from engine.errors import EngineError
from engine.paths import ensure_writable, state_home

PROGRESS_VERSION = 1


@dataclass(frozen=True, slots=True)
class ChangeReport:
    """What an answer changed beyond itself."""

    recomputed: tuple[str, ...]
    """Ids of other questions whose value is now different."""
    sentences: tuple[str, ...]
    """One per recomputed question, for people."""


class _Progress(msgspec.Struct, frozen=True):
    version: int
    answers: dict[str, str | int | float]
    current: str


class Session:
    """The answers so far and the question in hand. Only real answers are kept; the rest follows the defaults."""

    def __init__(
        self, graph: QuestionGraph, answers: Mapping[str, AnswerValue] | None = None, *, save_to: Path | None = None
    ) -> None:
        """`save_to`: progress is written there after every step. Raises EngineError on an impossible answer."""
        self.graph = graph
        self._save_to = save_to
        self._given = {key: check_answer(graph.question(key), value) for key, value in (answers or {}).items()}
        self._current = self.visible[0].id
        self._finished = False
        self.measured_tokens: int | None = None
        self.message = ""
        """What happened while loading; "" when nothing did."""

    @property
    def visible(self) -> tuple[Question, ...]:
        """The questions of this branch."""
        return self.graph.visible(self._given)

    @property
    def current(self) -> Question:
        """The question in hand."""
        return self.graph.question(self._current)

    @property
    def finished(self) -> bool:
        """True once the last question of the branch was answered."""
        return self._finished

    def position(self) -> tuple[int, int]:
        """(step, of): counted within this branch, from 1."""
        ids = [question.id for question in self.visible]
        return ids.index(self._current) + 1, len(ids)

    def position_text(self) -> str:
        """ "Step 3 of 9"."""
        step, of = self.position()
        return f"Step {step} of {of}"

    def value(self, question_id: str) -> AnswerValue:
        """The answer of a question, or its default under the other answers."""
        return self.graph.with_defaults(self._given)[question_id]

    def is_answered(self, question_id: str) -> bool:
        """Whether the user answered it (a default is not an answer)."""
        return question_id in self._given

    def answers(self) -> Answers:
        """Everything, defaults included, typed."""
        return Answers(self.graph.with_defaults(self._given), self.measured_tokens)

    def answer(self, value: AnswerValue) -> ChangeReport:
        """Answer the question in hand and go to the next. Raises EngineError and stays when the value is impossible."""
        report = self.set_answer(self._current, value)
        ids = [question.id for question in self.visible]
        place = ids.index(self._current)
        self._finished = place + 1 == len(ids)
        if not self._finished:
            self._current = ids[place + 1]
        self._autosave()
        return report

    def set_answer(self, question_id: str, value: AnswerValue) -> ChangeReport:
        """Answer any question without moving; only its dependants are recomputed, everything else is kept."""
        question = self.graph.question(question_id)
        checked = check_answer(question, value)
        before = self.graph.with_defaults(self._given)
        visible_before = {item.id for item in self.visible}
        self._given[question_id] = checked
        if question_id == "data" and checked != before[question_id]:
            self.measured_tokens = None
        dependants = self.graph.dependants(question_id) if checked != before[question_id] else ()
        after = self.graph.with_defaults(self._given)
        report = self._report(dependants, before, after, visible_before)
        self._stay_visible()
        self._autosave()
        return report

    def _stay_visible(self) -> None:
        """A change elsewhere may hide the question in hand: go on with the next one that this branch asks."""
        order = [question.id for question in self.graph.questions]
        shown = {question.id for question in self.visible}
        if self._current not in shown:
            later = [name for name in order[order.index(self._current) :] if name in shown]
            self._current = later[0] if later else next(name for name in reversed(order) if name in shown)

    def back(self) -> Question:
        """The question before; later answers are kept. Stays on the first one."""
        step, _ = self.position()
        self._current = self.visible[max(step - 2, 0)].id
        self._finished = False
        self._autosave()
        return self.current

    def go_to(self, question_id: str) -> Question:
        """Jump to a visible question. Raises EngineError when this branch does not ask it."""
        question = self.graph.question(question_id)
        if question not in self.visible:
            raise EngineError(
                "question.hidden",
                f"'{question_id}' is not asked in this branch.",
                next_step="Change the answer it depends on first.",
            )
        self._current = question_id
        self._finished = False
        return question

    def options(self, question: Question, context: OptionContext) -> tuple[OptionState, ...]:
        """The options of `question`, each with what it would change; impossible ones stay, with the reason."""
        return option_states(question, self.answers(), context)

    def save(self, path: Path | None = None) -> Path:
        """Write progress atomically. Raises EngineError when the folder cannot be written."""
        target = path or self._save_to or default_progress_path()
        ensure_writable(target.parent)
        text = json.dumps(
            {"version": PROGRESS_VERSION, "answers": self._given, "current": self._current},
            ensure_ascii=False,
            indent=1,
        )
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise EngineError(
                "answers.save", f"Could not save your answers to {target}.", cause=error.strerror or str(error)
            ) from error
        return target

    def load(self, path: Path | None = None) -> bool:
        """Continue from saved progress; True when there was some. A damaged file is set aside and `message` says so."""
        source = path or self._save_to or default_progress_path()
        try:
            text = source.read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            self.message = f"Your saved answers could not be read ({error.strerror or error}); starting afresh."
            return False
        try:
            progress = msgspec.json.decode(text, type=_Progress)
            if progress.version != PROGRESS_VERSION:
                raise ValueError(f"version {progress.version}")
        except (msgspec.DecodeError, ValueError) as error:
            self.message = _set_aside(source, str(error))
            return False
        self._adopt(progress)
        return True

    def forget(self, path: Path | None = None) -> None:
        """Remove saved progress, for a fresh start."""
        (path or self._save_to or default_progress_path()).unlink(missing_ok=True)

    def _adopt(self, progress: _Progress) -> None:
        dropped = []
        self._given = {}
        for key, value in progress.answers.items():
            try:
                self._given[key] = check_answer(self.graph.question(key), value)
            except EngineError:
                dropped.append(key)
        ids = [question.id for question in self.visible]
        self._current = progress.current if progress.current in ids else ids[0]
        if dropped:
            self.message = f"Saved answers that no longer apply were left out: {', '.join(dropped)}."

    def _report(
        self,
        dependants: tuple[str, ...],
        before: Mapping[str, AnswerValue],
        after: Mapping[str, AnswerValue],
        visible_before: set[str],
    ) -> ChangeReport:
        recomputed, sentences = [], []
        visible_after = {item.id for item in self.visible}
        for question_id in dependants:
            question = self.graph.question(question_id)
            old, new = (format_answer(question, values[question_id]) for values in (before, after))
            if question_id in visible_after and before[question_id] != after[question_id]:
                recomputed.append(question_id)
                sentences.append(f"'{question.text}' is now {new} (was {old}).")
            elif question_id in visible_after - visible_before:
                recomputed.append(question_id)
                sentences.append(f"'{question.text}' is now asked; {new} until you answer.")
            elif question_id in visible_before - visible_after:
                recomputed.append(question_id)
                sentences.append(f"'{question.text}' is no longer asked.")
        return ChangeReport(tuple(recomputed), tuple(sentences))

    def _autosave(self) -> None:
        if self._save_to is None:
            return
        try:
            self.save(self._save_to)
        except EngineError as error:
            self.message = f"{error.what} {error.cause}".strip()


def default_progress_path() -> Path:
    """Where answers are kept between starts."""
    return state_home() / "answers.json"


def _set_aside(source: Path, why: str) -> str:
    aside = source.with_name(f"{source.name}.damaged")
    try:
        source.replace(aside)
    except OSError:
        return f"Your saved answers are damaged ({why}) and could not be set aside; starting afresh."
    return f"Your saved answers were damaged ({why}). They were set aside as {aside.name}; starting afresh."
