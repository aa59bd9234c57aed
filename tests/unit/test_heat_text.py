"""The heat map of needles on standard output."""

from __future__ import annotations

import re

from engine.jobs.heat_grid import heat_grid
from engine.jobs.length_report import NeedleCell
from scaler_tui.heat_text import heat_text


def cell(length: int, depth: float, accuracy: float) -> NeedleCell:
    return NeedleCell(task="needle", length=length, depth=depth, prompts=8, accuracy=accuracy, nll=0.1)


CELLS = (cell(256, 0.0, 1.0), cell(1024, 0.0, 0.25), cell(256, 1.0, 0.995), cell(1024, 1.0, 0.0), cell(256, 0.5, 0.75))


def test_colour_only_repeats_what_the_text_says() -> None:
    grid = heat_grid(CELLS)
    assert grid is not None
    colored = heat_text(grid, 60, color=True)
    assert "\x1b[32m" in colored[1]
    assert "\x1b[31m" in "".join(colored)
    assert [re.sub(r"\x1b\[[0-9]*m", "", line).rstrip() for line in colored] == heat_text(grid, 60)


def test_in_ascii_nothing_is_beyond_it() -> None:
    grid = heat_grid(CELLS)
    assert grid is not None
    lines = heat_text(grid, 60, unicode=False)
    assert "".join(lines).isascii()
    assert " 99" in lines[3], "not a hundred: one prompt was missed"
    assert "?" in lines[2], "not measured"
