"""A chat as it stands: who takes part, what each was told and said, what is under way. A fold of the process's news.

Owns the conversation and its settings. Must not know Textual, processes or files: the screen, the line mode and the
tests share it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.jobs.chat_lines import (
    SEEDS,
    AllAnswered,
    Answered,
    Ask,
    Failed,
    Loading,
    News,
    Piece,
    Problem,
    Ready,
    Sampling,
    Sent,
    Show,
    SideFacts,
    SideOrder,
    SideReady,
    SideRefused,
    Turn,
)
from engine.jobs.chat_log import Exchange, SavedAnswer

ENDED_WORDS = {
    "end": "",
    "length": "cut at the most tokens asked for",
    "window": "the model's window is full",
    "stopped": "stopped",
    "failed": "no answer",
}


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """`text` with control characters in caret form: a model may write escape sequences, the terminal must not obey."""
    return _CONTROL.sub(lambda found: f"^{chr((ord(found[0]) & 0x7F) ^ 0x40)}", text)


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How a chat was asked to begin."""

    sampling: Sampling = field(default_factory=Sampling)
    system: str = ""
    dtype: str = "auto"
    threads: int = 0
    """Of the processor; 0 is all of them."""


class Phase(StrEnum):
    """What the chat is doing."""

    LOADING = "loading"
    READY = "ready"
    ANSWERING = "answering"
    OVER = "over"
    """The process is gone."""


def changed(sampling: Sampling, name: str, text: str) -> Sampling | str:
    """`sampling` with "seed" or "temperature" as typed; words for people when it is no such thing."""
    typed = text.strip()
    try:
        number = float(typed.replace(",", "."))
    except ValueError:
        return f"'{typed[:20]}' is no number."
    if name == "seed":
        if not (typed.isdecimal() and len(typed) < 20) or int(typed) >= SEEDS:
            return f"A seed is a whole number from 0 to {SEEDS - 1:,}."
        return msgspec.structs.replace(sampling, seed=int(typed))
    if not 0 <= number <= 100:
        return "A temperature is a number from 0 to 100; 0 is always the likeliest token."
    return msgspec.structs.replace(sampling, temperature=number)


def as_typed(sampling: Sampling, name: str) -> str:
    """The setting as a person types it; `changed` gives the same back."""
    value = getattr(sampling, name)
    return str(int(value)) if value == int(value) else str(value)


@dataclass(slots=True)
class Answer:
    """One side's answer to one question."""

    prompt: str
    text: str = ""
    sent: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    ended: str = ""
    """ "" while it comes; see ENDED_WORDS."""
    problem: Problem | None = None

    @property
    def counts(self) -> bool:
        """Whether it belongs to what the model is told later."""
        return bool(self.ended) and self.problem is None

    @property
    def words(self) -> str:
        """Its figures: "12 tokens, 31 a second; stopped"."""
        if not self.ended or self.problem is not None:
            return ""
        rate = f", {self.tokens / self.seconds:.1f} a second" if self.seconds > 0 else ""
        how = f"; {ENDED_WORDS[self.ended]}" if ENDED_WORDS.get(self.ended) else ""
        return f"{self.tokens} token{'s' if self.tokens != 1 else ''}{rate}{how}"


@dataclass(slots=True)
class SideState:
    """One side."""

    order: SideOrder
    facts: SideFacts | None = None
    problem: Problem | None = None
    """Why it could not be loaded."""
    answers: list[Answer] = field(default_factory=list)
    """Of the conversation, oldest first."""
    sent: str = ""
    """The very text it was given last, special tokens included."""
    sent_tokens: int = 0
    special: tuple[str, ...] = ()
    """The special tokens in `sent`."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to know about it."""
        return self.facts.notes if self.facts is not None else self.order.notes

    def turns(self, system: str, prompt: str) -> tuple[Turn, ...]:
        """The conversation so far and one more question."""
        turns = [Turn("system", system)] if system else []
        for answer in self.answers:
            if answer.counts:
                turns += [Turn("user", answer.prompt), Turn("assistant", answer.text)]
        return (*turns, Turn("user", prompt))


