"""CONTEXT.md says what the code does and what the benchmark found: methods, flags, keys of specs, tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.context_report import Section, sections
from engine.context.methods import METHODS
from engine.jobs.spec import TrainingSection
from engine.jobs.spec_context import WINDOWS, ContextSection
from scaler_tui.cli import main

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTEXT.md").read_text(encoding="utf-8")
MEASURED = sections(ROOT / "bench" / "context_results.jsonl")
METHOD_ROWS = re.findall(r"^\| `([\w-]+)` \|", TEXT[TEXT.index("## Methods") : TEXT.index("## What is measured")], re.M)
WINDOW_ROWS = re.findall(r"^\| `([\w-]+)` \|", TEXT[TEXT.index("## Training") : TEXT.index("## Who reads")], re.M)


def test_every_method_has_a_row_and_no_row_is_about_another() -> None:
    assert list(METHODS) == METHOD_ROWS


def test_every_training_window_has_a_row() -> None:
    assert tuple(WINDOW_ROWS[1:]) == WINDOWS, "below the head"


def test_methods_that_are_not_exported_say_so() -> None:
    for name, method in METHODS.items():
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |"))
        assert ("not exported" in row) == (not method.exported)


def test_every_flag_that_is_mentioned_exists(capsys: pytest.CaptureFixture[str]) -> None:
    help_texts = "--type --max-model-len"  # of the exporter and of vLLM
    for command in ("extend", "eval", "mix"):
        assert main([command, "--help"]) == 0
        help_texts += capsys.readouterr().out
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)):
        assert flag in help_texts, flag


@pytest.mark.parametrize("command", ["extend", "eval", "mix"])
def test_every_command_line_that_is_shown_has_flags_of_its_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out))
    shown = re.findall(rf"^    scaler-wizard {command} ([^#\n]*)", TEXT, re.M)
    assert shown
    for line in shown:
        assert set(re.findall(r"--[a-z][a-z-]+", line)) <= known, line
        assert command != "mix" or "--model" in line, "or it is counted with another tokenizer"


def test_every_key_of_the_spec_that_is_shown_exists() -> None:
    block = TEXT[TEXT.index("    [context]") : TEXT.index("Attention is always exact")]
    context, training = block.split("[training]")
    assert set(re.findall(r"^    (\w+) =", context, re.M)) <= set(ContextSection.__struct_fields__)
    assert set(re.findall(r"^    (\w+) =", training, re.M)) <= set(TrainingSection.__struct_fields__)


@pytest.mark.parametrize("section", MEASURED, ids=lambda section: section.name)
def test_tables_are_what_was_measured(section: Section) -> None:
    begin, end = section.marks
    assert TEXT[TEXT.index(begin) + len(begin) : TEXT.index(end)].strip("\n") == section.text
