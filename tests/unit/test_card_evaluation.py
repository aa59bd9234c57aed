"""The page and the text of a card about abilities: what was lost first, every figure there, nothing loaded or run."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.jobs.card import Card, CurvePoint, FollowedCurve
from engine.jobs.card_evaluation import evaluation_sections
from engine.jobs.card_html import render
from engine.jobs.card_io import read_card, write_card
from engine.jobs.card_plots import delta_bar, lines_plot
from scaler_tui import abilities_text
from scaler_tui.cli import main
from tests.support.cards import example_card
from tests.support.continuation_runs import Continuation, continuation_card, spike_recovery, write_continuation
from tests.unit.test_jobs_card import Page

HELD = "demo_arithmetic lost 13 points, and 5 are allowed."


@pytest.fixture
def run_dir() -> Path:
    return write_continuation(Continuation(outcome="finished", steps=240))


@pytest.fixture
def card(run_dir: Path) -> Card:
    return continuation_card(run_dir, held=HELD)


def test_the_page_tells_what_was_lost_first_and_where_a_held_result_lies(card: Card) -> None:
    text = Page(render(card)).text
    assert text.index("Not promoted.") < text.index("Arithmetic fell from 91 % to 78 %") < text.index("Facts stayed")
    for expected in (
        HELD, "output/held/model", "-13.0 points [-17.0, -9.0]", "bits per byte", "1.6164", "-15.5%", "78.3 ± 4.1 %",
        "web 70 %, code 30 %", "nothing lost", "loss spike", "Back to step 120", "2 processes, ddp over gloo",
    ):  # fmt: skip
        assert expected in text, expected


def test_a_stage_says_which_benchmark_was_not_compared(run_dir: Path, card: Card) -> None:
    first, second = card.stages
    without = msgspec.structs.replace(second, reports=(), not_compared=("my_bleu",))
    stages = (msgspec.structs.replace(first, not_compared=("my_ppl", "<b>")), without)
    told = msgspec.structs.replace(card, stages=stages)
    page = render(told)
    assert "<td>nothing lost; not compared: my_ppl, &lt;b&gt;</td>" in page
    assert "<td>not compared: my_bleu</td>" in page
    lines = [line for heading, lines in abilities_text.sections(told) if heading == "Stages" for line in lines]
    assert "  against the parent: nothing lost; not compared: my_ppl, <b>" in lines
    assert "  against the parent: not compared: my_bleu" in lines


def test_the_page_stays_self_contained(card: Card) -> None:
    text = render(card)
    page = Page(text)
    assert page.addresses == []
    assert not re.search(r"url\(|@import|https?://", text)
    assert text.count("<svg") >= 6


def test_a_card_without_any_of_it_has_no_such_section() -> None:
    assert evaluation_sections(example_card()) == ""
    assert list(abilities_text.sections(example_card())) == []


def test_all_of_it_survives_the_file(run_dir: Path, card: Card) -> None:
    write_card(run_dir, card)
    assert read_card(run_dir) == card


def test_card_prints_and_encodes_the_same(run_dir: Path, card: Card, capsys: pytest.CaptureFixture[str]) -> None:
    write_card(run_dir, card)
    assert main(["card", run_dir.name]) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    for expected in ("lost: Arithmetic fell from 91 % to 78 %, significant.", "78.3 +- 4.1 %", "step 138, loss spike",
                     "2 wider", "-15.5 %", f"Not promoted: {HELD}"):  # fmt: skip
        assert expected in text, expected
    assert main(["card", "--json", run_dir.name]) == 0
    tree = msgspec.json.decode(capsys.readouterr().out)
    assert [report["verdict"] for report in tree["retention"]] == ["kept", "lost", "unclear", "gained"]
    assert [stage["steps"] for stage in tree["stage_figures"]] == [80, 80, 80]
    assert tree["recoveries"][1]["trouble"] == "loss spike"


@given(text=st.text(max_size=30))
def test_nothing_a_file_is_called_becomes_markup(text: str) -> None:
    hostile = text + "</td></p><script>alert('x')</script>&<img src=x onerror=y>\""
    recovery = msgspec.structs.replace(spike_recovery(5, 0.0), what=hostile, remedy=hostile, trouble=hostile)
    curve = FollowedCurve(name=hostile, unit="bits per byte", points=(CurvePoint(0, 1.0), CurvePoint(9, 0.9)))
    page = Page(render(msgspec.structs.replace(example_card(3), held=hostile, recoveries=(recovery,), curves=(curve,))))
    assert page.addresses == []
    assert "script" not in page.seen


@pytest.mark.parametrize("count", [1, 2, 7, 15])
def test_names_of_curves_stand_apart_inside_the_picture(count: int) -> None:
    curves = [
        FollowedCurve(name=f"text{n}", unit="bits per byte", points=(CurvePoint(0, 1.0), CurvePoint(50, 1.0)))
        for n in range(count)
    ]
    tree = ElementTree.fromstring(lines_plot(curves, "x"))
    heights = sorted(float(e.attrib["y"]) for e in tree.iter("text") if "name" in e.attrib.get("class", ""))
    assert len(heights) == count
    assert heights[-1] <= 300
    assert all(b - a >= 13.9 for a, b in pairwise(heights))


def test_a_curve_that_is_not_a_number_leaves_no_trace() -> None:
    broken = FollowedCurve(name="x", unit="bits per byte", points=(CurvePoint(0, float("nan")),))
    assert lines_plot([broken], "x") == ""
    assert delta_bar(float("nan"), 0.0, 0.1, 1.0, "x") == ""


def test_of_two_measurements_at_a_step_the_newer_one_is_drawn() -> None:
    points = (CurvePoint(0, 1.0), CurvePoint(9, 0.5), CurvePoint(9, 0.9))
    tree = ElementTree.fromstring(lines_plot([FollowedCurve(name="x", unit="acc", points=points)], "x"))
    assert [title.text for title in tree.iter("title")] == ["x, step 0: 1.0000", "x, step 9: 0.9000"]