@dataclass(slots=True)
class ChatState:
    """The whole chat."""

    sides: list[SideState]
    sampling: Sampling = field(default_factory=Sampling)
    system: str = ""
    phase: Phase = Phase.LOADING
    loading: str = "starting"
    device: str = ""
    load_seconds: float = 0.0
    error: EngineError | None = None
    prompt: str = ""
    """The newest question; "" after a clear."""
    clock: Callable[[], float] = time.time
    _ask: int = 0
    _again: bool = False
    _asked: tuple[Sampling, str] = (Sampling(), "")
    """Sampling and system text of the newest question: those may change while it is answered."""
    _began: float = 0.0
    """Wall time of the conversation's first question; 0 before it."""

    @property
    def live(self) -> list[int]:
        """Numbers of the sides that can be asked."""
        return [number for number, side in enumerate(self.sides) if side.facts is not None]

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────
    def ask(self, prompt: str) -> Ask:
        """Put a question to every side; send what this returns."""
        self._ask += 1
        self._again, self.prompt, self.phase = False, prompt, Phase.ANSWERING
        self._asked = (self.sampling, self.system)
        self._began = self._began or self.clock()
        turns = self._turns(prompt)
        for number in self.live:
            self.sides[number].answers.append(Answer(prompt))
        return Ask(ask=self._ask, turns=turns, sampling=self.sampling)

    def again(self) -> Ask:
        """The newest question once more, with the settings as they are now; its answers are replaced."""
        for number in self.live:
            answers = self.sides[number].answers
            if answers and answers[-1].prompt == self.prompt:
                answers.pop()
        request = self.ask(self.prompt)
        self._again = True
        return request

    def show(self, prompt: str) -> Show:
        """Ask what would be sent for `prompt`, without an answer."""
        self._ask += 1
        return Show(ask=self._ask, turns=self._turns(prompt))

    def _turns(self, prompt: str) -> tuple[tuple[Turn, ...], ...]:
        live = self.live
        return tuple(
            side.turns(self.system, prompt) if number in live else () for number, side in enumerate(self.sides)
        )

    def clear(self) -> None:
        """Forget the conversation; what was saved stays saved."""
        for side in self.sides:
            side.answers.clear()
            side.sent, side.sent_tokens = "", 0
        self.prompt, self._began = "", 0.0

    def exchange(self, run_dir: Path | None) -> Exchange:
        """The newest question and its answers, as they are saved."""
        sides = [side for side in self.sides if side.answers]
        turn = max((len(side.answers) for side in sides), default=1)
        sampling, system = self._asked
        return Exchange(
            t=self.clock(),
            prompt=self.prompt,
            answers=tuple(_saved(side, run_dir) for side in sides),
            sampling=sampling,
            system=system,
            began=self._began,
            turn=turn,
            again=self._again,
        )

    # ── news ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def take(self, news: News) -> bool:
        """Fold one line; true when a question was answered by all and can be saved."""
        if isinstance(news, Loading):
            self.loading = f"{news.words} ({news.done + 1} of {news.total})" if news.total > 1 else news.words
        elif isinstance(news, SideReady):
            self.sides[news.side].facts = news.facts
        elif isinstance(news, SideRefused):
            self.sides[news.side].problem = news.problem
        elif isinstance(news, Ready):
            self.phase, self.device, self.load_seconds = Phase.READY, news.device, news.seconds
        elif isinstance(news, AllAnswered):
            self.phase = Phase.READY
            return True
        else:
            self._take_answer(news)
        return False

    def _take_answer(self, news: Sent | Piece | Answered | Failed) -> None:
        side = self.sides[news.side]
        answer = side.answers[-1] if side.answers and not side.answers[-1].ended else None
        if isinstance(news, Sent):
            side.sent, side.sent_tokens, side.special = news.text, news.tokens, news.special
        if answer is None:
            if isinstance(news, Failed):
                side.sent, side.sent_tokens = f"{news.problem.what} {news.problem.cause}".strip(), 0
            return
        if isinstance(news, Sent):
            answer.sent, answer.prompt_tokens = news.text, news.tokens
        elif isinstance(news, Piece):
            answer.text += news.text
            answer.tokens = news.tokens
        elif isinstance(news, Answered):
            answer.text, answer.ended, answer.tokens = news.text, news.ended, news.tokens
            answer.seconds, answer.prompt_tokens = news.seconds, news.prompt_tokens
        else:
            answer.ended, answer.problem = "failed", news.problem

    def over(self, error: EngineError | None) -> None:
        """The process is gone; answers under way end where they are."""
        self.phase, self.error = Phase.OVER, error
        for side in self.sides:
            for answer in side.answers:
                if not answer.ended:
                    answer.ended = "stopped"


def _saved(side: SideState, run_dir: Path | None) -> SavedAnswer:
    answer = side.answers[-1]
    before = side.answers[-2].sent if len(side.answers) > 1 else ""
    shared = _shared(before, answer.sent)
    folder = Path(side.order.folder)
    if run_dir is not None and folder.is_relative_to(run_dir):
        folder = folder.relative_to(run_dir)
    problem = answer.problem
    return SavedAnswer(
        side=side.order.name,
        folder=str(folder),
        text=answer.text,
        ended=answer.ended,
        tokens=answer.tokens,
        prompt_tokens=answer.prompt_tokens,
        seconds=answer.seconds,
        sent=answer.sent[shared:],
        sent_shared=shared,
        problem=" ".join(text for text in (problem.what, problem.cause) if text) if problem is not None else "",
    )


def _shared(before: str, after: str) -> int:
    """Characters that both begin with."""
    pairs = zip(before, after, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(before), len(after)))
