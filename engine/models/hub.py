"""The Hugging Face hub: small files first, weights only on request, and a limit on every wait.

Owns all talk with the hub. Must not know what a config means. `huggingface_hub` is imported inside functions: it is
slow to import, and many sessions never need it.

Two limits: each connection gives up after `request_seconds`, and a fetch as a whole runs in its own daemon thread and
is abandoned in the end, because retries inside the library add up and a server can drip bytes for ever.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import EngineError
from engine.models.config import CONFIG_NAME
from engine.models.folder import TOKENIZER_FILES, check_files
from engine.models.headers import INDEX_NAME
from engine.models.hub_errors import translated, unreachable
from engine.models.hub_settings import cache_dir, endpoint
from engine.units import format_bytes

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

T = TypeVar("T")
REQUEST_SECONDS = 5.0
DESCRIBE_SECONDS = 9.0
"""For listing, config and index: a few kilobytes."""
TOKENIZER_SECONDS = 90.0
"""For the tokenizer: up to 33 MB."""
WEIGHT_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")
"""What a download may contain: never pickle, never Python files."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The small files of a repository in the local cache."""

    folder: Path
    commit: str
    names: tuple[str, ...]
    """All file names of the repository; of the cached ones when offline."""
    parameters: int = 0
    """Stored parameters as the listing states them, or 0."""
    missing: tuple[str, ...] = ()
    """Tokenizer files that the repository has and that did not come in time."""


class _Report:
    """Progress over several files: what arrived of the current one on top of the finished ones."""

    def __init__(self, total_bytes: int, on_progress: Progress | None) -> None:
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._finished_bytes = 0
        self._current_bytes = 0

    def add(self, count: int) -> None:
        """`count` more bytes of the current file."""
        self._current_bytes += count
        self._tell()

    def file_done(self, file_bytes: int) -> None:
        """The current file of `file_bytes` is complete, whether it was fetched or in the cache."""
        self._finished_bytes += file_bytes
        self._current_bytes = 0
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            done = min(self._finished_bytes + self._current_bytes, self._total_bytes)
            self._on_progress(done, self._total_bytes)


def cached_snapshot(repo_id: str, revision: str) -> HubFiles | None:
    """What the local cache has of a repository, or None; never uses the network."""
    root = cache_dir() / f"models--{repo_id.replace('/', '--')}"
    wanted = revision or "main"
    try:
        reference = root / "refs" / wanted
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else wanted
        folder = root / "snapshots" / commit
        if ".." in folder.parts or not (folder / CONFIG_NAME).is_file():
            return None
        names = tuple(sorted(entry.name for entry in folder.iterdir()))
    except (OSError, ValueError):
        return None
    return HubFiles(folder, commit, names)


def fetch_small_files(
    repo_id: str,
    revision: str,
    *,
    request_seconds: float = REQUEST_SECONDS,
    describe_seconds: float = DESCRIBE_SECONDS,
    tokenizer_seconds: float = TOKENIZER_SECONDS,
) -> HubFiles:
    """Config, tokenizer and index of a repository. Raises EngineError `hub.*`, or `model.*` from the file names.

    A tokenizer that does not come in time is no error: what is missing is named in the result.
    """

    def describe() -> HubFiles:
        details = _model_info(repo_id, revision, request_seconds, with_sizes=False)
        names = _file_names(details)
        check_files(names, repo_id)
        wanted = [name for name in names if name in (CONFIG_NAME, INDEX_NAME)]
        paths = [_download(repo_id, name, details.sha or revision, request_seconds) for name in wanted]
        folder = next(path.parent for path in paths if path.name == CONFIG_NAME)
        _remember_reference(repo_id, revision, details.sha)
        return HubFiles(folder, details.sha or "", names, _stated_parameters(details))

    files = _within(describe_seconds, repo_id, lambda: translated(repo_id, revision, describe))
    absent = tuple(name for name in files.names if name in TOKENIZER_FILES and not (files.folder / name).exists())

    def fetch_tokenizer() -> None:
        for name in absent:
            _download(repo_id, name, files.commit or revision, request_seconds)

    try:
        _within(tokenizer_seconds, repo_id, lambda: translated(repo_id, revision, fetch_tokenizer))
    except EngineError as error:
        if error.code != "hub.unreachable":
            raise
    return replace(files, missing=tuple(name for name in absent if not (files.folder / name).exists()))


