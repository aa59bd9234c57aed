"""The Hugging Face hub: small files first, weights only on request, and a limit on every wait.

Owns all talk with the hub. Must not know what a config means. `huggingface_hub` is imported inside functions: it is
slow to import, and many sessions never need it.

Two limits: each connection gives up after `request_seconds`, and every fetch as a whole runs in its own daemon thread
and is abandoned after `whole_seconds`, because retries inside the library add up.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
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
WHOLE_SECONDS = 20.0
SMALL_FILES = (CONFIG_NAME, INDEX_NAME, "adapter_config.json", *TOKENIZER_FILES)
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
    parameters: int
    """Stored parameters as the listing states them, or 0."""
    gated: bool


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
    return HubFiles(folder, commit, names, 0, False)


def fetch_small_files(
    repo_id: str, revision: str, *, request_seconds: float = REQUEST_SECONDS, whole_seconds: float = WHOLE_SECONDS
) -> HubFiles:
    """Config, tokenizer and index of a repository. Raises EngineError `hub.*`, or `model.*` from the file names."""

    def fetch() -> HubFiles:
        details = _model_info(repo_id, revision, request_seconds, with_sizes=False)
        names = _file_names(details)
        check_files(names, repo_id)
        wanted = [name for name in names if name in SMALL_FILES]
        paths = [_download(repo_id, name, details.sha or revision, request_seconds) for name in wanted]
        folder = next(path.parent for path in paths if path.name == CONFIG_NAME)
        _remember_reference(repo_id, revision, details.sha)
        return HubFiles(folder, details.sha or "", names, _stated_parameters(details), bool(details.gated))

    return _within(whole_seconds, repo_id, lambda: translated(repo_id, revision, fetch))


def fetch_weights(repo_id: str, revision: str, on_progress: Progress | None = None) -> Path:
    """Download all files of a model that `WEIGHT_PATTERNS` allows; returns the folder. Continues a broken download.

    `on_progress(done_bytes, total_bytes)` is called from this thread. Raises EngineError `hub.*`.
    """

    def fetch() -> Path:
        details = _model_info(repo_id, revision, REQUEST_SECONDS, with_sizes=True)
        names = _file_names(details)
        check_files(names, repo_id)
        sizes = {s.rfilename: s.size or 0 for s in details.siblings or [] if _wanted(s.rfilename)}
        total = sum(sizes.values())
        _check_room(repo_id, total)
        done = 0
        folder: Path | None = None
        for name, size in sorted(sizes.items(), key=lambda item: item[1]):
            before = done
            path = _download(
                repo_id, name, details.sha or revision, REQUEST_SECONDS, _reporter(on_progress, before, total)
            )
            folder = path.parent if name == CONFIG_NAME else folder
            done = before + size
            if on_progress is not None:
                on_progress(done, total)
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

    return HfApi(endpoint=endpoint()).model_info(
        repo_id, revision=revision or None, timeout=seconds, files_metadata=with_sizes
    )


def _download(repo_id: str, name: str, revision: str, seconds: float, reporter: type[Any] | None = None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            repo_id,
            name,
            revision=revision or None,
            cache_dir=cache_dir(),
            endpoint=endpoint(),
            etag_timeout=seconds,
            tqdm_class=reporter or _silent(),
        )
    )


def _silent() -> type[Any]:
    return _reporter(None, 0, 0)


def _reporter(on_progress: Progress | None, before: int, total: int) -> type[Any]:
    """A progress bar class that draws nothing and passes the bytes on; the terminal belongs to the front end."""
    from huggingface_hub import utils

    base: Any = vars(utils)["tqdm"]

    def start(self: Any, *args: Any, **options: Any) -> None:
        base.__init__(self, *args, **options | {"disable": True})
        self.received_bytes = int(options.get("initial") or 0)

    def update(self: Any, n: float | None = 1) -> None:
        self.received_bytes += int(n or 0)
        if on_progress is not None:
            on_progress(min(before + self.received_bytes, total), total)

    return type("Reporter", (base,), {"__init__": start, "update": update})


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
    raise unreachable(repo_id, f"no answer from {endpoint()} within {seconds:.0f} s")
