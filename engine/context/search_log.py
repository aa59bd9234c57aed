"""The search's log: one JSON line of settings, then one per evaluation, each on the disk before the next begins.

Owns the file: its records, appending, and what is still good after a kill. Must not know how sets are proposed or
evaluated. A line that was cut short is dropped; a log of other settings is refused, never overwritten.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from engine.errors import EngineError

LOG_VERSION = 1

_BEGINNING = b'{"version":'

T = TypeVar("T")


class SearchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a search depends on; equal settings give equal searches."""

    version: int = LOG_VERSION
    method: str
    model: str
    """Fingerprint of the weights and the config."""
    text: str
    """Fingerprint of the documents."""
    original: int
    target: int
    pairs: int
    candidates: tuple[int, ...]
    attention_factor: float
    """m of every set but the known methods', which bring their own."""
    documents: int
    closing_tokens: int
    weight: float
    seed: int
    compute: str
    """Number type and device: figures of another differ in their last digits."""
    needles: bool
    """Whether needles count: the untouched model answers them within its window."""
    evaluations: int
    """What population and rounds were planned for. A later attempt may do more or fewer, in the same order."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluated set of divisors."""

    evaluation: int
    """From 1."""
    origin: str
    """ "seed yarn", "start", "mutation", "crossover", "draw"."""
    divisors: tuple[float, ...]
    attention_factor: float
    critical_pair: int = 0
    tail: tuple[int, ...] = ()
    """Hundredths, from the critical pair on; empty for a known method, whose curve need not lie in the space."""
    needle_nll: float
    """Mean over the needles' tokens, nats."""
    text_nll: float
    """Mean over the documents' closing tokens, nats."""
    score: float
    """needle_nll + weight x text_nll; lower is better. text_nll alone where needles do not count."""
    seconds: float


class SearchLog:
    """An open log. Use as a context manager."""

    def __init__(self, path: Path, file: int, settings: SearchSettings, trials: tuple[Trial, ...]) -> None:
        self.path = path
        self.settings = settings
        """The file's own: `evaluations` is what the first attempt planned for."""
        self._file = file
        self.kept = trials
        """What an earlier attempt evaluated."""

    def append(self, trial: Trial) -> None:
        """One line, written and flushed to the disk."""
        _write(self._file, msgspec.json.encode(trial) + b"\n")

    def __enter__(self) -> SearchLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def logged_settings(path: Path) -> SearchSettings | None:
    """The settings in an existing log; None where there is no log yet, or none that got as far as its first line.

    Raises EngineError `search.log` when the file is something else.
    """
    lines = _whole_lines(path)
    return _decoded(path, lines[0], SearchSettings) if lines else None


def open_log(path: Path, settings: SearchSettings) -> SearchLog:
    """The log with `settings`, new or continued.

    Raises EngineError `search.log` when it holds another search, another process writes to it, or it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unopened(path, error) from error
    try:
        return _locked_log(path, file, settings)
    except BaseException:
        os.close(file)
        raise


def _locked_log(path: Path, file: int, settings: SearchSettings) -> SearchLog:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the file is closed, also by a kill
    except OSError as error:
        raise EngineError(
            "search.log",
            f"Another search is writing to {path}.",
            cause=str(error),
            next_step="Wait for it, or name another file with --log.",
        ) from error
    lines = _whole_lines(path)
    found = _decoded(path, lines[0], SearchSettings) if lines else settings
    if msgspec.structs.replace(found, evaluations=settings.evaluations) != settings:
        raise _other_search(path, found, settings)
    trials = tuple(_decoded(path, line, Trial) for line in lines[1:])
    os.ftruncate(file, sum(len(line) + 1 for line in lines))
    os.lseek(file, 0, os.SEEK_END)
    if not lines:
        _write(file, msgspec.json.encode(settings) + b"\n")
    return SearchLog(path, file, found, trials)


def _whole_lines(path: Path) -> list[bytes]:
    """Lines that end in a newline; what a kill left of the last one is not among them."""
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unopened(path, error) from error
    if rest and not lines and not rest.startswith(_BEGINNING) and not _BEGINNING.startswith(rest):
        _decoded(path, rest, SearchSettings)  # not the beginning of a log: refused, for it would be cut off
    return lines


def _unopened(path: Path, error: OSError) -> EngineError:
    return EngineError(
        "search.log",
        f"{path} cannot be opened as a search's log.",
        cause=error.strerror or str(error),
        next_step="Make it writable, or name another file with --log.",
    )


def _write(file: int, line: bytes) -> None:
    written = 0
    while written < len(line):
        written += os.write(file, line[written:])
    os.fsync(file)


def _decoded(path: Path, line: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise EngineError(
            "search.log",
            f"{path} is not a search log, or it is damaged.",
            cause=str(error),
            next_step="Name another file with --log.",
        ) from error


def _other_search(path: Path, found: SearchSettings, wanted: SearchSettings) -> EngineError:
    names = [name for name in wanted.__struct_fields__ if name != "evaluations"]
    differing = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    return EngineError(
        "search.log",
        f"{path} belongs to another search.",
        cause="Different: " + ", ".join(differing) + ".",
        next_step="Repeat that search with its settings, or name another file with --log.",
    )
