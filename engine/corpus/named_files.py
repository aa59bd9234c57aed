"""Whether the files that a spec names are there, looked at before anything starts.

Owns this one check. Must not read what is named, nor look at sources: whoever counts their text finds out.
"""

from __future__ import annotations

from pathlib import Path

from engine.corpus.files import source_files
from engine.errors import EngineError
from engine.jobs.spec import JobSpec
from engine.jobs.spec_paths import Named, NamedKind, named_files

_FILES = (NamedKind.FILE, NamedKind.TASK)


def require_files(spec: JobSpec) -> None:
    """File names in the spec are absolute. Raises EngineError `data.not_found`, with the key."""
    for named in named_files(spec):
        wrong = _wrong_with(named, Path(named.value))
        if wrong:
            raise EngineError(
                "data.not_found",
                f"{named.key} names {named.value}, {wrong}.",
                next_step="Correct the name; names are relative to the spec's own folder.",
                key=named.key,
            )


def _wrong_with(named: Named, path: Path) -> str:
    if named.kind in _FILES:
        return "which is a folder, not a file" if path.is_dir() else "" if path.exists() else "and nothing is there"
    if named.kind is NamedKind.TEXT and named.key.startswith("suites["):
        if not path.exists():
            return "and nothing is there"
        return "" if _has_files(path) else "a folder without files"
    return ""


def _has_files(path: Path) -> bool:
    try:
        return bool(source_files(path.name, str(path)))
    except EngineError as error:
        if error.code == "corpus.not_found":
            return False
        raise
