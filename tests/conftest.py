"""Fixtures every test gets: its own home, no hub, no developer preferences."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Two workers share two cores: threads of torch that spin while they wait would take the other one's. Read at import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Under nohup SIGHUP is ignored, and children inherit that: terminals that close would then go unnoticed.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# The same for Ctrl+C in a job that a shell put into the background.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline per example measures the neighbours on shared cores; a hang still ends by pytest's own timeout.
settings.register_profile("shared-cores", deadline=None)
settings.load_profile("shared-cores")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs, answers and preferences of a test live in its own folder; the hub is never asked."""
    home = tmp_path / "scaler-home"
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("NO_COLOR", "ACCESSIBLE", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    return home
