"""The local run directory of a run that works elsewhere: files that grow, files that are replaced, where each stands.

Owns writing the mirror. Journals are only ever appended to, at the byte where they end, so that every reader of a run
directory reads the mirror as it would the original. Must not know connections.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from engine.errors import EngineError
from engine.jobs import elsewhere, layout
from engine.jobs.elsewhere import RemoteRecord
from engine.paths import ensure_writable, runs_dir
from engine.remote.far.following import APPENDED, CHECK_BYTES, OWN_FILES, SKIPPED_FOLDERS, WHOLE

_STAGING = ".new-"
_OWN = frozenset((*OWN_FILES, elsewhere.TAIL_LOCK))


def place_of(run_dir: Path, name: str) -> Path:
    """Where a file belongs that a host names: only plain names below the run directory, spelled in their one way, and
    none of the files that say where the run is. Raises EngineError `remote.name`."""
    plain = PurePosixPath(name)
    spelled = name == plain.as_posix() and not plain.is_absolute() and ".." not in plain.parts and name.isprintable()
    if not spelled or name == "." or "\\" in name:
        raise _bad_name(name, "It is no plain name of a file below the run's folder.")
    path = run_dir / name
    if not path.resolve().is_relative_to(run_dir.resolve()):
        raise _bad_name(name, "It leads outside the run's folder.")
    if plain.name.casefold() in _OWN:  # there are file systems that do not tell upper from lower case
        raise _bad_name(name, "That file is the mirror's own.")
    return path


def _bad_name(name: str, cause: str) -> EngineError:
    return EngineError(
        "remote.name",
        f"The host names a file that is not taken: {name!a}.",
        cause=cause,
        next_step="Nothing was written. Is it the host you mean, and is it yours?",
    )


class Mirror:
    """One mirror, being brought up to date."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def offsets(self) -> dict[str, tuple[int, str]]:
        """Of each file that grows: its length, and the SHA-256 of its last bytes."""
        found = {}
        for path in self._files(APPENDED):
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(max(size - CHECK_BYTES, 0))
                found[self._name(path)] = (size, hashlib.sha256(file.read(CHECK_BYTES)).hexdigest())
        return found

    def whole(self) -> dict[str, str]:
        """SHA-256 of each file that is replaced as a whole."""
        return {self._name(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in self._files(WHOLE)}

    def append(self, name: str, offset: int, content: bytes) -> None:
        """The next bytes of a file, from `offset` on; what was behind it is not the host's. Raises EngineError."""
        path = self._place(name, APPENDED)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if os.fstat(handle).st_size > offset:
                    os.ftruncate(handle, offset)
                written = 0
                while written < len(content):
                    written += os.pwrite(handle, content[written:], offset + written)
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno in layout.DISK_FULL_ERRNOS:
                raise layout.disk_full(self.run_dir, error.strerror or str(error)) from error
            raise

    def replace(self, name: str, content: bytes) -> None:
        """A whole file in one go. Raises EngineError `disk.full`, `remote.name`."""
        layout.write_atomic(self._place(name, WHOLE), content)

    def _place(self, name: str, suffixes: Collection[str]) -> Path:
        """Where a file belongs that the host may send: what a tail sends, and nothing else, whatever it says."""
        path = place_of(self.run_dir, name)
        parts = PurePosixPath(name).parts
        if path.suffix not in suffixes or parts[0] in SKIPPED_FOLDERS or any(part.startswith(".") for part in parts):
            raise _bad_name(name, "It is none of the files that a mirror has.")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _files(self, suffixes: tuple[str, ...]) -> list[Path]:
        return [
            path
            for path in self.run_dir.rglob("*")
            if path.suffix in suffixes
            and path.is_file()
            and not path.is_symlink()
            and not path.name.startswith(".")
            and path.name not in OWN_FILES
            and path.relative_to(self.run_dir).parts[0] not in (layout.OUTPUT, layout.CHECKPOINTS)
        ]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.run_dir).as_posix()


def create(run_id: str, record: RemoteRecord, spec: bytes, run: bytes) -> Path:
    """A new mirror, whole or not there; one of the same run is used again. Raises EngineError `remote.same_place` when
    a run of this machine has that id."""
    target = ensure_writable(runs_dir()) / run_id
    if target.exists():
        if not elsewhere.is_elsewhere(target):
            raise EngineError(
                "remote.same_place",
                f"Run {run_id} is one of this machine's own.",
                cause="The host is this machine and keeps its runs in the same folder.",
                next_step="Start it here (scaler-wizard run), or name another folder for the host's with --home.",
            )
        elsewhere.write_record(target, record)
        return target
    staging = target.with_name(f"{_STAGING}{run_id}")
    try:
        (staging / layout.CONTROL).mkdir(parents=True, exist_ok=True)
        layout.write_atomic(staging / layout.SPEC, spec)
        layout.write_atomic(staging / layout.RUN, run)
        elsewhere.write_record(staging, record)
        staging.rename(target)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(staging)
        raise
    return target
