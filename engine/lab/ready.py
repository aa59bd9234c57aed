"""The labs that ship with the program, and finding a lab by name or file.

Owns that look-up. Must not know what is in them.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from engine.errors import EngineError
from engine.lab.lab_file import Lab, load_lab
from engine.resources import profiles_dir


def ready_labs() -> tuple[Lab, ...]:
    """By name."""
    return tuple(load_lab(path) for path in _files())


def find_lab(wanted: str) -> Lab:
    """The ready lab of that name, or the file. Raises EngineError `lab.unknown`, and as `load_lab`."""
    names = {path.stem: path for path in _files()}
    if wanted in names:
        return load_lab(names[wanted])
    path = Path(wanted).expanduser()
    if path.suffix == ".toml" or path.exists():
        return load_lab(path)
    near = difflib.get_close_matches(wanted, names, n=2, cutoff=0.5)
    raise EngineError(
        "lab.unknown",
        f"There is no lab '{wanted}'.",
        cause=f"Ready labs: {', '.join(names)}.",
        next_step=f"Did you mean {' or '.join(near)}?" if near else "Give one of these, or a LAB.toml.",
    )


def _files() -> list[Path]:
    return sorted((profiles_dir() / "labs").glob("*.toml"))
