"""Prompts and answers as they were given: `chats/DATE.jsonl` beside what was talked to, appended line by line.

Owns the file's place and form. Must not know how an answer is made. One line is one question with every side's answer,
written in one piece, so that two chats of one run do not disturb each other and a kill costs at most the last line.
What was said is the user's own: nobody else may read the files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from engine.jobs.chat_lines import Ended, Sampling
from engine.jobs.layout import read_tail
from engine.paths import state_home

CHATS = "chats"
RECALLED_BYTES = 512 * 1024
"""Of the newest files, read for earlier prompts."""
RECALLED_PROMPTS = 200


class SavedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What one side said."""

    side: str
    folder: str
    """Of the model or adapter; relative to the run where it lies in it."""
    text: str
    ended: Ended | str = "end"
    """ "failed" where there is a problem instead of an answer."""
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    sent: str = ""
    """The very text it was given, special tokens included, from character `sent_shared` on."""
    sent_shared: int = 0
    """So many characters at its beginning are those of the text it was given in the turn before."""
    problem: str = ""


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One question."""

    t: float
    prompt: str
    answers: tuple[SavedAnswer, ...]
    sampling: Sampling = Sampling()
    system: str = ""
    began: float = 0.0
    """Wall time at which the conversation's first question was put; the same for all its turns."""
    turn: int = 1
    """Of the conversation; 1 is its first."""
    again: bool = False
    """The same question as before, asked again."""
    v: int = 1


def chats_dir(run_dir: Path | None) -> Path:
    """Where the chats of a run are kept; those of plain folders are kept with the program's state."""
    return run_dir / CHATS if run_dir is not None else state_home() / CHATS


class ChatLog:
    """Appends exchanges to the file of the day (UTC)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_at(self, t: float) -> Path:
        """The file for an exchange at wall time `t`."""
        return self.folder / f"{time.strftime('%Y-%m-%d', time.gmtime(t))}.jsonl"

    def add(self, exchange: Exchange) -> Path:
        """Append; the file's path. Raises OSError when it cannot be written."""
        path = self.path_at(exchange.t)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        line = msgspec.json.encode(exchange) + b"\n"
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            line = b"\n" + line if torn else line
            while line:
                line = line[os.write(handle, line) :]
        finally:
            os.close(handle)
        return path


def read_chats(folder: Path) -> list[Exchange]:
    """The newest exchanges, oldest first; damaged lines are left out."""
    found: list[list[Exchange]] = []
    left = RECALLED_BYTES
    for path in sorted(folder.glob("*.jsonl"), reverse=True):
        text = read_tail(path, max_bytes=left)
        found.append(list(_exchanges(text.splitlines())))
        left -= len(text)
        if left <= 0:
            break
    return [exchange for day in reversed(found) for exchange in day]


def earlier_prompts(folder: Path) -> list[str]:
    """Prompts asked before, oldest first, each once where it was asked last."""
    prompts = dict.fromkeys(reversed([exchange.prompt for exchange in read_chats(folder)]))
    return list(reversed(list(prompts)[:RECALLED_PROMPTS]))


def _exchanges(lines: Iterable[bytes]) -> Iterable[Exchange]:
    for line in lines:
        try:
            yield msgspec.json.decode(line, type=Exchange)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
