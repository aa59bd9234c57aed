"""EXPANSION.md says what the code does: every operator with its exactness, every family, every flag and task."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.expansion.layouts import known_families
from engine.expansion.operators import OPERATORS
from engine.jobs.spec import Task
from scaler_tui.cli import main

TEXT = (Path(__file__).resolve().parents[2] / "EXPANSION.md").read_text(encoding="utf-8")
ROWS = {match[1]: match[0] for match in re.finditer(r"^\| `([\w-]+)` \|.*$", TEXT, re.MULTILINE)}


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_every_operator_has_a_row_that_says_when_it_is_exact(name: str) -> None:
    operator = OPERATORS[name]
    kept = ROWS[name].split("|")[3].strip()
    if operator.exact in ("always", "never"):
        assert kept == operator.exact
    else:
        assert kept not in ("always", "never")


def test_no_row_is_about_an_operator_that_does_not_exist() -> None:
    about_growth = {task.value for task in Task if not task.trains_adapter and task not in (Task.EXTEND, Task.MIX)}
    assert set(ROWS) - set(OPERATORS) == about_growth


@pytest.mark.parametrize("family", known_families())
def test_every_family_is_listed(family: str) -> None:
    families = TEXT[TEXT.index("## Families") : TEXT.index("## What is proven")]
    assert re.search(rf"\b{re.escape(family)}\b", families)


def test_every_flag_that_is_mentioned_exists(capsys: pytest.CaptureFixture[str]) -> None:
    help_texts = ""
    for command in ("expand", "plan", "inspect"):
        assert main([command, "--help"]) == 0
        help_texts += capsys.readouterr().out
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)):
        assert flag in help_texts, flag
