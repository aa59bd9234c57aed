"""ESTIMATES.md: the table of the founding analysis is today's, complete, and gives a reason for every difference."""

from __future__ import annotations

import pytest

from bench import brief


def test_the_document_holds_exactly_what_the_estimator_says_today() -> None:
    assert brief.document_table() == brief.table(), "make it again: python -m bench brief --write"


def test_every_difference_above_a_fifth_has_one_sentence() -> None:
    for row in brief.rows():
        if brief.needs_sentence(row):
            sentence = brief.SENTENCES.get(row.key, "")
            assert sentence.endswith("."), f"{row.key} differs by {row.difference} and says nothing"


def test_a_difference_without_a_sentence_cannot_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brief, "SENTENCES", {})
    with pytest.raises(KeyError):
        brief.table()


def test_no_sentence_is_left_over() -> None:
    assert set(brief.SENTENCES) <= {row.key for row in brief.rows()}


def test_the_figures_that_the_analysis_is_known_for_are_all_there() -> None:
    text = brief.table()
    for figure in (
        "~23 GB",
        "8-12 GB",
        "16-24 GB",
        "60-70 GB",
        "1-4 weeks",
        "$20-40",
        "$13,440-26,880",
        "24-48 GB",
        "12-24 GB",
    ):
        assert figure in text


def test_a_difference_is_measured_to_the_nearest_end_of_a_range() -> None:
    row = brief.Row("k", "1", "w", (10, 20), "10-20", (30, 40), "30-40")
    assert row.difference == pytest.approx(0.5)
    below = brief.Row("k", "1", "w", (10, 20), "10-20", (1, 5), "1-5")
    assert below.difference == pytest.approx(-0.5)
    assert brief.Row("k", "1", "w", (10, 20), "", (15, 40), "").difference == 0
