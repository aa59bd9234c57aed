"""What `lab` prints fits a terminal of 80 columns, long names and all, and is no Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.lab.lab_file import Lab
from scaler_tui.cli import main
from tests.support.labs import begun, finish, small_lab

LONG = "an arm with a name of forty-eight characters yes"


def long_lab(folder: Path) -> Lab:
    words = "which of them, " * 12
    return small_lab(
        folder,
        lambda text: text.replace('name = "full"', f'name = "{LONG}"').replace('"Which?"', f'"{words}"'),
    )


@pytest.mark.parametrize("flag", ["--report", "--dry-run"])
def test_every_line_fits_eighty_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    lab = long_lab(tmp_path)
    folder = begun(lab)
    for seed in (1, 2, 3):
        finish(folder, "LoRA", seed, 1.0 + seed / 100, exact=0.9)
        finish(folder, LONG, seed, 2.0 + seed / 90)
    assert main(["lab", str(lab.path), flag]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "| " not in out
    assert "**" not in out
    whole = " ".join(out.split())
    assert "tuned per arm" in whole
    if flag == "--report":
        assert "learn: LoRA won: 1.020" in whole
        assert "1.020 ± 0.025 won" in whole
