"""Expansion plans in words and figures: columns to hold side by side, what an operator keeps, what will be done.

Owns the wording for the command line, `--plain` and the wizard alike. Must not plan or estimate: figures are given.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measure:
    """One need of a plan."""

    label: str
    text: str
    amount: float
    """For the bar; 0 where there is none."""
    share: float = 0.0
    """Of the largest amount among the columns."""


@dataclass(frozen=True, slots=True)
class PlanColumn:
    """One plan as a column; the model as it is, is the first one."""

    name: str
    title: str
    shape: tuple[tuple[str, str], ...]
    measures: tuple[Measure, ...]
    exact: str
    """ "exact", "changes", or "" for the model as it is."""
    recommended: bool = False
