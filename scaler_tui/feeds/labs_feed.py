"""The labs with what came of them, read off the interface thread; sizing and starting one by the headless twin.

Owns these threads, the detached process of a lab that is started, and the messages. What a lab is and how it is judged
is `engine.lab`'s.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError, ExitCode
from scaler_tui.feeds.twin import ask_twin

if TYPE_CHECKING:
    from engine.lab.folder import LabFolder
    from engine.lab.lab_file import Lab

ANSWER, NOTES = "front.json", "front.log"
"""What the process of a lab writes, in the lab's folder."""


@dataclass(frozen=True, slots=True)
class LabRow:
    """A lab as it is now."""

    name: str
    title: str
    question: str
    folder: Path
    arms: tuple[str, ...]
    finished: int
    total: int
    working: bool
    ready: bool
    """Whether it ships with the program, so that its name starts it."""
    verdicts: tuple[tuple[str, str], ...] = ()
    """Goal and words, of the report that was written last."""
    trouble: str = ""


class LabsListed(Message):
    """The labs."""

    def __init__(self, rows: tuple[LabRow, ...]) -> None:
        super().__init__()
        self.rows = rows


class LabSized(Message):
    """What a lab takes, as `lab NAME --dry-run --json` says it, or why it cannot be."""

    def __init__(self, row: LabRow, told: dict[str, Any] | None, error: EngineError | None) -> None:
        super().__init__()
        self.row = row
        self.told = told
        self.error = error


class LabEnded(Message):
    """The process of a lab that was started has ended."""

    def __init__(self, row: LabRow, error: EngineError | None) -> None:
        super().__init__()
        self.row = row
        self.error = error


def read_labs() -> tuple[LabRow, ...]:
    """Those that ship with the program, then others that have a folder."""
    from engine.lab.folder import LAB, LabFolder, folder_of, labs_dir
    from engine.lab.lab_file import load_lab
    from engine.lab.ready import ready_labs

    rows = [_row(lab, folder_of(lab), ready=True) for lab in ready_labs()]
    known = {row.folder for row in rows}
    for path in sorted(labs_dir().glob(f"*/{LAB}")):
        if path.parent not in known:
            try:
                rows.append(_row(load_lab(path), LabFolder(path.parent), ready=False))
            except EngineError as error:
                name = path.parent.name
                rows.append(LabRow(name, name, "", path.parent, (), 0, 0, False, False, trouble=error.what))
    return tuple(rows)


def _row(lab: Lab, folder: LabFolder, *, ready: bool) -> LabRow:
    from engine.jobs.state import RunPhase
    from engine.jobs.summary import quick_state

    runs = folder.runs()
    wanted = [(arm.name, seed) for seed in lab.file.seeds for arm in lab.arms]
    finished = sum(quick_state(runs[key]).state is RunPhase.FINISHED for key in wanted if key in runs)
    verdicts, trouble = _verdicts(folder.path)
    return LabRow(
        name=lab.file.name,
        title=lab.file.title,
        question=lab.file.question,
        folder=folder.path,
        arms=tuple(arm.name for arm in lab.arms),
        finished=finished,
        total=len(wanted),
        working=folder.is_held,
        ready=ready,
        verdicts=verdicts,
        trouble=trouble,
    )


def _verdicts(folder: Path) -> tuple[tuple[tuple[str, str], ...], str]:
    from engine.lab.folder import REPORT
    from engine.lab.report import Report

    try:
        report = msgspec.json.decode((folder / REPORT).read_bytes(), type=Report)
    except FileNotFoundError:
        return (), ""
    except (OSError, msgspec.MsgspecError) as error:
        return (), f"{folder / REPORT} cannot be read: {error}"
    return tuple((verdict.goal, verdict.words) for verdict in report.verdicts), ""


def list_in_thread(target: MessagePump) -> None:
    """Read and post LabsListed."""
    _in_thread("labs", lambda: target.post_message(LabsListed(read_labs())))


def size_in_thread(target: MessagePump, row: LabRow) -> None:
    """Ask what it takes and post LabSized."""

    def work() -> None:
        try:
            target.post_message(LabSized(row, ask_twin("lab", row.name, "--dry-run", "--json"), None))
        except EngineError as error:
            target.post_message(LabSized(row, None, error))

    _in_thread("lab sizes", work)


def start_lab(target: MessagePump, row: LabRow) -> None:
    """Start it in a process that outlasts this program, and post LabEnded when it ends while somebody looks. Raises
    EngineError `home.unwritable`, `twin.failed`."""
    from engine.lab.folder import LabFolder, make

    folder = make(LabFolder(row.folder)).path
    try:
        with (folder / ANSWER).open("wb") as answer, (folder / NOTES).open("ab") as notes:
            process = subprocess.Popen(
                [sys.executable, "-m", "scaler_tui", "lab", row.name, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=notes,
                start_new_session=True,
            )
    except OSError as failure:
        raise EngineError("twin.failed", "`lab` could not be started.", cause=str(failure)) from failure

    def work() -> None:
        code = process.wait()
        target.post_message(LabEnded(row, _error(folder / ANSWER) if code else None))

    _in_thread("lab end", work)


def _error(answer: Path) -> EngineError | None:
    """The error object it printed; a lab with failed runs prints a report instead."""
    try:
        told = json.loads(answer.read_bytes())["error"]
    except (OSError, ValueError, KeyError):
        return None
    return EngineError(
        told["code"], told["what"], cause=told["cause"], next_step=told["next_step"], exit_code=ExitCode.RUN_FAILED
    )


def _in_thread(name: str, work: Callable[[], object]) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()
