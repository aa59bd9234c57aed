"""A run that outlives its machine: what is needed to go on is kept in a folder that stays, such as a mounted bucket.

Owns that folder's layout. Buckets can write whole new files and remove them, and not much else: nothing is renamed,
appended to or overwritten there, and a file that was cut off is removed first. What is written last may be there first:
an upload goes its own way. So nothing is believed that its hash does not bear out, and a state that says the run is
over counts for nothing without its output. Must not know which cloud it is.

    KEEP/<16 digits of the hash of the spec as it is written>/
      state-00000012-<16 digits of its SHA-256>.tar    journals, spec, cards, certificates; a list of the large files
      large/<SHA-256>                                  models and moments of stages
      checkpoints/step-00000050/...                    whole checkpoints; their own manifests say whether they are
      output/...                                       once the run is over; then
      done.json                                        its files with their hashes; then the state that says so
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from engine.errors import EngineError, ExitCode
from engine.jobs import checkpoints, layout
from engine.jobs.spec import JobSpec
from engine.jobs.spec_toml import dump_spec, spec_hash, with_absolute_paths
from engine.jobs.state import RunPhase
from engine.jobs.summary import frozen_spec, quick_state, read_record
from engine.paths import ensure_writable, runs_dir
from engine.remote.far.following import APPENDED, LARGEST_WHOLE_BYTES, SKIPPED_FOLDERS, WHOLE

KEEP_SECONDS = 30.0
BYTES_PER_SECOND = 2e6
"""Of an upload; journals that have grown long are kept less often, so that uploading takes a tenth of the time."""
STATES_KEPT = 2
LARGE = "large"
LIST = ".kept.json"
DONE = "done.json"
OVER = (RunPhase.FINISHED, RunPhase.STOPPED)
"""Nothing goes on after these: what they have made has to be there."""

_STATE = re.compile(r"state-(\d{8})-([0-9a-f]{16})\.tar")


class KeptFile(msgspec.Struct, frozen=True):
    """A file that is kept beside the state, with its hash; or a link, with its target."""

    name: str
    sha: str = ""
    link: str = ""


class Keeper:
    """Copies what is new of one run into its folder; `spec` is as it is written, its file names relative."""

    def __init__(self, run_dir: Path, spec: JobSpec, keep: Path) -> None:
        self.run_dir = run_dir
        self.place = _place(keep, spec)
        self.place.mkdir(parents=True, exist_ok=True)
        self._next = 1 + max((number for number, _ in _states(self.place)), default=0)
        self._copied: set[str] = set()
        self._large: dict[str, tuple[int, KeptFile]] = {}
        self._wanted: frozenset[str] = frozenset()
        """Large files of the newest state."""
        self._due = 0.0

    def look(self, *, now: bool = False) -> bool:
        """Keep what is due; with `now` whatever is new. Returns whether anything was written. Raises OSError.

        That the run is over is not told here (`finish`)."""
        return self._look(now=now, last=False)

    def finish(self) -> None:
        """The last word: the output of a run that is over, that it is whole, and then the state. Raises OSError."""
        self._look(now=True, last=True)

    def _look(self, *, now: bool, last: bool) -> bool:
        fresh = [path for path in self._checkpoints() if path.name not in self._copied]
        if not (fresh or now or time.monotonic() >= self._due):
            return False
        size = self._write_state(last=last)
        for folder in fresh:
            self._copy_checkpoint(folder)
        if fresh:
            self._prune()
        self._due = time.monotonic() + max(KEEP_SECONDS, 10 * size / BYTES_PER_SECOND)
        return True

    def _keep_output(self) -> None:
        """Copied, then vouched for. What an earlier ending left may have the same sizes and be something else."""
        files = tuple(
            KeptFile(path.relative_to(self.run_dir).as_posix(), _sha_of(path))
            for path in sorted((self.run_dir / layout.OUTPUT).rglob("*"))
            if path.is_file()
        )
        if _done(self.place) == files and _are_whole(files, self.place):
            return
        (self.place / DONE).unlink(missing_ok=True)
        shutil.rmtree(self.place / layout.OUTPUT, ignore_errors=True)
        for file in files:
            _copy(self.run_dir / file.name, self.place / file.name)
        _write(self.place / DONE, msgspec.json.encode(files))

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

    def _write_state(self, *, last: bool) -> int:
        """Returns its size, 0 when none was written."""
        small, large = _sorted_files(self.run_dir)
        kept = tuple(self._kept(path) for path in large)
        content = _packed(self.run_dir, small, kept)
        over = is_over(self.run_dir)  # asked afterwards: what was packed says no more than that
        if over and not last:
            return 0
        if over:
            self._keep_output()
        name = f"state-{self._next:08d}-{hashlib.sha256(content).hexdigest()[:16]}.tar"
        _write(self.place / name, content)
        self._next += 1
        if over:  # should its output be lost, what was before is gone on with
            return len(content)
        for _, path in _states(self.place)[STATES_KEPT:]:
            path.unlink(missing_ok=True)
        wanted = frozenset(file.sha for file in kept)
        for path in (self.place / LARGE).glob("*"):
            if path.name not in wanted | self._wanted:
                path.unlink(missing_ok=True)
        self._wanted = wanted
        return len(content)

    def _kept(self, path: Path) -> KeptFile:
        """A large file, copied unless it was."""
        name = path.relative_to(self.run_dir).as_posix()
        if path.is_symlink():
            return KeptFile(name, link=os.readlink(path))
        modified = path.stat().st_mtime_ns
        known = self._large.get(name)
        if known is None or known[0] != modified:
            sha = _sha_of(path)
            target = self.place / LARGE / sha
            if not (target.is_file() and target.stat().st_size == path.stat().st_size):
                _copy(path, target)
            self._large[name] = known = (modified, KeptFile(name, sha))
        return known[1]


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


def restore(keep: Path, spec: JobSpec, base: Path) -> Path | None:
    """The run of this spec that was kept, as a run directory here; None when there is none. One that is here already
    is left as it is: it is the newer one. File names in `spec` are relative to `base`: the run is told where they are
    on this machine. Raises EngineError."""
    place = _place(keep, spec)
    for _, path in _states(place):
        content = path.read_bytes()
        match = _STATE.fullmatch(path.name)
        if match is None or hashlib.sha256(content).hexdigest()[:16] != match.group(2):
            continue  # its upload was not complete when the machine went
        found = _unpacked(content, place, with_absolute_paths(spec, base.absolute()))
        if found is not None:
            return found
    return None


def _unpacked(content: bytes, place: Path, spec: JobSpec) -> Path | None:
    """None when a large file that belongs to this state was not complete, or the run is over without its output."""
    parent = ensure_writable(runs_dir())
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        (run_id,) = {name.partition("/")[0] for name in archive.getnames()}
        target, staging = parent / run_id, parent / f".new-{run_id}"
        if target.is_dir():
            return target
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        archive.extractall(staging, filter="data")
    run_dir = staging / run_id
    if not _put_large(run_dir, place):
        shutil.rmtree(staging)
        return None
    _rename_files(run_dir, spec)
    for name in (layout.CONTROL, layout.CHECKPOINTS):
        (run_dir / name).mkdir(exist_ok=True)
    for name in (layout.CHECKPOINTS, layout.OUTPUT):
        if (place / name).is_dir():
            shutil.copytree(place / name, run_dir / name, dirs_exist_ok=True)
    done = _done(place)
    if is_over(run_dir) and (done is None or not _are_whole(done, run_dir)):
        shutil.rmtree(staging)
        return None
    run_dir.rename(target)
    staging.rmdir()
    return target


def _rename_files(run_dir: Path, spec: JobSpec) -> None:
    """The same job with this machine's file names: another cloud has another home folder."""
    record = read_record(run_dir)
    moved = msgspec.structs.replace(spec, prediction=frozen_spec(run_dir, record).prediction)
    layout.write_atomic(run_dir / layout.SPEC, dump_spec(moved).encode())
    record = msgspec.structs.replace(record, moved_hash=spec_hash(moved))
    layout.write_atomic(run_dir / layout.RUN, msgspec.json.format(msgspec.json.encode(record)) + b"\n")


def _put_large(run_dir: Path, place: Path) -> bool:
    """Every file of the list under its own name; false when one is missing or not what its name says."""
    listed = run_dir / LIST
    for file in msgspec.json.decode(listed.read_bytes(), type=tuple[KeptFile, ...]):
        path = run_dir / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.link:
            path.symlink_to(file.link)
            continue
        if not (place / LARGE / file.sha).is_file():
            return False
        _copy(place / LARGE / file.sha, path)
        if _sha_of(path) != file.sha:
            return False
    listed.unlink()
    return True


def is_over(run_dir: Path) -> bool:
    """Whether nothing goes on after what its journals say."""
    return quick_state(run_dir).state in OVER


def _done(place: Path) -> tuple[KeptFile, ...] | None:
    """The output that was kept whole; None when none was."""
    try:
        return msgspec.json.decode((place / DONE).read_bytes(), type=tuple[KeptFile, ...])
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _are_whole(files: tuple[KeptFile, ...], folder: Path) -> bool:
    return all((folder / file.name).is_file() and _sha_of(folder / file.name) == file.sha for file in files)


def _sha_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sorted_files(run_dir: Path) -> tuple[list[Path], list[Path]]:
    """What goes into the state, and what is too large for it or a link."""
    small, large = [], []
    for path in sorted(run_dir.rglob("*")):
        parts = path.relative_to(run_dir).parts
        if parts[0] in SKIPPED_FOLDERS or any(part.startswith(".") for part in parts) or path.suffix == ".lock":
            continue
        if path.suffix in APPENDED or (path.is_file() and not path.is_symlink() and _is_small(path)):
            small.append(path)
        elif path.is_symlink() or path.is_file():
            large.append(path)
    return small, large


def _is_small(path: Path) -> bool:
    return path.suffix in (*WHOLE, ".toml", "") and path.stat().st_size <= LARGEST_WHOLE_BYTES


def _packed(run_dir: Path, small: list[Path], large: tuple[KeptFile, ...]) -> bytes:
    """A tar below the run's id."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(f"{run_dir.name}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

        for path in small:
            with suppress(FileNotFoundError):  # replaced meanwhile
                add(path.relative_to(run_dir).as_posix(), path.read_bytes())
        add(LIST, msgspec.json.encode(large))
    return buffer.getvalue()


def _states(place: Path) -> list[tuple[int, Path]]:
    """(number, file), newest first."""
    found = [(int(match.group(1)), path) for path in place.glob("state-*") if (match := _STATE.fullmatch(path.name))]
    return sorted(found, reverse=True)


def _place(keep: Path, spec: JobSpec) -> Path:
    return keep / spec_hash(spec)[:16]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 20)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
