"""The heat map of needles as text."""

from __future__ import annotations

from engine.jobs.length_report import NeedleCell
from scaler_tui.heat_text import heat_lines, heat_of, heat_pieces, length_words, tasks_of


def cell(length: int, depth: float, accuracy: float, task: str = "needle") -> NeedleCell:
    return NeedleCell(task=task, length=length, depth=depth, prompts=8, accuracy=accuracy, nll=0.1)


CELLS = (
    cell(256, 0.0, 1.0), cell(1024, 0.0, 0.25), cell(256, 1.0, 0.995), cell(1024, 1.0, 0.0),
    cell(256, 0.5, 0.75), cell(256, 0.0, 0.5, task="variables"),
)  # fmt: skip


def test_a_grid_has_a_column_per_length_and_a_row_per_depth_and_shows_what_was_not_measured() -> None:
    heat = heat_of(CELLS, "needle")
    assert (heat.lengths, heat.depths, heat.prompts) == ((256, 1024), (0.0, 0.5, 1.0), 8)
    assert heat_lines(heat, ascii_only=True) == [
        "depth     256     1k",
        "  0 %  ## 100 --  25",
        " 50 %  ++  75      ?",
        "100 %  ##  99 ..   0",
    ]


def test_only_a_full_house_is_a_hundred_percent() -> None:
    lines = heat_lines(heat_of([cell(8, 0.0, 0.999), cell(16, 0.0, 0.001)], "needle"))
    assert lines[1] == "  0 %  ██  99 ··   1"


def test_colour_only_repeats_what_the_text_says() -> None:
    heat = heat_of(CELLS, "needle")
    colored = heat_lines(heat, color=True)
    plain = heat_lines(heat)
    assert "\x1b[32m" in colored[1]
    assert "\x1b[31m" in colored[1]
    assert [_bare(line) for line in colored] == plain
    tones = [piece.tone for line in heat_pieces(heat)[1:] for piece in line[1:]]
    assert tones == ["good", "bad", "fair", "", "good", "bad"]


def test_tasks_come_in_their_order() -> None:
    assert tasks_of(CELLS) == ("needle", "variables")


def test_lengths_are_short_where_they_are_round() -> None:
    assert [length_words(n) for n in (510, 1000, 1024, 32768, 1 << 20)] == ["510", "1,000", "1k", "32k", "1M"]


def _bare(text: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9]*m", "", text).rstrip()
