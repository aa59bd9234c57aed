"""`chat` without a screen: questions from --prompt or standard input, answers as text or JSON, everything saved.

Owns the lines. Must not import torch or Textual: the models are in a process of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, ExitCode
from scaler_tui import output, prompts

if TYPE_CHECKING:
    from engine.jobs.chat_lines import Ask, News, Problem
    from engine.jobs.chat_log import Exchange
    from scaler_tui.chat_sides import ChatSides
    from scaler_tui.chat_state import ChatSettings, ChatState

_HELP = (
    "Type a question, or: /again the same once more, /clear a new conversation, /seed N, /temperature T, /template the "
    "text that was sent, q to leave. Ctrl+C stops an answer."
)


def chat(arguments: argparse.Namespace) -> int:
    """Talk line by line. Raises EngineError."""
    from scaler_tui.chat_sides import chat_sides
    from scaler_tui.cli_chat import asked_of, settings_of
    from scaler_tui.terminal import ends_when_told

    talk = LineChat(chat_sides(asked_of(arguments)), settings_of(arguments), quiet=arguments.json)
    try:
        with ends_when_told():
            talk.open()
            return _converse(arguments, talk)
    finally:
        talk.close()


def _converse(arguments: argparse.Namespace, talk: LineChat) -> int:
    if arguments.prompt:
        return _ask_all(arguments, talk)
    interactive = sys.stdin is not None and sys.stdin.isatty() and not arguments.json
    prompts.prepare()
    talk.watched = interactive
    with talk.hears_ctrl_c() if interactive else contextlib.nullcontext():
        for request in _typed(talk) if interactive else _piped(talk):
            exchange = talk.put(request, shown=not arguments.json)
            if arguments.json:
                output.emit_json(exchange, indent=0)
                output.flush()
    failure = talk.unanswered or talk.left_out()
    if interactive or failure is None:
        return int(ExitCode.DONE)
    if not arguments.json:  # else its line has said so
        raise failure
    return int(failure.exit_code)


def _ask_all(arguments: argparse.Namespace, talk: LineChat) -> int:
    """Every --prompt as a turn of one conversation; what was answered is told although a later one failed."""
    exchanges: list[Exchange] = []
    failure: EngineError | None = None
    try:
        for prompt in arguments.prompt:
            exchanges.append(talk.put(talk.state.ask(prompt), shown=not arguments.json))
    except EngineError as error:
        failure = error
    failure = failure or talk.unanswered or talk.left_out()
    if arguments.json and exchanges:
        output.emit_json(_document(talk, exchanges, failure))
    elif failure is not None:
        raise failure
    return int(failure.exit_code if failure is not None else ExitCode.DONE)


def _document(talk: LineChat, exchanges: list[Exchange], failure: EngineError | None) -> dict[str, Any]:
    state = talk.state
    return {
        "sides": [
            {"order": side.order, "facts": side.facts, "problem": side.problem} for side in state.sides
        ],
        "device": state.device,
        "load_seconds": state.load_seconds,
        "exchanges": exchanges,
        "saved": str(talk.saved) if talk.saved is not None else "",
        **({"error": failure.as_dict()} if failure is not None else {}),
    }  # fmt: skip


class Interrupted:
    """Ctrl+C, among the news."""


class LineChat:
    """A chat whose questions come one after the other, each answered before the next."""

    def __init__(self, found: ChatSides, settings: ChatSettings, *, quiet: bool) -> None:
        """`quiet`: nothing is said beside the answers."""
        from engine.jobs.chat_lines import Open
        from engine.jobs.chat_log import ChatLog, chats_dir
        from scaler_tui.chat_process import ChatProcess
        from scaler_tui.chat_state import ChatState, SideState

        self.state: ChatState = ChatState(
            [SideState(side) for side in found.sides], sampling=settings.sampling, system=settings.system
        )
        self.saved: Path | None = None
        """The file that the newest exchange is in."""
        self.watched = False
        """Somebody waits for the answer: say that it is under way."""
        self._answering = False
        self.unanswered: EngineError | None = None
        """Why nobody answered the first of the questions that nobody answered."""
        self._process = ChatProcess(Open(sides=found.sides, dtype=settings.dtype, threads=settings.threads))
        # A simple queue: a signal's handler may put into it whatever the main thread is at.
        self._news: queue.SimpleQueue[News | Interrupted | None] = queue.SimpleQueue()
        self._run_dir = found.run_dir
        self._log = ChatLog(chats_dir(found.run_dir))
        self._quiet = quiet

    def close(self) -> None:
        """The models leave memory."""
        self._process.end_now()

    def _read(self) -> None:
        for news in self._process.lines():
            self._news.put(news)
        self._news.put(None)

    def _note(self, text: str) -> None:
        if not self._quiet:
            output.note(text)

    # ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────
    def open(self) -> None:
        """Load; sides that cannot be are named. Raises the EngineError of a chat in which none can."""
        from scaler_tui.chat_state import Phase

        state = self.state
        # A thread reads: Ctrl+C may break off a wait, never the reading of a line.
        threading.Thread(target=self._read, name="chat", daemon=True).start()
        self._follow(lambda: state.phase is not Phase.LOADING, loud=True)
        for side in state.sides:
            if side.problem is not None:
                self._note(f"! {side.order.name} is left out: {_problem_words(side.problem)}")
            elif side.notes or side.facts is not None:
                facts = side.facts
                weights = f" ({facts.weights})" if facts is not None else ""
                self._note(f"{side.order.name}{weights}" + (f": {'; '.join(side.notes)}" if side.notes else ""))
        self._note(f"On {state.device}, {state.sampling.words}.")

    def left_out(self) -> EngineError | None:
        """Why the first of the sides that could not be loaded takes no part: others' answers are not what was asked."""
        for side in self.state.sides:
            if (why := side.problem) is not None:
                return EngineError(
                    why.code,
                    f"{side.order.name} took no part in the answers. {why.what}",
                    cause=why.cause,
                    next_step=why.next_step,
                    exit_code=self._process.exit_code_of(why.code),
                )
        return None

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────
    def put(self, request: Ask, *, shown: bool) -> Exchange:
        """Ask, show every answer, save; the exchange as it was saved."""
        from scaler_tui.chat_state import Phase

        state = self.state
        told: set[int] = set()

        def show_finished() -> None:
            for number in state.live:
                answer = state.sides[number].answers[-1]
                if shown and answer.ended and number not in told:
                    told.add(number)
                    self._show(number)

        try:
            with self.hears_ctrl_c():
                self._answering = True
                self._process.ask(request)
                self._follow(lambda: state.phase is not Phase.ANSWERING, each=show_finished)
        finally:
            self._answering = False
            # Also what there is of an answer when the process has died.
            if state.phase is Phase.ANSWERING:
                state.over(None)
            exchange = state.exchange(self._run_dir)
            self._save(exchange)
        self.unanswered = self.unanswered or self._why_unanswered()
        return exchange

    def _save(self, exchange: Exchange) -> None:
        try:
            self.saved = self._log.add(exchange)
        except OSError as error:
            self._note(f"! Not saved in {self._log.folder}: {error.strerror or error}")

    def _show(self, number: int) -> None:
        from scaler_tui.chat_state import harmless

        side = self.state.sides[number]
        answer = side.answers[-1]
        many = len(self.state.live) > 1
        if many:
            output.say(f"{side.order.name}:")
        if answer.problem is not None:
            self._note(f"! {_problem_words(answer.problem)}")
        else:
            text = answer.text.strip() or "(an empty answer)"
            output.say(harmless(text) if sys.stdout.isatty() else text)
            self._note(f"  {answer.words}")
        if many:
            output.say()
        output.flush()

    def _why_unanswered(self) -> EngineError | None:
        """What left the newest question without any answer; None where a side has answered."""
        answers = [side.answers[-1] for side in self.state.sides if side.answers]
        if any(answer.problem is None and (answer.text or answer.ended != "stopped") for answer in answers):
            return None
        failed = ExitCode.RUN_FAILED
        for answer in answers:
            if (one := answer.problem) is not None:
                return EngineError(one.code, one.what, cause=one.cause, next_step=one.next_step, exit_code=failed)
        return EngineError("chat.stopped", "The answer was stopped before its first word.", exit_code=failed)

    def show_template(self) -> None:
        """The very text every side was given last."""
        from scaler_tui.chat_state import harmless

        for number in self.state.live:
            side = self.state.sides[number]
            assert side.facts is not None
            prompts.say(
                f"{side.order.name}: template from {side.facts.template_origin}, {side.sent_tokens} tokens sent"
            )
            prompts.say(harmless(side.sent) or "(nothing was sent yet)")

    @contextlib.contextmanager
    def hears_ctrl_c(self) -> Iterator[None]:
        """Ctrl+C is a piece of news while an answer is under way, and nothing just after it; never an exception
        somewhere in the middle."""
        before = signal.signal(signal.SIGINT, lambda *_: self._news.put(Interrupted()) if self._answering else None)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _follow(self, done: Callable[[], bool], *, each: Callable[[], None] = lambda: None, loud: bool = False) -> None:
        """Fold news until `done`; a first Ctrl+C stops the answers, a second raises KeyboardInterrupt.

        Raises EngineError when the process ends.
        """
        from engine.jobs.chat_lines import Loading, Sent, Stop

        stopping = False
        while not done():
            news = self._news.get()
            if isinstance(news, Interrupted):
                if stopping:
                    raise KeyboardInterrupt
                stopping = True
                self._process.ask(Stop())
                continue
            if news is None:
                self.state.over(self._process.error)
                raise self._process.error or EngineError("chat.failed", "The chat is over.")
            if loud and isinstance(news, Loading):
                self._note(f"{news.words} ...")
            elif self.watched and isinstance(news, Sent):
                self._note(f"{self.state.sides[news.side].order.name} answers, {news.tokens} tokens sent ...")
            self.state.take(news)
            each()


