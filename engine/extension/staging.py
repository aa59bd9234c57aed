"""The hidden folder beside the output in which an extension is made, and what a resume needs to trust it.

Owns `.OUT.extending/`: the frozen order, the lock, the names in it, the last rename. Must not know how anything is
measured.

    order.json                       what was asked for and the source's identity; written first, compared on resume
    race.jsonl  search.jsonl         what the measuring processes logged: they go on from there
    factors.json                     factors that were given and take part in the race
    decision.json                    the plan, once it is made
    model/                           the extended folder, whole once it is there
    check.json  evaluation.jsonl  report.json
    *.log                            what processes wrote on stderr

Only `model/` gets the output's name; the rest goes with the folder.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType

import msgspec

from engine.context.method import Options
from engine.errors import EngineError
from engine.jobs import lock
from engine.jobs.layout import fsync_directory, write_atomic
from engine.models.config import CONFIG_NAME
from engine.models.headers import Headers

ORDER, LOCK, DECISION, MODEL = "order.json", "lock", "decision.json", "model"
RACE, SEARCH, CHECK, EVALUATION, REPORT = (
    "race.jsonl", "search.jsonl", "check.json", "evaluation.jsonl", "report.json",
)  # fmt: skip
FACTORS = "factors.json"


class SourceFile(msgspec.Struct, frozen=True):
    """What must not change between two attempts."""

    name: str
    size_bytes: int
    modified_ns: int


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """`order.json`: what is being made of what. A resume takes everything but the identity from here."""

    v: int = 1
    program: str
    source: str
    name: str
    """The model as the user called it."""
    files: tuple[SourceFile, ...]
    target: int
    method: str
    """ "auto" or a method's id."""
    options: Options
    among: tuple[str, ...] = ()
    """ "auto" chooses from these; empty: from all that apply."""
    factors: str = ""
    """The file the options' divisors came from."""
    text: str = ""
    seed: int = 17
    prompts: int = 0
    """Per length and depth; 0 leaves it to the evaluation."""
    quick: bool = False
    report: bool = True
    lengths: tuple[int, ...] = ()
    """Of the report; empty leaves them to the evaluation."""
    needles: bool = True
    """Whether the report asks for needles."""
    check: bool = True
    """Whether the folder is loaded for its check; where not even that fits the machine, frequencies are compared
    without the weights."""
    links: str = "hard"
    consumers: tuple[str, ...] = ()
    """Where the model is to run; empty for anywhere."""
    train: tuple[str, ...] = ()
    """Files to train on at the new length; empty for none."""
    steps: int = 0
    """0: one pass over them."""
    search_minutes: float = 0.0
    evaluations: int = 0
    search_documents: int = 0
    """Texts that every set of factors is tried on; 0 for the usual number."""
    search_text_weight: float | None = None
    """Of the text's loss beside the needles'; None for the usual one."""
    dtype: str = "auto"
    """Of the model while it is measured."""
    quantization: str = "none"
    """Of its weights while it is measured."""

    @property
    def searches(self) -> bool:
        """Whether time for a search was given."""
        return bool(self.search_minutes or self.evaluations)


def staging_folder(out: Path) -> Path:
    """Where `out` is made: hidden, beside it, on the same file system."""
    return out.parent / f".{out.name}.extending"


def identity(source: Path, headers: Headers) -> tuple[SourceFile, ...]:
    """Name, size and time of every file that matters."""
    found = []
    for path in (source / CONFIG_NAME, *headers.files):
        status = path.stat()
        found.append(SourceFile(path.name, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found, key=lambda file: file.name))


class Staging:
    """A context that holds the folder's lock."""

    def __init__(self, out: Path, folder: Path, handle: int) -> None:
        self.out, self.folder, self._lock = out, folder, handle

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept = any((self.folder / name).exists() for name in (RACE, SEARCH, DECISION, MODEL))
        if error is not None and not kept:
            shutil.rmtree(self.folder, ignore_errors=True)  # nothing a resume could use
        os.close(self._lock)

    @classmethod
    def create(cls, out: Path, order: Order) -> Staging:
        """A new folder. Raises EngineError `extension.unfinished` when an earlier attempt lies there."""
        folder = staging_folder(out)
        if folder.exists():
            raise EngineError(
                "extension.unfinished",
                f"An unfinished extension to {out} lies in {folder}.",
                cause="It was interrupted, or ended with an error; what it measured is kept.",
                next_step=f"Continue it with --resume, or remove {folder} and start again.",
            )
        try:
            folder.mkdir(parents=True)
            write_atomic(folder / ORDER, msgspec.json.encode(order))
        except OSError as error:
            raise unwritable(folder.parent, error) from error
        fsync_directory(folder.parent)
        return cls(out, folder, _locked(folder))

    @classmethod
    def resume(cls, out: Path, files: tuple[SourceFile, ...]) -> Staging:
        """The folder of an earlier attempt with the same source. Raises EngineError `extension.nothing_to_resume`,
        `extension.source_changed`, `extension.busy`."""
        folder = staging_folder(out)
        order = read_order(out)
        if order.files != files:
            raise EngineError(
                "extension.source_changed",
                f"The source is not what it was when the extension to {out} began.",
                cause="Names, sizes or times of its config and weight files differ.",
                next_step=f"Restore it, or remove {folder} and start again.",
            )
        return cls(out, folder, _locked(folder))

    def publish(self) -> None:
        """`model/` gets the output's name and the rest is removed. Raises EngineError `extension.out_exists`."""
        if self.out.exists() or self.out.is_symlink():
            raise EngineError(
                "extension.out_exists",
                f"{self.out} appeared while the model was being made.",
                next_step=f"Move it away and use --resume; the result is in {self.folder / MODEL}.",
            )
        fsync_directory(self.folder / MODEL)
        (self.folder / MODEL).rename(self.out)
        fsync_directory(self.out.parent)
        shutil.rmtree(self.folder, ignore_errors=True)


def unwritable(folder: Path, error: OSError) -> EngineError:
    """Nothing can be made in `folder`."""
    return EngineError(
        "extension.out_unwritable",
        f"Cannot write to {folder}.",
        cause=error.strerror or str(error),
        next_step="Choose a folder you can write to.",
    )


def read_order(out: Path) -> Order:
    """What an interrupted attempt was asked for. Raises EngineError `extension.nothing_to_resume`."""
    folder = staging_folder(out)
    try:
        return msgspec.json.decode((folder / ORDER).read_bytes(), type=Order)
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineError(
            "extension.nothing_to_resume",
            f"There is no unfinished extension to {out}.",
            cause=f"{folder / ORDER} cannot be read." if folder.exists() else "",
            next_step=f"Start it without --resume{f', after removing {folder}' if folder.exists() else ''}.",
        ) from error


def _locked(folder: Path) -> int:
    handle = lock.take(folder / LOCK)
    if handle is None:
        raise EngineError(
            "extension.busy",
            f"Another process is working in {folder}.",
            next_step="Wait for it, or stop it first.",
        )
    return handle
