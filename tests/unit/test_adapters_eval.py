"""`eval BASE --adapter A`: a column per adapter, and what does not go together is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.jobs.card import SuiteResult
from engine.jobs.events import RetentionReport
from engine.jobs.retention_report import Abilities, AdapterAbilities, AdaptersReport
from scaler_tui.cli import main
from scaler_tui.commands.adapters_eval import _print
from tests.unit.test_chat_sides import adapter


def abilities(name: str, bits: float) -> Abilities:
    suite = SuiteResult(
        name="base_text", bits_per_byte=bits, nats_per_token=bits * 2, tokens=10, text_bytes=40, documents=2
    )
    return Abilities(model=name, folder=f"/{name}", suites=(suite,))


def test_the_table_has_a_column_per_adapter_and_every_one_is_held_against_the_base(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fell = RetentionReport(
        on="base_text", unit="bits per byte", before=1.0, after=2.0, delta=1.0, low=0.9, high=1.1, pairs=50,
        verdict="lost", words="base text rose from 1.000 to 2.000 bits per byte, significant",
    )  # fmt: skip
    report = AdaptersReport(
        base=abilities("demo", 1.0),
        adapters=(
            AdapterAbilities(abilities=abilities("red", 2.0), retention=(fell,)),
            AdapterAbilities(abilities=abilities("blue", 0.5)),
        ),
        seconds=3.0,
    )
    _print(report)
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "Something of demo was lost with red."
    assert out.splitlines()[2].split() == ["BITS", "PER", "BYTE", "demo", "red", "blue"]
    assert out.splitlines()[3].split()[-3:] == ["1.0000", "2.0000", "0.5000"]
    assert "red, against demo" in out
    assert "  lost     Base text rose from 1.000 to 2.000 bits per byte, significant." in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--against", "demo"], "--against and --adapter do not go together"),
        (["--tasks", "needle"], "needles are measured by length"),
    ],
)
def test_what_does_not_go_together_is_refused(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = adapter(tmp_path / "red")
    assert main(["eval", "demo", "--adapter", str(folder), *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_is_no_adapter_is_refused_with_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "demo", "--adapter", str(tmp_path), "--suite", "demo"]) == 2
    assert "adapter_config.json" in capsys.readouterr().err
