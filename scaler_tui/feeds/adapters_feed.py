"""Lists adapters for the screen about them: those of runs of this machine, and folders that were typed.

Owns the threads. Reading is the headless twin's; nothing here waits in the interface thread.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError
from scaler_tui.feeds.twin import ask_twin
from scaler_tui.mixing import Listed


class AdaptersListed(Message):
    """They were read."""

    def __init__(self, rows: tuple[Listed, ...], error: EngineError | None = None) -> None:
        super().__init__()
        self.rows = rows
        self.error = error


class AdapterAdded(Message):
    """A typed folder was read, or refused."""

    def __init__(self, row: Listed | None, error: EngineError | None = None) -> None:
        super().__init__()
        self.row = row
        self.error = error


def list_in_thread(target: MessagePump) -> None:
    """Those of runs; AdaptersListed follows."""

    def work() -> None:
        try:
            target.post_message(AdaptersListed(read_listed()))
        except EngineError as error:
            target.post_message(AdaptersListed((), error))

    threading.Thread(target=work, name="adapters", daemon=True).start()


def add_in_thread(target: MessagePump, word: str) -> None:
    """A folder, or a run by its id; AdapterAdded follows."""

    def work() -> None:
        try:
            target.post_message(AdapterAdded(inspected(word)))
        except EngineError as error:
            target.post_message(AdapterAdded(None, error))

    threading.Thread(target=work, name="adapter", daemon=True).start()


def read_listed() -> tuple[Listed, ...]:
    """Raises EngineError."""
    rows: list[Listed] = []
    trees = ask_twin("adapters", "list", "--json")["adapters"]
    names = [_run_name(Path(tree["path"])) or tree["name"] for tree in trees]
    for tree, name in zip(trees, names, strict=True):
        folder = Path(tree["path"])
        rows.append(
            Listed(
                name=name if names.count(name) == 1 else f"{name} {tree['name'].rpartition('-')[2]}",
                folder=folder,
                base=_short(tree["base"]),
                base_folder=base_of(folder),
                words=f"{tree['kind']}, rank {tree['rank']}",
                size_bytes=int(tree["size_bytes"]),
                why_not=str(tree["problem"]),
            )
        )
    return tuple(row if row.base_folder or row.why_not else _without_base(row) for row in rows)


def inspected(word: str) -> Listed:
    """Raises EngineError `adapter.*`, `run.*`."""
    tree = ask_twin("adapters", "inspect", "--json", str(Path(word).expanduser()) if "/" in word else word)
    folder = Path(tree["path"])
    row = Listed(
        name=_run_name(folder) or folder.name,
        folder=folder,
        base=_short(tree["base"]),
        base_folder=base_of(folder) if tree["base_folder"] else "",
        words=f"{tree['kind']}, rank {tree['rank']}",
        size_bytes=int(tree["size_bytes"]),
        why_not=str(tree["why_not"]),
    )
    return row if row.base_folder or row.why_not else _without_base(row)


def base_of(folder: Path) -> str:
    """Where the model that an adapter names lies on this machine; "" where it does not."""
    from engine.models.adapter import base_of_adapter

    try:
        return str(base_of_adapter(folder).resolve())
    except EngineError:
        return ""


def _without_base(row: Listed) -> Listed:
    named = f"its base {row.base}" if row.base else "its base, which it does not name,"
    return replace(row, why_not=f"{named} is not on this machine")


def _run_name(folder: Path) -> str:
    """What the run is called whose output it is."""
    from engine.jobs.spec_toml import load_spec

    run = next((one for one in folder.parents[:4] if (one / "spec.toml").is_file()), None)
    try:
        return load_spec(run / "spec.toml").name if run is not None else ""
    except EngineError:
        return ""


def _short(base: str) -> str:
    """A hub id whole, of a path its last parts."""
    path = Path(base)
    return "/".join(path.parts[-2:]) if path.is_absolute() else base
