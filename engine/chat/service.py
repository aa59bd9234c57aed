"""The process of a chat at work: loads what `Open` names, answers every `Ask` side after side, tells as it goes.

Owns the order of things and that a side's failure is its own. Must not know where lines come from or go to.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from engine.chat.answering import Asked, Outcome, answer
from engine.chat.sides import Side, Sides
from engine.chat.unfolding import Unfolding
from engine.data.chat_template import TemplateRefusal
from engine.data.rows import Message
from engine.errors import EngineError, ExitCode
from engine.evaluation.answers import end_ids
from engine.helper_process import is_out_of_memory
from engine.jobs.chat_lines import (
    AllAnswered,
    Answered,
    Ask,
    Failed,
    Loading,
    News,
    Open,
    Piece,
    Problem,
    Ready,
    Sent,
    Show,
    SideFacts,
    SideReady,
    SideRefused,
    Turn,
)
from engine.train.environment import Device

PIECE_SECONDS = 0.05
"""Text of an answer is told at most this often."""


class Tell(Protocol):
    """Takes what the process has to say."""

    def __call__(self, news: News, /) -> None:
        """One line."""


class ChatService:
    """Sides in memory and the questions put to them."""

    def __init__(self, device: Device, tell: Tell, stopped: Callable[[], bool]) -> None:
        """`stopped` is asked between tokens: true ends the answers under way."""
        self._device = device
        self._tell = tell
        self._stopped = stopped
        self._sides: Sides | None = None

    # ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────
    def open(self, request: Open) -> None:
        """Load every side that can be; the facts of all follow, then `Ready`. Raises the EngineError of the only or
        last side when none could be."""
        began, count = time.monotonic(), len(request.sides)
        self._sides = sides = Sides(self._device, request.dtype)
        failure: EngineError | None = None
        for number, order in enumerate(request.sides):
            self._tell(Loading(words=f"loading {order.name}", done=number, total=count))
            try:
                _without_running_out(lambda n=number, o=order: sides.add(n, o))  # type: ignore[misc]
            except EngineError as error:
                failure = error
                self._tell(SideRefused(side=number, problem=problem_of(error)))
        if not sides.sides and failure is not None:
            raise failure
        for number, side in sides.sides.items():
            self._tell(SideReady(side=number, facts=self._facts(side)))
        self._tell(Ready(device=self._device.name, seconds=time.monotonic() - began))

    def _facts(self, side: Side) -> SideFacts:
        assert self._sides is not None
        template = side.tokenizer.template
        notes = [*side.order.notes, *side.notes]
        if template.is_default:
            notes.append("no chat template in its folder: a plain default is used")
        if side.slot.loaded.compute_dtype is not self._device.compute_dtype:
            notes.append(f"in {self._sides.weights_words(side)}: the usual type is {self._device.compute_dtype}")
        return SideFacts(
            template=template.text,
            template_origin=template.origin,
            template_is_default=template.is_default,
            window=side.slot.loaded.context_length,
            stop_tokens=tuple(side.tokenizer.token_text(number) for number in _ends(side)),
            weights=self._sides.weights_words(side),
            shares=self._sides.shares(side),
            notes=tuple(note.replace("torch.", "") for note in notes),
        )

    # ── answering ────────────────────────────────────────────────────────────────────────────────────────────────
    def show(self, request: Show) -> None:
        """What would be sent to each side."""
        for number, side, turns in self._asked(request.turns):
            try:
                text, ids = prompt_of(side, turns)
                self._tell(_sent(request.ask, number, side, text, len(ids)))
            except EngineError as error:
                self._tell(Failed(ask=request.ask, side=number, problem=problem_of(error)))

    def ask(self, request: Ask) -> None:
        """Answer, side after side; a side that fails says so and the next one goes on."""
        for number, side, turns in self._asked(request.turns):
            try:
                _without_running_out(lambda n=number, s=side, t=turns: self._answer(request, n, s, t))  # type: ignore[misc]
            except EngineError as error:
                self._tell(Failed(ask=request.ask, side=number, problem=problem_of(error)))
        self._tell(AllAnswered(ask=request.ask))

    def _asked(self, turns: Sequence[tuple[Turn, ...]]) -> list[tuple[int, Side, tuple[Turn, ...]]]:
        assert self._sides is not None, "opened before it is asked"
        sides = self._sides.sides
        return [(n, sides[n], of) for n, of in enumerate(turns) if of and n in sides]

    def _answer(self, request: Ask, number: int, side: Side, turns: tuple[Turn, ...]) -> None:
        text, ids = prompt_of(side, turns)
        window = side.slot.loaded.context_length
        check_room(len(ids), window)
        check_vocabulary(side, ids)
        self._tell(_sent(request.ask, number, side, text, len(ids)))
        asked = Asked(ids, request.sampling, frozenset(_ends(side)), window)
        outcome, unfolding, began = Outcome(), Unfolding(side.tokenizer), time.monotonic()
        waiting, told = "", began
        with side.opened() as model:
            for token in answer(model, asked, self._stopped, outcome):
                waiting += unfolding.add(token)
                if waiting and time.monotonic() - told >= PIECE_SECONDS:
                    self._tell(Piece(ask=request.ask, side=number, text=waiting, tokens=outcome.tokens))
                    waiting, told = "", time.monotonic()
        self._tell(
            Answered(
                ask=request.ask,
                side=number,
                text=unfolding.text,
                tokens=outcome.tokens,
                prompt_tokens=len(ids),
                ended=outcome.ended,
                seconds=time.monotonic() - began,
            )
        )


def prompt_of(side: Side, turns: Sequence[Turn]) -> tuple[str, tuple[int, ...]]:
    """The text a side is given for a conversation, special tokens included, and its tokens.

    Raises EngineError `chat.template` when the chat template refuses the turns.
    """
    messages = [Message(turn.role, turn.content) for turn in turns]
    try:
        text = side.tokenizer.render(messages, add_generation_prompt=True)
    except TemplateRefusal as refusal:
        system = any(turn.role == "system" for turn in turns)
        raise EngineError(
            "chat.template",
            f"The chat template of {side.order.name} refuses this conversation.",
            cause=str(refusal)[:300],
            next_step="Leave out the system text (--system)." if system else "Clear the conversation.",
        ) from refusal
    return text, side.tokenizer.encode(text)


def _sent(ask: int, number: int, side: Side, text: str, tokens: int) -> Sent:
    special = tuple(token for token in side.tokenizer.special_texts if token in text)
    return Sent(ask=ask, side=number, text=text, tokens=tokens, special=special)


def check_room(prompt_tokens: int, window: int) -> None:
    """Raises EngineError `chat.window` when no answer fits behind the prompt."""
    if window and prompt_tokens >= window:
        raise EngineError(
            "chat.window",
            f"The conversation fills the model's window: {prompt_tokens:,} tokens of {window:,}.",
            cause="No token of an answer would fit behind it.",
            next_step="Clear the conversation, or ask something shorter.",
        )


def check_vocabulary(side: Side, ids: Sequence[int]) -> None:
    """Raises EngineError `chat.vocabulary` for tokens that the model has no embedding for."""
    rows = side.slot.loaded.vocab_size
    if max(ids, default=0) >= rows:
        raise EngineError(
            "chat.vocabulary",
            f"The tokenizer of {side.order.name} has tokens that the model does not have.",
            cause=f"Token {max(ids):,} was to be sent; the model has embeddings for {rows:,}.",
            next_step=f"Put the model's own tokenizer files into {side.tokenizer_folder}.",
        )


def _ends(side: Side) -> list[int]:
    from dataclasses import replace

    return end_ids(replace(side.slot.loaded, tokenizer=side.tokenizer))


def problem_of(error: EngineError) -> Problem:
    """The error as a line can carry it."""
    return Problem(code=error.code, what=error.what, cause=error.cause, next_step=error.next_step)


def _without_running_out(work: Callable[[], object]) -> None:
    """Do `work`; memory that runs out becomes an EngineError `chat.memory`, and is free again; what libraries raise
    becomes `chat.model`, so that one side's trouble is its own."""
    try:
        work()
        return
    except (MemoryError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        cause = " ".join(str(error).split())[:200]
        if not is_out_of_memory(error):
            traceback.print_exc()  # for who looks into it; standard output is for lines alone
            raise EngineError(
                "chat.model",
                "The model's own code failed.",
                cause=f"{type(error).__name__}: {cause}",
                next_step="Look at the model with: scaler-wizard inspect FOLDER; other sides go on.",
                exit_code=ExitCode.RUN_FAILED,
            ) from error
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise EngineError(
        "chat.memory",
        "The memory ran out.",
        cause=cause,
        next_step="Ask something shorter, compare fewer models, or load smaller: --quantization nf4.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )
