"""A run that outlives its machine: what is needed to go on is kept in a folder that stays, such as a mounted bucket.

Owns that folder's layout. Buckets can write whole new files and remove them, and not much else: nothing is renamed,
appended to or overwritten there. Must not know which cloud it is.

    KEEP/<16 digits of the spec's hash>/
      state-00000012-<16 digits of its SHA-256>.tar    journals, spec, cards, certificates: all small files of the run
      checkpoints/step-00000050/...                    whole checkpoints; their own manifests say whether they are
      output/...                                       once the run is over
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import EngineError, ExitCode
from engine.jobs import checkpoints, layout
from engine.jobs.spec import JobSpec
from engine.jobs.spec_toml import spec_hash
from engine.paths import ensure_writable, runs_dir
from engine.remote.far.following import APPENDED, LARGEST_WHOLE_BYTES, SKIPPED_FOLDERS, WHOLE

KEEP_SECONDS = 30.0
BYTES_PER_SECOND = 2e6
"""Of an upload; journals that have grown long are kept less often, so that uploading takes a tenth of the time."""
STATES_KEPT = 2

_STATE = re.compile(r"state-(\d{8})-([0-9a-f]{16})\.tar")


class Keeper:
    """Copies what is new of one run into its folder."""

    def __init__(self, run_dir: Path, spec: JobSpec, keep: Path) -> None:
        self.run_dir = run_dir
        self.place = _place(keep, spec)
        self.place.mkdir(parents=True, exist_ok=True)
        self._next = 1 + max((number for number, _ in _states(self.place)), default=0)
        self._copied: set[str] = set()
        self._due = 0.0

    def look(self, *, now: bool = False) -> bool:
        """Keep what is due; with `now` whatever is new. Returns whether anything was written. Raises OSError."""
        fresh = [path for path in self._checkpoints() if path.name not in self._copied]
        if not (fresh or now or time.monotonic() >= self._due):
            return False
        size = self._write_state()
        for folder in fresh:
            self._copy_checkpoint(folder)
        if fresh:
            self._prune()
        self._due = time.monotonic() + max(KEEP_SECONDS, 10 * size / BYTES_PER_SECOND)
        return True

    def finish(self) -> None:
        """The last word: the state as it is, and the output. Raises OSError."""
        self.look(now=True)
        output = self.run_dir / layout.OUTPUT
        for path in sorted(output.rglob("*")):
            target = self.place / path.relative_to(self.run_dir)
            if path.is_file() and not (target.is_file() and target.stat().st_size == path.stat().st_size):
                _copy(path, target)

    def _checkpoints(self) -> list[Path]:
        found = (self.run_dir / layout.CHECKPOINTS).glob("step-*")
        return sorted(path for path in found if (path / checkpoints.MANIFEST).is_file())

    def _copy_checkpoint(self, folder: Path) -> None:
        """Its manifest last. One that is pruned meanwhile is no loss: a newer one is there."""
        target = self.place / layout.CHECKPOINTS / folder.name
        with suppress(FileNotFoundError):
            if not (target / checkpoints.MANIFEST).is_file():
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                for path in sorted(files, key=lambda path: path.name == checkpoints.MANIFEST):
                    _copy(path, target / path.relative_to(folder))
            self._copied.add(folder.name)

    def _prune(self) -> None:
        """As the run does: what it no longer has is no longer kept, once something newer is."""
        here = {path.name for path in self._checkpoints()}
        for folder in (self.place / layout.CHECKPOINTS).glob("step-*"):
            if folder.name not in here and here and folder.name < max(here):
                shutil.rmtree(folder, ignore_errors=True)

    def _write_state(self) -> int:
        content = _packed(self.run_dir)
        name = f"state-{self._next:08d}-{hashlib.sha256(content).hexdigest()[:16]}.tar"
        _write(self.place / name, content)
        self._next += 1
        for _, path in _states(self.place)[STATES_KEPT:]:
            path.unlink(missing_ok=True)
        return len(content)


@contextmanager
def keeping(run_dir: Path, spec: JobSpec, keep: Path) -> Iterator[Keeper]:
    """A thread that keeps the run while the block lasts; whatever is new is kept when it is left. Raises EngineError
    `keep.unwritable` when that last time fails; before it a failure is only tried again."""
    keeper, over = Keeper(run_dir, spec, keep), threading.Event()

    def work() -> None:
        while not over.wait(1.0):
            with suppress(OSError):
                keeper.look()

    thread = threading.Thread(target=work, name="keeper", daemon=True)
    thread.start()
    try:
        yield keeper
    finally:
        over.set()
        thread.join()
        try:
            keeper.finish()
        except OSError as error:
            raise EngineError(
                "keep.unwritable",
                f"The run could not be kept in {keep}.",
                cause=error.strerror or str(error),
                next_step="Is it mounted, and is there room? The run itself is complete on this machine.",
                exit_code=ExitCode.RUN_FAILED,
            ) from error


def restore(keep: Path, spec: JobSpec) -> Path | None:
    """The run of this spec that was kept, as a run directory here; None when there is none. One that is here already
    is left as it is: it is the newer one. Raises EngineError."""
    place = _place(keep, spec)
    for _, path in _states(place):
        content = path.read_bytes()
        match = _STATE.fullmatch(path.name)
        if match is None or hashlib.sha256(content).hexdigest()[:16] != match.group(2):
            continue  # its upload was not complete when the machine went
        return _unpacked(content, place)
    return None


def _unpacked(content: bytes, place: Path) -> Path:
    parent = ensure_writable(runs_dir())
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        (run_id,) = {name.partition("/")[0] for name in archive.getnames()}
        target, staging = parent / run_id, parent / f".new-{run_id}"
        if target.is_dir():
            return target
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        archive.extractall(staging, filter="data")
    for name in (layout.CONTROL, layout.CHECKPOINTS):
        (staging / run_id / name).mkdir(exist_ok=True)
    for name in (layout.CHECKPOINTS, layout.OUTPUT):
        if (place / name).is_dir():
            shutil.copytree(place / name, staging / run_id / name, dirs_exist_ok=True)
    (staging / run_id).rename(target)
    staging.rmdir()
    return target


def _packed(run_dir: Path) -> bytes:
    """All small files of a run as one tar, below its id."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(run_dir.rglob("*")):
            relative = path.relative_to(run_dir)
            if relative.parts[0] in SKIPPED_FOLDERS or path.name.startswith(".") or path.is_symlink():
                continue
            if path.suffix not in (*APPENDED, *WHOLE, ".toml") or not path.is_file():
                continue
            content = path.read_bytes()  # read once: a journal grows meanwhile
            if len(content) <= LARGEST_WHOLE_BYTES or path.suffix in APPENDED:
                entry = tarfile.TarInfo(f"{run_dir.name}/{relative.as_posix()}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _states(place: Path) -> list[tuple[int, Path]]:
    """(number, file), newest first."""
    found = [(int(match.group(1)), path) for path in place.glob("state-*") if (match := _STATE.fullmatch(path.name))]
    return sorted(found, reverse=True)


def _place(keep: Path, spec: JobSpec) -> Path:
    return keep / spec_hash(spec)[:16]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 20)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
