"""The threads of a chat: find its sides, run its process, pass news on in batches, save what was said.

Owns when the screen hears of anything: at most as often as the terminal's policy says. Must not touch widgets; nothing
here waits in the interface thread.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError, ExitCode
from engine.jobs.chat_lines import News, Open, Request
from engine.jobs.chat_log import ChatLog, Exchange, chats_dir, earlier_prompts
from scaler_tui.chat_process import ChatProcess
from scaler_tui.chat_sides import ChatAsked, ChatSides, chat_sides
from scaler_tui.chat_state import ChatSettings
from scaler_tui.feeds.batches import Batches


class ChatFound(Message):
    """Who takes part, and what was asked there before; the process is starting."""

    def __init__(self, found: ChatSides, prompts: list[str]) -> None:
        super().__init__()
        self.found = found
        self.prompts = prompts


class ChatNews(Message):
    """Lines of the process, in order."""

    def __init__(self, lines: tuple[News, ...]) -> None:
        super().__init__()
        self.lines = lines


class ChatOver(Message):
    """The process is gone, or never came; None where it was asked to."""

    def __init__(self, error: EngineError | None) -> None:
        super().__init__()
        self.error = error


class ChatSaved(Message):
    """Where an exchange was saved, or why it was not."""

    def __init__(self, path: Path | None, problem: str = "") -> None:
        super().__init__()
        self.path = path
        self.problem = problem


class ChatFeed:
    """One chat; every method returns at once."""

    def __init__(self, asked: ChatAsked, settings: ChatSettings, target: MessagePump, *, hz: float) -> None:
        """News are passed on at most `hz` times a second."""
        self._asked = asked
        self._settings = settings
        self._target = target
        self._batches = Batches[News](1 / hz)
        self._process: ChatProcess | None = None
        self._log: ChatLog | None = None
        self._closed = threading.Event()

    def start(self) -> None:
        """Find the sides and start the process; ChatFound, then ChatNews follow, ChatOver at last."""
        threading.Thread(target=self._run, name="chat", daemon=True).start()

    def send(self, request: Request) -> None:
        """To the process."""
        if self._process is not None:
            self._process.ask(request)

    def save(self, exchange: Exchange) -> None:
        """Append to the chat's file; ChatSaved follows."""
        if self._log is not None:
            # No daemon: it is written although the program leaves.
            threading.Thread(target=self._save, args=(self._log, exchange), name="chat-save").start()

    def close(self) -> None:
        """Nobody looks any more."""
        self._closed.set()
        if self._process is not None:
            self._process.end_now()

    def _run(self) -> None:
        try:
            found = chat_sides(self._asked)
        except EngineError as error:
            self._post(ChatOver(error))
            return
        except OSError as error:
            cause = error.strerror or str(error)
            self._post(ChatOver(EngineError("chat.unreadable", "What to talk to cannot be read.", cause=cause)))
            return
        folder = chats_dir(found.run_dir)
        self._log = ChatLog(folder)
        self._process = process = ChatProcess(
            Open(sides=found.sides, dtype=self._settings.dtype, threads=self._settings.threads)
        )
        earlier: list[str] = []
        with contextlib.suppress(OSError):
            earlier = earlier_prompts(folder)
        self._post(ChatFound(found, earlier))
        if self._closed.is_set():
            return
        reading = threading.Thread(target=self._read, args=(process,), name="chat-lines", daemon=True)
        reading.start()
        self._batches.pass_on(self._post_news)
        reading.join()  # it may still be saying why
        self._post(ChatOver(process.error))

    def _read(self, process: ChatProcess) -> None:
        try:
            self._batches.read(process.lines())
        except Exception as error:  # a fault of ours is told, too
            cause = f"{type(error).__name__}: {error}"
            process.error = EngineError(
                "chat.failed", "The chat ended by itself.", cause=cause, exit_code=ExitCode.RUN_FAILED
            )

    def _post_news(self, lines: tuple[News, ...], running: bool) -> None:
        if lines:
            self._post(ChatNews(lines))

    def _save(self, log: ChatLog, exchange: Exchange) -> None:
        try:
            self._post(ChatSaved(log.add(exchange)))
        except OSError as error:
            self._post(ChatSaved(None, f"Not saved in {log.folder}: {error.strerror or error}"))

    def _post(self, message: Message) -> None:
        if not self._closed.is_set():
            self._target.post_message(message)