def stated_licence(repo_id: str) -> str:
    """The licence that the hub's listing states, "" where it states none. Raises EngineError `hub.*`."""

    def ask() -> str:
        details = _model_info(repo_id, "", REQUEST_SECONDS, with_sizes=False)
        found = next((tag for tag in details.tags or () if tag.startswith("license:")), "")
        return found.partition(":")[2]

    return _within(DESCRIBE_SECONDS, repo_id, lambda: translated(repo_id, "", ask))


def fetch_weights(repo_id: str, revision: str, on_progress: Progress | None = None) -> Path:
    """Download all files of a model that `WEIGHT_PATTERNS` allows; returns the folder. Continues a broken download.

    `on_progress(done_bytes, total_bytes)` is called from this thread. Raises EngineError `hub.*`.
    """

    def fetch() -> Path:
        details = _model_info(repo_id, revision, REQUEST_SECONDS, with_sizes=True)
        names = _file_names(details)
        check_files(names, repo_id)
        sizes = {s.rfilename: s.size or 0 for s in details.siblings or [] if _wanted(s.rfilename)}
        _check_room(repo_id, sum(sizes.values()))
        report = _Report(sum(sizes.values()), on_progress)
        folder: Path | None = None
        for name, size in sorted(sizes.items(), key=lambda item: item[1]):
            path = _download(repo_id, name, details.sha or revision, REQUEST_SECONDS, report.add)
            folder = path.parent if name == CONFIG_NAME else folder
            report.file_done(size)
        _remember_reference(repo_id, revision, details.sha)
        assert folder is not None, "check_files refuses a repository without config.json"
        return folder

    return translated(repo_id, revision, fetch)


def _wanted(name: str) -> bool:
    from fnmatch import fnmatch

    return "/" not in name and any(fnmatch(name, pattern) for pattern in WEIGHT_PATTERNS)


def _file_names(details: ModelInfo) -> tuple[str, ...]:
    """Names at the top of the repository; files in folders are variants, not the model."""
    return tuple(sorted(s.rfilename for s in details.siblings or [] if "/" not in s.rfilename))


def _stated_parameters(details: ModelInfo) -> int:
    stated = details.safetensors
    return int(stated.total) if stated is not None and stated.total else 0


def _model_info(repo_id: str, revision: str, seconds: float, *, with_sizes: bool) -> ModelInfo:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi(endpoint=endpoint())
    try:
        return api.model_info(repo_id, revision=revision or None, timeout=seconds, files_metadata=with_sizes)
    except HFValidationError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreachable(
            repo_id, f"{endpoint()} gave an answer that makes no sense ({type(error).__name__})"
        ) from error


def _download(
    repo_id: str, name: str, revision: str, seconds: float, on_bytes: Callable[[int], None] | None = None
) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            repo_id,
            name,
            revision=revision or None,
            cache_dir=cache_dir(),
            endpoint=endpoint(),
            etag_timeout=seconds,
            tqdm_class=_bar(on_bytes or (lambda count: None)),
        )
    )


def _bar(on_bytes: Callable[[int], None]) -> type[Any]:
    """A progress bar class that draws nothing and passes the bytes on; the terminal belongs to the front end."""
    base: Any = import_module("tqdm").tqdm

    class Bar(base):  # type: ignore[misc]
        """What the hub library takes for a bar."""

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})
            on_bytes(int(options.get("initial") or 0))

        def update(self, n: float | None = 1) -> None:
            """`n` more bytes have arrived."""
            on_bytes(int(n or 0))

    return Bar


def _remember_reference(repo_id: str, revision: str, commit: str | None) -> None:
    """Files are fetched by commit; note which branch that was, so that the cache answers for it offline."""
    name = revision or "main"
    if not commit or name == commit:
        return
    reference = cache_dir() / f"models--{repo_id.replace('/', '--')}" / "refs" / name
    try:
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit, encoding="utf-8")
    except OSError:
        return


def _check_room(repo_id: str, total_bytes: int) -> None:
    folder = cache_dir()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if total_bytes > free:
        raise EngineError(
            "hub.no_space",
            f"{repo_id} needs {format_bytes(total_bytes)} and only {format_bytes(free)} are free in {folder}.",
            next_step="Free some space, or set HF_HOME to a larger disk.",
        )


def _within(seconds: float, repo_id: str, work: Callable[[], T]) -> T:
    """The result of `work`, or an error after `seconds`; a thread that hangs is left behind as a daemon."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="hub-fetch", daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    if errors:
        raise errors[0]
    raise unreachable(repo_id, f"no complete answer from {endpoint()} within {seconds:.0f} s")
