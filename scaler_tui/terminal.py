"""What the terminal can show: size is Textual's business, the rest (colour, glyphs, speed of the link) is decided here.

Owns the rules that turn the environment into a `RenderPolicy`, and the variables Textual reads at import.
Must not import Textual: the command line calls `prepare_environment` before Textual is loaded.
"""

from __future__ import annotations

import contextlib
import locale
import os
import signal
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn, TextIO


@dataclass(frozen=True, slots=True)
class RenderPolicy:
    """How screens should draw on this terminal."""

    unicode: bool = True
    """Braille, blocks and check marks can be shown; else ASCII."""
    color: bool = True
    slow: bool = False
    """A remote link: fewer frames, no decoration that costs bytes."""
    multiplexed: bool = False
    """Inside tmux or screen."""
    truecolor: bool = True

    @property
    def refresh_hz(self) -> float:
        """How often live figures may change on screen."""
        return 1.0 if self.slow else 2.0

    @property
    def stream_hz(self) -> float:
        """How often text that somebody reads while it is written may grow on screen."""
        return 2.0 if self.slow else 8.0


def is_utf8(environment: Mapping[str, str]) -> bool:
    """True when the locale's character set is UTF-8."""
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        value = environment.get(name, "")
        if value:
            return "utf-8" in value.lower() or "utf8" in value.lower()
    return locale.getpreferredencoding(False).lower().replace("-", "") == "utf8"


def probe(environment: Mapping[str, str], *, ascii_only: bool = False, no_color: bool = False) -> RenderPolicy:
    """Decide the policy from environment variables and the user's flags."""
    terminal = environment.get("TERM", "")
    return RenderPolicy(
        unicode=not ascii_only and terminal != "linux" and is_utf8(environment),
        color=not no_color and not environment.get("NO_COLOR") and terminal != "dumb",
        slow=bool(environment.get("SSH_CONNECTION") or environment.get("SSH_TTY")),
        multiplexed=bool(environment.get("TMUX") or environment.get("STY")),
        truecolor=environment.get("COLORTERM", "") in ("truecolor", "24bit") or "256color" in terminal,
    )


def prepare_environment(environment: MutableMapping[str, str], policy: RenderPolicy) -> None:
    """Set what Textual reads when it is imported; values the user set stay.

    ESCDELAY: the wait that tells Esc from an escape sequence. Animations and smooth scrolling only cost bytes.
    """
    for name in ("COLUMNS", "LINES"):  # exported by some shells; with them the size would never change again
        environment.pop(name, None)
    environment.setdefault("ESCDELAY", "25")
    environment.setdefault("TEXTUAL_ANIMATIONS", "none")
    environment.setdefault("TEXTUAL_SMOOTH_SCROLL", "0")
    environment.setdefault("TEXTUAL_FPS", "15" if policy.slow else "60")


def is_interactive() -> bool:
    """True when a full-screen program can be shown: both ends of the terminal are there."""
    try:
        return os.isatty(sys.stdin.fileno()) and os.isatty(sys.stdout.fileno()) and os.environ.get("TERM") != "dumb"
    except (OSError, ValueError, AttributeError):  # AttributeError: the shell closed it
        return False


def draws_in_place(stream: TextIO) -> bool:
    """True when a line on `stream` may be drawn over: a terminal that can, and nobody who has lines read out."""
    accessible = os.environ.get("ACCESSIBLE", "") not in ("", "0")
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb" and not accessible
    except ValueError:
        return False


@contextlib.contextmanager
def ends_when_told() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl+C, so that what this process started ends with it; exit code 130."""

    def leave(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
