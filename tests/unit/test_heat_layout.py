"""The needle grid and how it is fitted into a width: nothing is claimed that was not seen, no figure is cut."""

from __future__ import annotations

import itertools

import pytest

from engine.jobs.heat_grid import GOOD, heat_grid, level_of, percent, short_length
from engine.jobs.length_report import NeedleCell
from scaler_tui.heat_layout import ASCII_SHADES, UNICODE_SHADES, heat_lines, legend, plain


def cell(length: int, depth: float, accuracy: float, task: str = "needle", prompts: int = 8) -> NeedleCell:
    return NeedleCell(task=task, length=length, depth=depth, prompts=prompts, accuracy=accuracy, nll=1 - accuracy)


CELLS = (
    cell(1024, 1.0, 1.0), cell(256, 0.0, 1.0), cell(256, 1.0, 0.995), cell(1024, 0.0, 0.002),
    cell(256, 0.0, 0.5, task="variables", prompts=24),
)  # fmt: skip


def test_a_grid_has_depths_down_and_lengths_across_and_says_where_nothing_was_measured() -> None:
    grid = heat_grid((*CELLS, cell(512, 0.0, 1.0)), "needle")
    assert grid is not None
    assert grid.lengths == (256, 512, 1024)
    assert grid.depths == (0.0, 1.0)
    assert grid.rows[1][1] is None
    assert "?" in plain(heat_lines(grid, 60, unicode=True))[2]
    assert heat_grid(CELLS, "no such task") is None


def test_tasks_together_are_weighed_by_their_prompts() -> None:
    grid = heat_grid(CELLS)
    assert grid is not None
    first = grid.rows[0][0]
    assert first is not None
    assert first.accuracy == pytest.approx((8 * 1.0 + 24 * 0.5) / 32)
    assert first.prompts == 32
    assert grid.at_length(0) == pytest.approx((8 * 1.0 + 24 * 0.5 + 8 * 0.995) / 40)


def test_only_a_full_house_is_a_hundred_percent_and_only_none_is_zero() -> None:
    assert [percent(share) for share in (1.0, 0.999, 0.5, 0.001, 0.0)] == ["100", "99", "50", "1", "0"]


def test_levels_rise_with_the_share_and_each_has_its_glyph_in_both_alphabets() -> None:
    shares = [0.0, 0.25, 0.5, 0.75, GOOD]
    assert [level_of(share) for share in shares] == [0, 1, 2, 3, 4]
    assert level_of(GOOD - 0.001) == 3
    assert len(set(UNICODE_SHADES)) == len(set(ASCII_SHADES)) == 5
    assert "".join(ASCII_SHADES).isascii()


@pytest.mark.parametrize(("width", "unicode"), list(itertools.product((58, 36, 16), (True, False))))
def test_every_width_keeps_every_column_and_figures_are_whole_or_left_out(width: int, unicode: bool) -> None:
    lengths = (128, 256, 512, 1024, 2048)
    grid = heat_grid([cell(length, depth, depth) for length in lengths for depth in (0.0, 0.3, 1.0)])
    assert grid is not None
    lines = plain(heat_lines(grid, width, unicode=unicode))
    assert all(len(line) <= width for line in lines)
    shades = UNICODE_SHADES if unicode else ASCII_SHADES
    if width >= 36:
        assert [line.split().count("30") for line in lines] == [0, 0, 6, 0, 0], "five cells and the depth"
        assert lines[-2].split().count("100") == 6
        assert "2k" in lines[0]
    else:
        assert lines[-1].count(shades[4]) == 10, "two glyphs a column where there is no room for figures"
        assert "2k" in lines[0]
    if width == 58:
        assert lines[2].count(shades[1]) == 5


def test_a_low_screen_keeps_the_first_and_the_last_depth() -> None:
    grid = heat_grid([cell(256, depth / 10, 1.0) for depth in range(11)])
    assert grid is not None
    lines = plain(heat_lines(grid, 60, unicode=True, most_rows=6))
    assert len(lines) == 6
    assert [line.split(" %")[0].strip() for line in lines[1:-1]] == ["0", "30", "70", "100"]
    assert len(plain(heat_lines(grid, 60, unicode=True))) == 13


def test_the_legend_shows_every_glyph() -> None:
    text = "".join(piece.text for piece in legend(unicode=False))
    assert all(shade in text for shade in ASCII_SHADES)
    assert "90 % and more" in text


def test_lengths_are_said_as_people_say_them() -> None:
    assert [short_length(n) for n in (256, 1000, 1024, 1536, 32768, 100_000, 1 << 20)] == [
        "256", "1000", "1k", "1536", "32k", "97.7k", "1M",
    ]  # fmt: skip
