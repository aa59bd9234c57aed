"""Where the user's own files live: runs, saved answers, preferences, measurements.

Owns the XDG rules and the `SCALER_WIZARD_HOME` override. Must not know what is written there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from engine.errors import EngineError

APP = "scaler-wizard"


def _xdg(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / fallback


def data_home() -> Path:
    """Runs and outputs: `$SCALER_WIZARD_HOME`, else the XDG data directory."""
    override = os.environ.get("SCALER_WIZARD_HOME", "")
    if override:
        return Path(override).expanduser().absolute()
    if sys.platform == "darwin" and not os.environ.get("XDG_DATA_HOME"):
        return Path.home() / "Library" / "Application Support" / APP
    return _xdg("XDG_DATA_HOME", ".local/share") / APP


def state_home() -> Path:
    """Saved answers and preferences: `$SCALER_WIZARD_HOME/state`, else the XDG state directory."""
    if os.environ.get("SCALER_WIZARD_HOME", ""):
        return data_home() / "state"
    return _xdg("XDG_STATE_HOME", ".local/state") / APP


def runs_dir() -> Path:
    """One folder per run; see `engine.jobs.store`."""
    return data_home() / "runs"


def teachers_dir(asked: str = "") -> Path:
    """Logits that teachers left on disk: the folder a spec asks for, or the program's own."""
    return Path(asked).expanduser() if asked else data_home() / "teachers"


def ensure_writable(directory: Path) -> Path:
    """Create `directory` and prove that a file can be written there. Raises EngineError `home.unwritable`."""
    probe = directory / f".write-test-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise EngineError(
            "home.unwritable",
            f"Cannot write to {directory}.",
            cause=error.strerror or str(error),
            next_step="Set SCALER_WIZARD_HOME to a folder you can write to, or free some space there.",
        ) from error
    return directory
