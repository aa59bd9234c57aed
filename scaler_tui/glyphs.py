"""The symbols screens use, in a Unicode and an ASCII set. A symbol never stands alone: a word is always beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Glyphs:
    ok: str
    warn: str
    no: str
    pointer: str
    on: str
    off: str
    star: str
    bar_full: str
    bar_empty: str
    dash: str
    dot: str
    arrow: str
    up: str
    down: str
    left: str
    right: str


UNICODE = Glyphs("✓", "!", "✗", "›", "●", "○", "★", "█", "░", "–", "·", "→", "↑", "↓", "←", "→")
ASCII = Glyphs("+", "!", "x", ">", "*", "o", "*", "#", ".", "-", "|", "->", "^", "v", "left", "right")


def glyphs(unicode: bool) -> Glyphs:
    """The set for a terminal."""
    return UNICODE if unicode else ASCII
