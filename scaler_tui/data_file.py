"""The file of rows or the teacher's folder that was typed, and the answer that means large text instead.

Owns the refusal of what is none, and the word about what is not here yet. Must not read it.
"""

from __future__ import annotations

from pathlib import Path

from engine.errors import EngineError
from scaler_tui import output

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


def note_missing_rows(train: str) -> None:
    """Say beside an answer that it is about rows which are not here; nothing about large text or no file at all."""
    from engine.resources import demo_rows_file

    if train in ("", TEXT) or demo_rows_file(train, "train") is not None:
        return
    path = Path(train).expanduser()
    if path.is_dir():
        output.note(f"{train} is a folder, and rows are in a file: their number was guessed. Name a file of it.")
    elif not path.is_file():
        output.note(f"There is no file {train} yet; its size was guessed, and the run will need it.")


def existing_teacher(text: str) -> str:
    """A folder as an absolute path; names and hub ids as they are. Raises EngineError."""
    if not text.startswith(("/", ".", "~")):
        return text
    path = Path(text).expanduser().absolute()
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return str(path)
    raise EngineError(
        "model.not_found",
        f"There is no model in {path}.",
        cause="It has neither config.json nor adapter_config.json." if path.is_dir() else "There is no such folder.",
        next_step='Type the folder of a model or an adapter, a hub id, or "self".',
    )
