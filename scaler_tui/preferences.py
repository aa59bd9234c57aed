"""What the interface remembers between starts: the theme and hints already given. No secrets, no answers.

Owns `preferences.json` in the state folder. A damaged file is ignored: preferences are never worth an error.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from engine.paths import state_home


class Preferences(msgspec.Struct, frozen=True):
    theme: str = "scaler-dark"
    seen_ssh_hint: bool = False
    agreed_to_expansion: bool = False
    """The warnings before growing a model were read and agreed to."""


def _path() -> Path:
    return state_home() / "preferences.json"


def load_preferences() -> Preferences:
    """The saved preferences, or the defaults."""
    try:
        return msgspec.json.decode(_path().read_bytes(), type=Preferences)
    except (OSError, msgspec.MsgspecError):
        return Preferences()


def save_preferences(preferences: Preferences) -> None:
    """Replace the file in one step; a read-only home is not an error here."""
    path = _path()
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(preferences))
        temporary.replace(path)
