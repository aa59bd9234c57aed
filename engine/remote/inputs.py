"""The local files a spec names, as what has to be on another machine: bundles of files with sizes and hashes.

Owns which files belong to a name: a model's weights and tokenizer, the text that is read of a folder or a pattern, what
a benchmark's .yaml names beside it; nothing else of their folders leaves this machine. Must not know how they are
copied. Hub ids and what ships with the program need nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from engine.corpus.files import source_files
from engine.errors import EngineError
from engine.jobs.benchmark_files import INDEXED, SUFFIXES, defined_in
from engine.jobs.spec import JobSpec
from engine.jobs.spec_paths import Named, NamedKind, map_files, named_files
from engine.remote.hashes import Hashes

_MODEL_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken")
_TASK_SUFFIXES = (".yaml", ".yml", ".json", ".jsonl", ".csv", ".parquet", ".txt", ".py")
_MAGIC = "*?["
_WORDS = re.compile(r"[^\s'\",\[\]{}():=]+")


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of a bundle."""

    path: Path
    name: str
    """Within the bundle, with slashes."""
    size: int
    sha: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one value of a spec stands for."""

    key: str
    value: str
    """As the spec has it, absolute."""
    tail: str
    """What follows the bundle's folder in the value's new form: a file name, a pattern, or nothing for the folder."""
    files: tuple[InputFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def name(self) -> str:
        """The hash of names and contents: equal bundles have equal names."""
        lines = "".join(f"{file.sha} {file.name}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()[:32]


def collect(spec: JobSpec, on_bytes: Callable[[int], None] = lambda _: None) -> tuple[Bundle, ...]:
    """The bundles of a spec whose file names are absolute; `on_bytes` is told how much was hashed.

    Raises EngineError `remote.input` that names the key of what cannot be read.
    """
    hashes = Hashes()
    found: dict[str, Bundle] = {}
    for named in named_files(spec):
        if named.value in found or named.kind in (NamedKind.OUTPUT, NamedKind.CACHE):
            continue
        paths, tail, root = _paths_of(named)
        if paths is None:
            continue
        try:
            files = tuple(
                InputFile(path, path.relative_to(root).as_posix(), path.stat().st_size, hashes.of(path, on_bytes))
                for path in paths
            )
        except OSError as error:
            raise _unreadable(named, error.strerror or str(error)) from error
        if not files:
            raise _unreadable(named, "Nothing is there.")
        found[named.value] = Bundle(named.key, named.value, tail, files)
    hashes.save()
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Placed:
    """The files of one value under their names there, unread."""

    value: str
    tail: str
    """What follows their folder in the value's new form."""
    files: tuple[tuple[Path, str], ...]
    """Each with its name within the folder, with slashes."""


def placed(named: Named) -> Placed | None:
    """What has to be copied for a value; None for what needs no copy. Raises EngineError `remote.input`."""
    paths, tail, root = _paths_of(named)
    if paths is None:
        return None
    if not paths:
        raise _unreadable(named, "Nothing is there.")
    return Placed(named.value, tail, tuple((path, path.relative_to(root).as_posix()) for path in paths))


def with_places(spec: JobSpec, places: Mapping[str, str]) -> JobSpec:
    """The spec for the other machine: `places` says where each named value is there. Outputs and caches are the
    run's own there."""

    def moved(named: Named) -> str:
        if named.kind in (NamedKind.OUTPUT, NamedKind.CACHE):
            return ""
        return places.get(named.value, named.value)

    return map_files(spec, moved)


def _paths_of(named: Named) -> tuple[list[Path] | None, str, Path]:
    """Files, what follows the folder in the new name, and the folder that names are relative to; None for no files."""
    path = Path(named.value)
    if named.kind is NamedKind.MODEL:
        return (_with_suffix(path, _MODEL_SUFFIXES), "", path) if path.is_dir() else (None, "", path)
    if named.kind is NamedKind.TASK:
        return _task_files(path) if path.is_file() else [], path.name, path.parent
    if path.is_file():
        return [path], path.name, path.parent
    if named.kind is not NamedKind.TEXT:
        return [], "", path
    root = path if path.is_dir() else _before_pattern(path)
    return _text_files(named), "" if path.is_dir() else path.relative_to(root).as_posix(), root


def _text_files(named: Named) -> list[Path]:
    """Exactly what reading the text reads."""
    try:
        return [Path(file.path) for file in source_files(named.key, named.value)]
    except EngineError as error:
        raise _unreadable(named, error.cause or "Nothing is there.") from error


def _task_files(task: Path) -> list[Path]:
    """A benchmark's .yaml and what it names of its own folder, and so on: others by file name or pattern, functions by
    their module, a group's tasks by the names that the files beside it and below define."""
    found, unread = {task}, [task]
    while unread:
        path = unread.pop()
        if path.suffix not in (*SUFFIXES, ".py"):
            continue
        text = path.read_text("utf-8", "replace")
        words = {word.removeprefix("./") for word in _WORDS.findall(text)}
        beside = _with_suffix(path.parent, _TASK_SUFFIXES)
        named = {other for other in beside if any(_names(word, other) for word in words)}
        if path.suffix == INDEXED and "group" in defined_in(text):
            named |= {other for other in path.parent.rglob(f"*{INDEXED}") if words & _defined(other)}
        unread += named - found
        found |= named
    return sorted(found)


def _defined(path: Path) -> set[str]:
    return set(defined_in(path.read_text("utf-8", "replace")).values()) if path.is_file() else set()


def _names(word: str, path: Path) -> bool:
    if path.suffix == ".py" and word.lstrip(".").partition(".")[0] == path.stem:
        return True
    return word.endswith(path.suffix) and fnmatchcase(path.name, word)


def _before_pattern(path: Path) -> Path:
    parts = []
    for part in path.parts:
        if any(character in part for character in _MAGIC):
            break
        parts.append(part)
    return Path(*parts)


def _with_suffix(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """What lies in `folder` itself; pickles and code stay where they are, as everywhere."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in suffixes and path.is_file() and not path.name.startswith(".")
    )


def _unreadable(named: Named, cause: str) -> EngineError:
    return EngineError(
        "remote.input",
        f"{named.key} names {named.value}, which cannot be copied.",
        cause=cause,
        next_step="Correct the name in the spec; names are relative to the spec's own folder.",
    )
