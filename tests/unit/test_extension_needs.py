"""What measuring needs of a machine, and the longer window it is sent to where the asked one does not fit."""

from __future__ import annotations

from engine.extension.needs import longest_that_fits, needs_of
from engine.models.analyze import analyze
from tests.support.wizard_app import WORKSTATION

WINDOW = 6_000


def test_the_longest_window_offered_fits_and_the_next_multiple_does_not() -> None:
    architecture = analyze("llama-3.2-3b")
    multiples = [factor for factor in range(2, 64) if needs_of(architecture, WORKSTATION, WINDOW * factor).fits]
    most = max(multiples)
    assert most & (most - 1), "a power of two would not tell a multiple from a doubling"
    assert longest_that_fits(architecture, WORKSTATION, WINDOW, WINDOW * 64) == WINDOW * most
    assert longest_that_fits(architecture, WORKSTATION, WINDOW, WINDOW * 3) == WINDOW * min(most, 2)
    assert longest_that_fits(architecture, WORKSTATION, WINDOW, WINDOW * 2) == 0, "nothing lies between"
