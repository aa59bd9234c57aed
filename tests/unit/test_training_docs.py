"""TRAINING.md says what the code does and what the labs found: commands, keys of specs and labs, tables."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from bench.lab import PROFILE, RESULTS, Section, picture, picture_of, profile_text, reports, sections
from engine.advise.answers import answers_of
from engine.advise.compare import build_matrix
from engine.advise.demo_labs import measured_performance
from engine.hardware.detect import detect
from engine.jobs.spec import JobSpec
from engine.jobs.spec_growth import StageSection
from engine.jobs.spec_stop import StopSection
from engine.jobs.spec_suites import RetentionSection
from engine.lab.figures import parse_figure
from engine.lab.lab_file import load_lab
from engine.lab.ready import ready_labs
from engine.models.analyze import analyze
from scaler_tui.cli import main

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "TRAINING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```toml\n(.*?)^```", TEXT, re.M | re.S)
COMMANDS = re.findall(r"^    scaler-wizard ([^#\n]*)", TEXT, re.M)
MEASURED = sections(RESULTS)


def rows_of(heading: str) -> set[str]:
    """The keys in the first column of the table with that heading."""
    table = TEXT[TEXT.index(f"| {heading} |") :].split("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    return set(re.findall(r"`(\w+)`", " ".join(first)))


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.startswith("# lab")])
def test_every_spec_that_is_shown_is_one(block: str) -> None:
    assert msgspec.convert(tomllib.loads(block), JobSpec).streams


def test_the_lab_that_is_shown_is_one(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if block.startswith("# lab")]
    (tmp_path / "mine.toml").write_text(block)
    lab = load_lab(tmp_path / "mine.toml")
    assert [arm.spec.grows for arm in lab.arms] == [False, False, True, True]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_that_is_shown_has_the_flags_it_is_shown_with(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([line.split()[0], "--help"]) == 0
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z][a-z-]+", line)) <= known


def test_every_key_of_a_stage_and_every_rule_of_an_end_has_its_row() -> None:
    assert rows_of("key of a stage") == set(StageSection.__struct_fields__) - {"name"}
    assert rows_of("key of `[stop]`") == set(StopSection.__struct_fields__)


def test_what_a_limit_can_do_is_named() -> None:
    pattern = (
        next(f for f in msgspec.structs.fields(RetentionSection) if f.name == "action").type.__metadata__[0].pattern
    )
    for action in re.findall(r"\w+", pattern):
        assert f"`{action}`" in TEXT


def test_every_figure_that_is_named_can_decide_a_goal() -> None:
    line = TEXT[TEXT.index("- **Figures** that decide") : TEXT.index('`per = "usd"`')]
    for figure in re.findall(r"`([\w:]+)`", line):
        parse_figure(figure)


def test_every_ready_lab_has_a_section_and_was_measured_whole() -> None:
    names = [lab.file.name for lab in ready_labs()]
    assert sorted(section.name for section in MEASURED) == sorted(names)
    for report in reports(RESULTS):
        assert report.complete
        assert len(report.seeds) >= 3


@pytest.mark.parametrize("section", MEASURED, ids=lambda section: section.name)
def test_tables_and_verdicts_are_what_was_measured(section: Section) -> None:
    begin, end = section.marks
    assert TEXT[TEXT.index(begin) + len(begin) : TEXT.index(end)].strip("\n") == section.text


def test_pictures_show_what_was_measured() -> None:
    for report in reports(RESULTS):
        assert picture_of(report).read_text(encoding="utf-8") == picture(report)


def test_the_matrix_of_the_demo_cites_what_was_measured_and_other_models_do_not() -> None:
    assert PROFILE.read_text(encoding="utf-8") == profile_text(RESULTS)
    matrix = build_matrix(analyze("demo"), detect(), answers_of({"model": "demo"}))
    lora = next(row for row in matrix.rows if row.id == "lora")
    assert "lab demo-lora-baseline" in lora.performance
    assert "measured on the demo model, 2026-" in lora.performance
    for approach in ("lora", "partial-expansion", "block-expansion"):
        assert measured_performance(approach, "demo")
        assert measured_performance(approach, "Qwen/Qwen3-0.6B") == ""
