"""`scaler-wizard corpus`: sources by path or by spec, faults told, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scaler_tui.cli import main
from tests.support.corpora import texts, write_rows

SPEC = """
task = "full"
[model]
source = "demo"
[data]
base_text = ""
[training]
max_tokens = {tokens}
[stop]
spike_retries = 0
[[sources]]
name = "web"
path = "web"
weight = 0.7
[[sources]]
name = "code"
path = "code.jsonl"
weight = 0.3
[[suites]]
name = "held"
path = "suite.txt"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = texts(300, longest=40)
    write_rows(tmp_path / "web" / "1.jsonl", rows)
    write_rows(tmp_path / "code.jsonl", texts(200, seed=2))
    (tmp_path / "web" / "2.jsonl").write_bytes(b'{"text": "bad \xff"}\n{"text": "good"}\n')
    (tmp_path / "suite.txt").write_text(max(rows[:20], key=len))
    return tmp_path


def test_paths_are_read_and_faults_are_located(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["corpus", str(folder / "web"), str(folder / "code.jsonl"), "--against", str(folder / "suite.txt")]) == 0
    )
    told = capsys.readouterr().out
    assert "2.jsonl, line 1, byte 15: not valid UTF-8" in told
    assert "shares a run of words with an evaluation" in told
    assert "Compared with 1 evaluation text." in told


def test_json_has_the_report_and_a_second_call_makes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = []
    for _ in range(2):
        assert main(["corpus", str(folder / "code.jsonl"), "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["fingerprint"] == reports[1]["fingerprint"]
    made = [report["report"]["sources"][0]["shards_made"] for report in reports]
    assert made == [1, 0]
    assert reports[0]["tokens"] == reports[0]["report"]["sources"][0]["kept"]["tokens"] > 1000


def test_strict_ends_at_the_first_fault_with_its_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", str(folder / "web"), "--strict"]) == 2
    assert "2.jsonl, line 1" in capsys.readouterr().err


def test_a_spec_is_read_as_far_as_its_job_needs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "spec.toml").write_text(SPEC.format(tokens=4000))
    assert main(["corpus", str(folder / "spec.toml"), "--json"]) == 0
    some = json.loads(capsys.readouterr().out)["report"]
    assert [source["name"] for source in some["sources"]] == ["web", "code"]
    assert 2800 <= some["sources"][0]["kept"]["tokens"] < 5000
    assert some["evaluation_texts"] == 1
    assert main(["corpus", str(folder / "spec.toml"), "--json", "--all"]) == 0
    everything = json.loads(capsys.readouterr().out)["report"]
    assert everything["sources"][0]["exhausted"]
    assert everything["sources"][0]["contaminated"]["documents"] == 1


def test_reading_text_needs_neither_torch_nor_textual(folder: Path) -> None:
    code = (
        "import sys\nfrom scaler_tui.cli import main\n"
        f"assert main(['corpus', {str(folder / 'code.jsonl')!r}, 'hub:{folder / 'web'}', '--json']) == 0\n"
        "print(sorted({'torch', 'textual', 'transformers'} & {name.partition('.')[0] for name in sys.modules}))"
    )
    (folder / "web" / "2.jsonl").unlink()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
