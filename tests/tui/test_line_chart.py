"""The loss chart: right at the edges, nothing cut, and only new columns change."""

from __future__ import annotations

import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.app import App, ComposeResult

from engine.jobs.series import Bucket, Series
from scaler_tui.widgets.chart_raster import (
    ChartData,
    ChartMode,
    Picture,
    Role,
    axis_ends,
    axis_ticks,
    capacity_steps,
    draw,
    robust_range,
    tick_labels,
)
from scaler_tui.widgets.line_chart import LineChart, changed_regions


def points(values: list[float], first: int = 1) -> tuple[Bucket, ...]:
    """One bucket per step."""
    return tuple(Bucket(step, step, value, value, value, 1) for step, value in enumerate(values, first))


def curve(steps: int, seed: int = 1) -> list[float]:
    noise = random.Random(seed)
    return [0.4 + 2 * math.exp(-step / 15) + noise.gauss(0, 0.03) for step in range(1, steps + 1)]


def roles(picture: Picture, role: Role) -> int:
    return sum(cell[1] is role for row in picture.rows for cell in row)


def test_without_points_it_says_when_the_curve_appears() -> None:
    picture = draw(ChartData(), 60, 12, ChartMode.BRAILLE)
    assert "The curve appears after the first step." in "\n".join(picture.lines)


@pytest.mark.parametrize("mode", ChartMode)
@pytest.mark.parametrize("values", [[0.7], [0.7] * 50, [0.0] * 9, [-3.0, -3.0], [1e-9, 2e-9], [4e7, 1e8]])
def test_a_single_point_and_constants_are_drawn_inside_the_axis(values: list[float], mode: ChartMode) -> None:
    picture = draw(ChartData(points(values)), 60, 12, mode)
    assert picture.low < min(values) <= max(values) < picture.high or picture.low <= min(values) <= picture.high
    assert roles(picture, Role.LOSS) >= 1
    assert roles(picture, Role.OUTLIER) == 0


def test_a_value_that_is_not_a_number_is_marked_and_breaks_nothing() -> None:
    values = [*curve(20), math.nan, math.inf, *curve(20)]
    picture = draw(ChartData(points(values)), 60, 12, ChartMode.BRAILLE)
    assert math.isfinite(picture.low)
    assert math.isfinite(picture.high)
    assert "×" in "".join(picture.lines)


def test_only_values_that_are_not_numbers_still_give_a_chart() -> None:
    picture = draw(ChartData(points([math.nan, math.inf])), 60, 12, ChartMode.ASCII)
    assert roles(picture, Role.OUTLIER) >= 1


def test_a_huge_outlier_is_marked_and_does_not_flatten_the_curve() -> None:
    values = curve(100)
    calm = draw(ChartData(points(values)), 60, 12, ChartMode.BRAILLE)
    values[60] = 1e6
    spiked = draw(ChartData(points(values)), 60, 12, ChartMode.BRAILLE)
    assert (spiked.low, spiked.high) == (calm.low, calm.high)
    assert "▲" in spiked.lines[0]
    assert "▲" not in "".join(calm.lines)


def test_a_spike_inside_a_bucket_is_marked_though_its_mean_is_not_off_the_chart() -> None:
    buckets = [*points(curve(40)), Bucket(41, 48, 0.4, 0.9, 900.0, 8)]
    assert "▲" in draw(ChartData(buckets), 60, 12, ChartMode.BRAILLE).lines[0]


def test_a_steep_beginning_is_no_outlier() -> None:
    picture = draw(ChartData(points(curve(200))), 60, 12, ChartMode.BRAILLE)
    assert roles(picture, Role.OUTLIER) == 0


@pytest.mark.parametrize("mode", ChartMode)
def test_loss_and_held_out_loss_differ_without_colour(mode: ChartMode) -> None:
    evaluation = tuple(Bucket(s, s, v, v, v, 1) for s, v in ((20, 1.4), (40, 1.2), (60, 1.1)))
    picture = draw(ChartData(points(curve(60)), evaluation), 60, 12, mode)
    loss = {cell[0] for row in picture.rows for cell in row if cell[1] is Role.LOSS}
    marks = {cell[0] for row in picture.rows for cell in row if cell[1] is Role.EVAL}
    assert len(marks) == 1
    assert not loss & marks
    assert roles(picture, Role.EVAL) == 3


def test_modes_use_only_their_own_characters() -> None:
    data = ChartData(points(curve(90)), points(curve(9)))
    assert all(ord(character) < 128 for line in draw(data, 60, 12, ChartMode.ASCII).lines for character in line)
    blocks = {c for row in draw(data, 60, 12, ChartMode.BLOCKS).rows for c, role in row if role is Role.LOSS}
    assert blocks <= set("▀▄█")
    braille = {c for row in draw(data, 60, 12, ChartMode.BRAILLE).rows for c, role in row if role is Role.LOSS}
    assert all(0x2800 < ord(character) <= 0x28FF for character in braille)


