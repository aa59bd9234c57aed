"""SHARING.md says what the code does and what the bench found: commands, specs, words of settings, the table."""

from __future__ import annotations

import re
import tomllib
from enum import EnumMeta
from pathlib import Path

import msgspec
import pytest

from bench.distillation import HERE, MARKS, RESULTS, section
from engine.jobs.spec import JobSpec
from engine.jobs.spec_distillation import DistillLoss, Held, MissingMass
from engine.jobs.spec_export import Destination
from engine.jobs.spec_mix import MixMethod
from engine.lab.lab_file import load_lab
from scaler_tui.cli import main

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SHARING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```toml\n(.*?)^```", TEXT, re.M | re.S)
COMMANDS = re.findall(r"^    scaler-wizard ([^#\n]*)", TEXT, re.M)


def rows_of(heading: str) -> set[str]:
    """What is named in the first column of the table with that heading."""
    table = TEXT[TEXT.index(f"| {heading} |") :].split("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    return set(re.findall(r"`(\w+)`", " ".join(first)))


def values_of(kind: EnumMeta) -> set[str]:
    return {str(member.value) for member in kind}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_spec_that_is_shown_is_one(block: str) -> None:
    spec = msgspec.convert(tomllib.loads(block), JobSpec)
    assert spec.distillation.distils or spec.adapters or spec.export.to


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_that_is_shown_has_the_flags_it_is_shown_with(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line.split()
    command = words[: 2 if words[0] in ("adapters", "export") else 1]
    assert main([*command, "--help"]) == 0
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z][a-z-]+", line)) <= known


def test_every_word_of_a_setting_has_its_row() -> None:
    assert rows_of("method") == values_of(MixMethod)
    assert rows_of("`held`") == values_of(Held) - {"auto"}
    assert rows_of("`loss`") == values_of(DistillLoss)
    assert rows_of("`missing_mass`") == values_of(MissingMass)
    assert rows_of("target") == values_of(Destination) | {"sky", "dstack"}


def test_the_bench_of_the_teacher_is_a_lab_and_its_table_is_what_was_measured() -> None:
    assert [arm.spec.distillation.distils for arm in load_lab(HERE / "lab.toml").arms] == [False, True, True, True]
    shown = TEXT[TEXT.index(MARKS[0]) + len(MARKS[0]) : TEXT.index(MARKS[1])].strip()
    assert shown == section(RESULTS)
