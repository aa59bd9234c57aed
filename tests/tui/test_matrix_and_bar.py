"""The matrix on its own screen, the memory bar, and the figures behind them: whole numbers at every width."""

from __future__ import annotations

import re

import pytest

from engine.estimate.estimate import Estimate, Origin, Part
from scaler_tui.glyphs import ASCII, UNICODE
from scaler_tui.screens.matrix import MatrixScreen
from scaler_tui.screens.review import ReviewScreen
from scaler_tui.widgets.fit_bar import FitBar, bar_content, parts_of, segments, words
from scaler_tui.widgets.matrix_table import MatrixTable, visible_columns
from tests.support.screen_host import until, visible
from tests.support.wizard_app import SIZES, known_machine, opened, press, to_questions

GIB = 1024**3


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known_machine(monkeypatch)


def estimate(*amounts: float, high: float = 0.0) -> Estimate:
    """An estimate of parts "a", "b", ... in GiB."""
    parts = tuple(Part(chr(97 + index), amount * GIB) for index, amount in enumerate(amounts))
    likely = sum(amounts)
    return Estimate(likely * 0.9 * GIB, likely * GIB, (high or likely * 1.2) * GIB, "bytes", Origin.FORMULA, parts)


@pytest.mark.parametrize("size", [*SIZES, (40, 12)])
async def test_rows_are_walked_explained_and_chosen_at_every_size(size: tuple[int, int]) -> None:
    async with opened(size) as (app, pilot):
        await to_questions(app, pilot)
        await press(pilot, "m")
        screen = app.screen
        assert isinstance(screen, MatrixScreen)
        matrix = app.wizard.matrix
        assert matrix is not None
        assert screen.row is not None
        assert screen.row.id == matrix.recommended
        assert "Memory" in visible(app)
        for _ in matrix.rows:
            await press(pilot, "up")
        first = screen.row.id
        await press(pilot, "down")
        assert screen.row.id != first
        await press(pilot, "e")
        text = visible(app)
        assert " of " in text
        assert all(len(line) <= size[0] for line in text.splitlines())
        await press(pilot, "r", "enter")
        await until(pilot, lambda: isinstance(app.screen, ReviewScreen))


async def test_an_approach_that_cannot_run_from_here_says_why_instead_of_opening() -> None:
    async with opened() as (app, pilot):
        await to_questions(app, pilot)
        await press(pilot, "m")
        screen = app.screen
        assert isinstance(screen, MatrixScreen)
        matrix = app.wizard.matrix
        assert matrix is not None
        index = next(i for i, row in enumerate(matrix.rows) if not row.runnable)
        screen.query_one(MatrixTable).cursor = index
        await press(pilot, "down", "up", "enter")
        assert isinstance(app.screen, MatrixScreen)
        assert "Runs from here: no." in visible(app)


@pytest.mark.parametrize("width", [30, 40, 56, 60, 78, 100, 118, 160])
async def test_columns_are_dropped_whole_and_never_cut(width: int) -> None:
    async with opened() as (app, pilot):
        await to_questions(app, pilot)
        matrix = app.wizard.matrix
        assert matrix is not None
        for signs in (UNICODE, ASCII):
            columns = visible_columns(matrix.rows, width, signs)
            title = 2 + max(len(row.title) for row in matrix.rows)
            assert title + sum(cells + 2 for _, cells in columns) <= max(width, title)
            for column, cells in columns:
                assert all(len(column.text(row, signs)) <= cells for row in matrix.rows)


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("free", [2.0, 9.9, 10.0, 12.0, 24.0, 400.0])
@pytest.mark.parametrize("width", [20, 57, 118])
def test_the_bar_is_as_wide_as_asked_and_its_parts_add_up(unicode: bool, free: float, width: int) -> None:
    figure = estimate(4, 0.01, 3, 0, 2.9, 0.09)
    content = bar_content(figure, free * GIB, width, unicode=unicode)
    assert content.cell_length == width
    drawn = segments(figure, free * GIB, width, unicode=unicode)
    assert sum(segment.amount_bytes for segment in drawn) == pytest.approx(figure.likely)
    assert all(segment.cells >= 0 for segment in drawn)
    line = "┃" if unicode else "|"
    assert (line in content.plain) == (free < 4 * 12), "the line of free memory, unless it is far away"
    assert unicode or content.plain.isascii()


def test_what_does_not_fit_ends_beyond_the_line_of_free_memory() -> None:
    plain = bar_content(estimate(8, 2, high=12), 6 * GIB, 60, unicode=False).plain
    assert 0 < plain.index("|") < 60 / 2 + 1
    assert plain[plain.index("|") + 1 :].strip()


def test_small_parts_share_a_segment_and_the_words_name_them() -> None:
    named = parts_of(estimate(10, 0.05, 0.02))
    assert named[0] == ("a", 10 * GIB)
    assert named[1][0] == "b, c"
    assert "of 24.0 GiB VRAM free" in words(estimate(10), 24 * GIB, "VRAM")


def test_parts_are_told_apart_without_colour() -> None:
    drawn = segments(estimate(1, 1, 1, 1), 6 * GIB, 80, unicode=False)
    assert len({segment.shade for segment in drawn}) == 4


async def test_the_bar_of_the_recommended_row_says_its_parts_in_words() -> None:
    async with opened() as (app, pilot):
        await to_questions(app, pilot)
        await press(pilot, "m")
        text = visible(app)
        bar = app.screen.query_one(FitBar)
        assert bar.estimate is not None
        for name, _ in parts_of(bar.estimate):
            assert name.split(",")[0] in text
        assert re.search(r"likely \d+(\.\d+)? [MG]iB \(.+\) of 24\.0 GiB RAM free", text)
