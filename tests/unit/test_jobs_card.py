"""The card survives its file, and its page is self-contained, well-formed and deaf to what a model writes into it."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.jobs import layout
from engine.jobs.card import CurvePoint, SampleComparison
from engine.jobs.card_html import render
from engine.jobs.card_io import read_card, write_card
from engine.jobs.card_plots import loss_plot, nice_ticks
from tests.support.cards import example_card

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that every tag is closed in order, and collects what a browser would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open_tags == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.addresses += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open_tags and self.open_tags[-1] != "style":
            self.text += data


def test_a_card_comes_back_equal(tmp_path: Path) -> None:
    card = example_card()
    assert read_card(write_card(tmp_path, card).parent) == card
    assert (tmp_path / layout.CARD_PAGE).read_text() == render(card)


def test_losses_that_are_not_numbers_survive_as_such_and_leave_the_curve(tmp_path: Path) -> None:
    card = example_card()
    broken = msgspec.structs.replace(
        card,
        after=msgspec.structs.replace(card.after, task_loss=math.nan),
        loss_curve=(CurvePoint(1, 2.0), CurvePoint(2, math.inf)),
        predicted=(msgspec.structs.replace(card.predicted[0], measured=math.nan),),
    )
    write_card(tmp_path, broken)
    again = read_card(tmp_path)
    assert math.isnan(again.after.task_loss)
    assert math.isnan(again.predicted[0].measured)
    assert again.loss_curve == (CurvePoint(1, 2.0),)
    assert "not measured" in Page(render(again)).text


def test_a_missing_and_a_damaged_card_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        read_card(tmp_path)
    assert caught.value.code == "card.missing"
    (tmp_path / layout.CARD).write_text('{"run_id": 3}')
    with pytest.raises(EngineError) as caught:
        read_card(tmp_path)
    assert caught.value.code == "card.damaged"


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    text = render(example_card())
    page = Page(text)
    assert page.addresses == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.seen)
    assert not re.search(r"url\(|@import|https?://", text)


def test_the_page_says_what_the_card_says() -> None:
    text = Page(render(example_card())).text
    for wanted in ("Pirate manners", "QLoRA", "2.812", "0.604", "92%", "+1.2%: nothing forgotten", "1.14 GiB",
                   "88 s", "99.62%", "Resumed once", "Orsa", "torch 2.13.0", "2: the run was resumed"):  # fmt: skip
        assert wanted in text


@pytest.mark.parametrize("steps", [0, 1, 2, 40, 2000])
def test_the_plot_is_valid_svg_at_every_length(steps: int) -> None:
    curve = [CurvePoint(step, 3.0 / step) for step in range(1, steps + 1)]
    plot = loss_plot(curve, curve[::10])
    tree = ElementTree.fromstring(plot)
    assert tree.tag == ("svg" if steps else "p")
    assert "nan" not in plot.lower()
    numbers = re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", plot)
    assert all(0 <= float(x) <= 860 and 0 <= float(y) <= 300 for x, y in numbers)


def test_a_flat_curve_is_drawn() -> None:
    assert "<path" in loss_plot([CurvePoint(1, 2.0), CurvePoint(2, 2.0)], [])


@given(text=st.text(max_size=40))
def test_nothing_a_model_writes_becomes_markup(text: str) -> None:
    hostile = text + "</p></div><script>alert('x')</script>&<img src=x onerror=y>\""
    card = msgspec.structs.replace(
        example_card(3),
        name=hostile,
        model=hostile,
        device=hostile,
        notes=(hostile,),
        versions={hostile: hostile},
        samples=(SampleComparison(prompt=hostile, before=hostile, after=hostile, expected=hostile),),
        predicted=(msgspec.structs.replace(example_card(3).predicted[0], name=hostile, unit=hostile, origin=hostile),),
    )
    page = Page(render(card))
    assert page.addresses == []
    assert "script" not in page.seen


@given(low=st.floats(-1e9, 1e9), span=st.floats(0, 1e9))
def test_ticks_cover_the_range_and_are_few(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert ticks == sorted(set(ticks))
    assert 2 <= len(ticks) <= 9
    tolerance = (ticks[-1] - ticks[0]) * 1e-6
    assert ticks[0] <= low + tolerance
    assert ticks[-1] >= low + span - tolerance
