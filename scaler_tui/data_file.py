"""The file of rows that was typed, and the answer that means large text instead.

Owns the refusal of what is no file. Must not read it.
"""

from __future__ import annotations

from pathlib import Path

from engine.errors import EngineError

TEXT = "text"
"""Answer to the question about data: large text, chosen on a screen of its own."""


def existing_file(text: str) -> Path:
    """The absolute path. Raises EngineError."""
    path = Path(text).expanduser().absolute()
    if path.is_file():
        return path
    raise EngineError(
        "data.not_found",
        f"{path} is a folder." if path.is_dir() else f"There is no file {path}.",
        next_step="Type the path of a .jsonl, .json, .csv, .parquet or .txt file; folders are large text.",
    )
