"""What a terminal cannot show is taken out in one last step: symbols in ASCII mode, colours in no-colour mode.

Owns the replacements. Must not change widths: one cell stays one cell, so that layouts are the same in every mode.
"""

from __future__ import annotations

from functools import lru_cache

from rich.cells import get_character_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

_GROUPS = {
    "-": "–—−‐─━┄┈╌╴╶═▔▁▂▃",
    "|": "│┃║▏▎▍▕▐┆┊╎",
    "+": "┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┣┫┳┻╋╔╗╚╝✓✔",
    "#": "█▇▆▅▓■▄▀▌",
    ".": "…░▒·•",
    "x": "✗✘×",
    "*": "★●◆",
    "o": "○◌",
    ">": "›→▶»⏎",
    "<": "‹←◀«",
    "^": "↑▲",
    "v": "↓▼",
    "'": "‘’",
    '"': "“”",
    "~": "≈",
    " ": "\u00a0\u2009",
}
_TABLE = {character: ascii_one for ascii_one, characters in _GROUPS.items() for character in characters}


@lru_cache(maxsize=4096)
def to_ascii(text: str) -> str:
    """`text` in ASCII, as many cells wide as before; what has no likeness becomes "?"."""
    if text.isascii():
        return text
    out = []
    for character in text:
        if character.isascii():
            out.append(character)
        else:
            out.append(_TABLE.get(character, "?" * get_character_cell_size(character)))
    return "".join(out)


class AsciiFilter(LineFilter):
    """Applies `to_ascii` to every segment."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments in ASCII."""
        return [
            Segment(to_ascii(text), style, control) if text and control is None else Segment(text, style, control)
            for text, style, control in segments
        ]


REVERSED = 7
"""The ANSI colour (white) whose use as a background means "reverse" in no-colour mode."""


@lru_cache(maxsize=4096)
def _uncolored(style: Style) -> Style:
    plain = style.without_color
    marked = style.bgcolor is not None and style.bgcolor.number == REVERSED and style.bgcolor.type.name == "STANDARD"
    return plain + Style(reverse=True) if marked else plain


class NoColorFilter(LineFilter):
    """Leaves bold, underline and reverse, and no colour at all, not even the terminal's default one."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments without colour."""
        return [
            Segment(text, None if style is None else _uncolored(style), control) for text, style, control in segments
        ]
