"""The rows that `make gpu-check` appended: today's formula must still say what a real card measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from engine.estimate.memory import memory_bounds
from engine.units import GIB
from tests.gpu.grid import Configuration, configurations
from tests.gpu.predictions import Formula, formula

FOLDER = Path(__file__).resolve().parents[2] / "profiles" / "measured"


def _rows() -> list[dict[str, str]]:
    found = []
    for path in sorted(FOLDER.glob("*.csv")):
        with path.open(encoding="utf-8") as file:
            found += [row for row in csv.DictReader(file) if row["alloc_gib"]]
    return found


def _configuration(row: dict[str, str]) -> Configuration:
    title = row["notes"].partition(";")[0]
    (found,) = [
        one
        for one in configurations()
        if (one.title, one.model.name, str(one.work.sequence)) == (title, row["model"], row["seq_len"])
    ]
    return found


def _errors(figure: str, said: str) -> list[float]:
    return [getattr(formula(_configuration(row)), said) / (float(row[figure]) * GIB) - 1 for row in _rows()]


def test_there_are_measured_rows() -> None:
    assert len(_rows()) >= 40


def test_allocated_memory_is_met_within_half_a_percent_on_average_and_three_at_worst() -> None:
    errors = _errors("alloc_gib", "allocated")
    assert sum(map(abs, errors)) / len(errors) < 0.005
    assert max(map(abs, errors)) < 0.03


@pytest.mark.parametrize(("figure", "said"), [("reserved_gib", "reserved"), ("process_gib", "process")])
def test_the_process_is_met_within_two_percent_on_average_and_ten_at_worst(figure: str, said: str) -> None:
    assert said in Formula.__slots__
    errors = _errors(figure, said)
    assert sum(map(abs, errors)) / len(errors) < 0.02
    assert max(map(abs, errors)) < 0.10
    assert min(errors) > -0.05


def test_every_measured_process_lies_in_the_promised_range() -> None:
    for row in _rows():
        low, _, high = memory_bounds(_configuration(row).work)
        assert low <= float(row["process_gib"]) * GIB <= high, row["notes"]