def _problem_words(problem: Problem) -> str:
    return " ".join(text for text in (problem.what, problem.cause, problem.next_step) if text)


# ── where questions come from ────────────────────────────────────────────────────────────────────────────────────
def _piped(talk: LineChat) -> Iterator[Ask]:
    """Every line that is not empty."""
    for line in sys.stdin or ():
        if line.strip():
            yield talk.state.ask(line.strip())


@contextlib.contextmanager
def _breaks_off() -> Iterator[None]:
    """Ctrl+C raises KeyboardInterrupt within."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _typed(talk: LineChat) -> Iterator[Ask]:
    """What a person types, commands carried out on the way."""
    prompts.say(_HELP)
    # A Ctrl+C that comes as an answer ends was meant for the answer: the next one leaves.
    may_stop = False
    while True:
        try:
            with _breaks_off():
                text = prompts.read("> ")
        except prompts.Left:
            return
        except prompts.Back:
            text = "b"
        except KeyboardInterrupt:
            if not may_stop:
                raise
            may_stop = False
            prompts.say("\nNothing is under way. Ctrl+C again leaves, q too.")
            continue
        request = _command(talk, text) if text.startswith("/") else talk.state.ask(text) if text else None
        if request is not None:
            yield request
        may_stop = request is not None


def _command(talk: LineChat, text: str) -> Ask | None:
    from scaler_tui.chat_state import changed

    word, _, value = text[1:].partition(" ")
    state = talk.state
    if word == "again" and state.prompt:
        return state.again()
    if word == "clear":
        state.clear()
        prompts.say("A new conversation.")
    elif word in ("seed", "temperature") and value.strip():
        found = changed(state.sampling, word, value)
        if not isinstance(found, str):
            state.sampling = found
        prompts.say(found if isinstance(found, str) else f"Now {found.words}.")
    elif word == "template":
        talk.show_template()
    else:
        prompts.say(_HELP)
    return None
