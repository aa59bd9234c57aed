"""The section about length on the card's page: complete, escaped, readable without colour, nothing fetched."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import msgspec

from engine.jobs.card import Card
from engine.jobs.card_html import render
from engine.jobs.card_io import write_card
from engine.jobs.length_html import length_section, report_section
from engine.jobs.length_plots import heat_plot, perplexity_plot
from tests.support.cards import example_card
from tests.support.cli import cli
from tests.support.context_runs import AFTER, BEFORE, context_card, report
from tests.support.golden_runs import Golden, write_golden


def test_a_card_without_lengths_has_no_such_section() -> None:
    assert length_section(example_card()) == ""
    assert "<h2>Length</h2>" not in render(example_card())


def test_the_page_has_verdict_curve_maps_short_text_and_readers() -> None:
    page = render(context_card())
    assert "Works to 1k (needle 95 %), short text +0.5 %." in page
    assert "Before: works to 256 (needle 100 %), degrades from 512" in page
    assert "256 → 1,024 tokens (4 times)" in page
    assert "window before" in page
    assert 'class="lost">lost</td>' in page
    assert page.count('class="heat"') == 2
    assert "needle, before: 100 % at 64" in page, "the map is told in words too"
    assert "<td>29.40</td><td>9.90</td>" in page


def test_every_square_has_a_figure_and_its_counts() -> None:
    page = render(context_card())
    squares = re.findall(r"<rect class=\"heat-cell level\d\"[^>]*><title>([^<]*)</title></rect>", page)
    assert len(squares) == 2 * 4 * 5
    assert "1,024 tokens, depth 0 %: 0 of 8 right, 1.00 nats per answer token" in squares
    assert len(re.findall(r'class="heat-figure level\d"', page)) == 2 * 4 * 5


def test_what_came_from_files_is_escaped_and_nothing_is_fetched() -> None:
    card = msgspec.structs.replace(
        context_card(), lengths_after=msgspec.structs.replace(AFTER, text="<script>x</script>", notes=("<b>",))
    )
    page = render(card)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;takes&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "src=" not in page


def test_pictures_are_well_formed_and_inside_their_frame() -> None:
    page = render(context_card())
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        root = ET.fromstring(picture)
        _, _, width, height = (float(part) for part in root.attrib["viewBox"].split())
        for element in root.iter():
            for axis, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                if axis in element.attrib:
                    assert 0 <= float(element.attrib[axis]) <= limit


def test_a_broken_model_does_not_flatten_the_curve_and_is_said_to_be_off_it() -> None:
    broken = report((10.0, 11.0, 5000.0, float("inf")), 1.0, window=256)
    plot = perplexity_plot(AFTER, broken)
    assert "not a finite number" in plot
    ticks = [float(text) for text in re.findall(r'text-anchor="end">([\d.]+)</text>', plot)]
    assert max(ticks) < 200, "the scale is made for what can be compared"
    assert plot.count('Z"><title>before') == 2, "what is beyond it is a mark on its edge"


def test_a_report_alone_and_an_empty_one_are_sections_too() -> None:
    alone = report_section(BEFORE)
    assert "needle: 100 % at 64" in alone
    assert "<th>before</th>" not in alone
    empty = report_section(msgspec.structs.replace(BEFORE, perplexity=(), needles=()))
    assert "not measured" in empty
    assert "<svg" not in empty


def test_uninformative_needles_are_called_so() -> None:
    section = report_section(msgspec.structs.replace(AFTER, informative=False))
    assert "say nothing about length" in section


def test_a_card_with_lengths_is_read_back_and_old_cards_still_load() -> None:
    card = context_card()
    assert msgspec.json.decode(msgspec.json.encode(card), type=Card) == card
    old = msgspec.json.decode(msgspec.json.encode(example_card()))
    for name in ("lengths_before", "lengths_after", "readers"):
        old.pop(name)
    assert msgspec.convert(old, Card) == example_card()


def test_nothing_measured_in_a_cell_is_drawn_as_nothing() -> None:
    from engine.jobs.heat_grid import heat_grid

    grid = heat_grid(AFTER.needles[1:], "needle")
    assert grid is not None
    drawn = heat_plot(grid, "a & b")
    assert 'class="heat-cell none"' in drawn
    assert "64 tokens, depth 0 %: not measured" in drawn
    assert 'aria-label="a &amp; b"' in drawn


def test_the_card_command_says_all_of_it_in_text() -> None:
    run_dir = write_golden(Golden(steps=120, outcome="finished"))
    write_card(run_dir, context_card())
    told = cli("card", run_dir.name)
    assert told.code == 0, told.text
    for expected in (
        "Before: works to 256", "Verdict: works to 1k (needle 95 %)", "9.90", "100 %", "llama.cpp: lost. Its graph",
    ):  # fmt: skip
        assert expected in told.out, expected
    assert cli("card", run_dir.name, "--json").json["lengths_after"]["window"] == 1024
