"""The record in an exported folder: which files an export made, of which order, and what was found.

Owns that file and what may be replaced by it. Must not know formats. Names in it are relative: it says nothing of the
machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.jobs.export_report import ExportReport
from engine.jobs.layout import write_atomic

RECORD = "scaler-wizard-export.json"
_GGUF_MAGIC = b"GGUF"


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """What one export left."""

    order: str
    """Identity of the order: see `engine.export.staging.identity_of`."""
    files: tuple[str, ...]
    """Everything it put there, relative to the folder."""
    report: ExportReport
    """With paths relative to the folder."""


def write_record(folder: Path, out: Path, identity: str, report: ExportReport) -> None:
    """Into `folder`, which becomes `out`."""
    inside = _with_paths(report, lambda path: path.relative_to(out).as_posix())
    files = tuple(sorted(path.relative_to(folder).as_posix() for path in _files(folder) if path.name != RECORD))
    told = Finished(order=identity, files=files, report=msgspec.structs.replace(inside, source="", next_step=""))
    write_atomic(folder / RECORD, msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")


def read_record(out: Path) -> Finished | None:
    """What an export left in `out`, with the paths that its files have now; None where none did, or it is damaged."""
    try:
        told = msgspec.json.decode((out / RECORD).read_bytes(), type=Finished)
    except (OSError, msgspec.MsgspecError):
        return None
    return msgspec.structs.replace(told, report=_with_paths(told.report, lambda path: str(out / path)))


def check_replaceable(out: Path, *, one_file: bool) -> None:
    """Raises EngineError `export.foreign` where `out` holds what no export made: that is never replaced."""
    why = _why_not_file(out) if one_file else _why_not_folder(out)
    if why:
        raise EngineError(
            "export.foreign",
            f"{out} is not replaced, not even with --force.",
            cause=why,
            next_step="Choose another name with --out, or move away what is there.",
        )


def remove(path: Path) -> None:
    """A file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _why_not_file(out: Path) -> str:
    if not out.is_file():
        return "It is a folder, and one file is asked for."
    with out.open("rb") as file:
        return "" if file.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC else "It is no GGUF file."


def _why_not_folder(out: Path) -> str:
    if out.is_symlink() or not out.is_dir():
        return "It is a link." if out.is_symlink() else "It is a file, and a folder is asked for."
    present = {path.relative_to(out).as_posix() for path in _files(out)}
    if not present:
        return ""
    told = read_record(out)
    if told is None:
        return "No export made this folder: it has no record of one."
    more = sorted(present - {*told.files, RECORD})
    return f"It holds what no export made: {', '.join(more[:3])}{' ...' if len(more) > 3 else ''}." if more else ""


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def _with_paths(report: ExportReport, changed: Callable[[Path], str]) -> ExportReport:
    files = tuple(msgspec.structs.replace(file, path=changed(Path(file.path))) for file in report.files)
    return msgspec.structs.replace(report, files=files)
