"""ARCHITECTURE.md names files that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_path_that_is_named_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:engine|scaler_tui|tests|bench|profiles|assets)/[\w./*-]+)`", text))
    assert len(named) > 50
    assert [path for path in sorted(named) if not list(ROOT.glob(path.rstrip("/")))] == []
