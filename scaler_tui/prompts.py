"""Lines in, lines out: the reading side of the wizard without a screen.

Owns the words that work at every prompt. Must not know what is asked. Only plain words are written, so that a screen
reader speaks nothing else.
"""

from __future__ import annotations

import sys

from scaler_tui import output


class Left(Exception):
    """The user typed q, or the input ended."""


class Back(Exception):
    """The user typed b."""


def prepare() -> None:
    """Make odd bytes on stdin into odd characters instead of an error."""
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def say(text: str = "") -> None:
    """A line, out at once."""
    output.say(text)
    output.flush()


def read(prompt: str) -> str:
    """One typed line, trimmed. Raises Left or Back; `=b` is the letter itself."""
    output.say_block(prompt)
    output.flush()
    line = sys.stdin.readline() if sys.stdin is not None else ""
    if not line or not sys.stdin.isatty():
        output.say()  # nobody pressed Enter on a terminal: end the prompt's line here
    text = line.strip()
    if not line or text.lower() in ("q", "quit", "exit"):
        raise Left
    if text.lower() in ("b", "back"):
        raise Back
    return text


def choose(prompt: str, labels: list[str], *, suggested: int = 0) -> int:
    """The number of the chosen label, from 1; 0 as `suggested` means that an empty line chooses nothing."""
    for number, label in enumerate(labels, start=1):
        say(f"  {number}. {label}")
    hint = f" [{suggested}]" if suggested else ""
    while True:
        line = read(f"{prompt}{hint}: ")
        if not line and suggested:
            return suggested
        if line.isdecimal() and 1 <= int(line) <= len(labels):
            return int(line)
        say(f"  Type a number from 1 to {len(labels)}, b to go back, or q to leave.")