def test_the_x_axis_doubles_and_ends_with_the_run() -> None:
    assert [capacity_steps(step, 0) for step in (1, 16, 17, 33, 100)] == [16, 16, 32, 64, 128]
    assert capacity_steps(17, 24) == 24
    assert capacity_steps(3, 10) == 10
    assert capacity_steps(130, 120) == 130
    assert capacity_steps(70_000, 100_000) == 100_000


def test_a_new_step_changes_only_the_newest_columns() -> None:
    values = curve(120)
    older = draw(ChartData(points(values[:100]), total_steps=120), 70, 12, ChartMode.BRAILLE)
    newer = draw(ChartData(points(values[:101]), total_steps=120), 70, 12, ChartMode.BRAILLE)
    regions = changed_regions(older, newer)
    assert regions
    assert sum(region.width for region in regions) <= 2
    assert min(region.x for region in regions) >= 50


def test_equal_pictures_have_no_changed_region() -> None:
    picture = draw(ChartData(points(curve(50))), 60, 12, ChartMode.BRAILLE)
    again = draw(ChartData(points(curve(50))), 60, 12, ChartMode.BRAILLE)
    assert changed_regions(picture, again) == []


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=80),
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=5),
    st.integers(0, 130),
    st.integers(0, 45),
    st.sampled_from(list(ChartMode)),
    st.integers(0, 200),
)
@settings(max_examples=200, deadline=None)
def test_every_series_fills_exactly_the_given_cells(
    loss: list[float], evaluation: list[float], width: int, height: int, mode: ChartMode, total: int
) -> None:
    picture = draw(ChartData(points(loss), points(evaluation), total), width, height, mode)
    assert len(picture.rows) == height
    assert all(len(row) == width for row in picture.rows)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 40), st.sampled_from([30, 58, 70, 118]))
@settings(max_examples=200, deadline=None)
def test_axis_numbers_are_whole(low: float, span: float, height: int, width: int) -> None:
    picture = draw(ChartData(points([low, low + span])), width, height, ChartMode.BRAILLE)
    wanted = min(max(height - (2 if height >= 6 else 0) - 2, 2), 10)
    ends = axis_ends(*robust_range([low, low + span]), wanted)
    known = {label for count in range(1, 9) for label in tick_labels(axis_ticks(*ends, count))}
    for line in picture.lines[: height - 2]:
        found = re.match(r"\s*(\S+) ┤", line)
        assert found is None or found.group(1) in known


def test_axis_labels_say_every_decimal_their_distance_needs() -> None:
    assert tick_labels([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_labels([0, 1, 2]) == ["0", "1", "2"]
    assert tick_labels([0.4, 0.6]) == ["0.4", "0.6"]
    assert tick_labels([100000, 200000]) == ["1e+05", "2e+05"]


def test_x_labels_name_both_ends_and_do_not_touch() -> None:
    for width in (24, 40, 60, 118):
        labels = draw(ChartData(points(curve(900)), total_steps=100_000), width, 12, ChartMode.BRAILLE).lines[-1]
        assert labels.endswith("1,024")
        assert re.search(r"step 0\b", labels)
        assert all(re.fullmatch(r"[\d,]+", word) for word in labels.split()[1:])


class ChartApp(App[None]):
    def compose(self) -> ComposeResult:
        yield LineChart(id="chart")


async def test_the_widget_asks_for_no_repaint_when_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    app = ChartApp()
    async with app.run_test(size=(80, 24)) as pilot:
        chart = app.query_one(LineChart)
        chart.show(ChartData(points(curve(30))))
        await pilot.pause()
        asked: list[object] = []
        monkeypatch.setattr(chart, "refresh", lambda *regions, **_: asked.append(regions))
        chart.show(ChartData(points(curve(30))))
        assert asked == []
        chart.show(ChartData(points(curve(31))))
        assert len(asked) == 1


async def test_the_widget_redraws_for_a_new_size() -> None:
    app = ChartApp()
    async with app.run_test(size=(80, 24)) as pilot:
        chart = app.query_one(LineChart)
        chart.show(ChartData(points(curve(30))))
        await pilot.resize_terminal(50, 15)
        await pilot.pause()
        assert (len(chart.picture.rows[0]), len(chart.picture.rows)) == (50, 15)


def test_a_hundred_thousand_steps_are_drawn_from_bounded_buckets() -> None:
    series = Series()
    for step, value in enumerate(curve(1000) * 100, 1):
        series.add(step, value)
    picture = draw(ChartData(series.buckets(), total_steps=100_000), 110, 30, ChartMode.BRAILLE)
    assert picture.capacity == 100_000
    assert roles(picture, Role.LOSS) > 100
