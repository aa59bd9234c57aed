"""From what the user typed to a model that was found: "demo", a folder, a hub id, or the name of a known model.

Owns the order of the guesses and the message when all fail. Must not know configs in detail.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from engine import resources
from engine.errors import EngineError
from engine.models import hub, hub_settings
from engine.models.config import CONFIG_NAME, read_json_object
from engine.models.folder import check_config, check_files, check_folder, has_safetensors
from engine.models.headers import read_headers
from engine.models.hub_errors import not_cached
from engine.models.model_profiles import ModelProfile, find_model_profile, near_model_names
from engine.models.source import ModelKind, ModelRef

__all__ = ["ModelKind", "ModelRef", "download_weights", "folder_word", "require_weights", "resolve_model"]

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*$")


def resolve_model(source: str, *, revision: str = "", offline: bool = False) -> ModelRef:
    """Find the model; at most config, tokenizer and index are downloaded. Raises EngineError `model.*` or `hub.*`.

    A known hub id that is not cached resolves to its profile without asking the network.
    """
    text = source.strip()
    if not text or "\0" in text or len(text) > 4096:
        raise EngineError(
            "model.no_source",
            "No model was named.",
            next_step="Give a folder, a hub id such as Qwen/Qwen3-0.6B, or demo.",
        )
    if _is_embedded(text):
        return _demo()
    path = Path(os.path.expanduser(text))
    if _looks_like_path(text) or _is_dir(path):
        return _local(text, path)
    profile = find_model_profile(text)
    if profile is not None and not revision:
        return _known(text, profile)
    if _HUB_ID.match(text):
        return _hub(text, text, revision, offline=offline or hub_settings.offline())
    if profile is not None:
        return _hub(text, profile.hub_id, revision, offline=offline or hub_settings.offline())
    raise _unknown_name(text, path)


def folder_word(folder: Path) -> str:
    """`folder` as a word that `resolve_model` takes for it: "./demo", where "demo" alone means the embedded model."""
    return f"./{folder}" if _is_embedded(str(folder)) else str(folder)


def _is_embedded(text: str) -> bool:
    return text.lower() == "demo"


def require_weights(ref: ModelRef) -> Path:
    """The local folder with complete weights. Raises EngineError when they are still to be downloaded, or damaged."""
    if ref.path is None or not ref.has_weights:
        raise EngineError(
            "model.no_weights",
            f"The weights of {ref.name} are not here.",
            cause="Only its shape is known." if ref.path is None else f"{ref.path} has no safetensors files.",
            next_step="Download them first." if ref.repo_id else "Put the safetensors files beside config.json.",
        )
    read_headers(ref.path)
    return ref.path


def download_weights(ref: ModelRef, on_progress: hub.Progress | None = None) -> ModelRef:
    """Fetch a hub model's weights (safetensors, JSON and tokenizer only) and return the complete reference.

    `on_progress(done_bytes, total_bytes)`. Does nothing when they are there. Raises EngineError `hub.*`, `model.*`.
    """
    if not ref.needs_download:
        require_weights(ref)
        return ref
    if hub_settings.offline():
        raise not_cached(ref.repo_id)
    folder = hub.fetch_weights(ref.repo_id, ref.commit or ref.revision, on_progress)
    tree = check_folder(folder)
    read_headers(folder)
    return ModelRef(
        ModelKind.HUB,
        ref.name,
        folder,
        tree,
        ref.repo_id,
        ref.revision,
        folder.name,
        has_weights=True,
        notes=ref.notes,
    )


def _demo() -> ModelRef:
    folder = resources.demo_model_dir()
    tree = check_folder(folder)
    return ModelRef(ModelKind.DEMO, "demo", folder, tree, has_weights=_weights_in(folder))


def _looks_like_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~", ".\\")) or text in (".", "..") or text.count("/") > 1 or "\\" in text


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _local(name: str, path: Path) -> ModelRef:
    try:
        if path.is_file():
            raise _a_file(path)
        if not path.is_dir():
            raise EngineError(
                "model.not_found",
                f"There is no folder {path}.",
                next_step="Check the path; a hub id has exactly one slash and does not start with one.",
            )
    except OSError as error:
        raise EngineError(
            "model.not_found",
            f"Cannot open {str(path)[:200]}.",
            cause=error.strerror or "",
            next_step="Check the path.",
        ) from error
    tree = check_folder(path)
    return ModelRef(ModelKind.FOLDER, name, path, tree, has_weights=_weights_in(path), notes=_own_code_notes(tree))


def _a_file(path: Path) -> EngineError:
    if path.suffix.lower() == ".gguf":
        return EngineError(
            "model.gguf",
            f"{path} is a GGUF file, which is for running, not for training.",
            cause="GGUF stores quantised weights without a way back.",
            next_step="Use the original Hugging Face folder or hub id it was made from.",
        )
    return EngineError(
        "model.is_file",
        f"{path} is a file; a model is a folder.",
        next_step=f"Give its folder: {path.parent}.",
    )


def _weights_in(folder: Path) -> bool:
    """Whether there are safetensors files; whether they are complete is for `read_headers`."""
    try:
        return has_safetensors(entry.name for entry in folder.iterdir())
    except OSError:
        return False


def _own_code_notes(tree: dict[str, Any]) -> tuple[str, ...]:
    if not tree.get("auto_map"):
        return ()
    return ("The model ships its own Python files; they are not used, the built-in implementation is.",)


def _known(name: str, profile: ModelProfile) -> ModelRef:
    """A known model: its cached files when they are there, else its shape."""
    repo_id = name if "/" in name else profile.hub_id
    cached = hub.cached_snapshot(repo_id, "")
    if cached is not None:
        return _from_hub_files(name, repo_id, "", cached)
    gated = (f"{repo_id} is gated: accept its licence on the hub before downloading.",) if profile.gated else ()
    return ModelRef(ModelKind.PROFILE, name, None, profile.config, repo_id, notes=gated)


def _hub(name: str, repo_id: str, revision: str, *, offline: bool) -> ModelRef:
    if offline:
        cached = hub.cached_snapshot(repo_id, revision)
        if cached is None:
            raise not_cached(repo_id)
        return _from_hub_files(name, repo_id, revision, cached)
    try:
        files = hub.fetch_small_files(repo_id, revision)
    except EngineError as error:
        cached = hub.cached_snapshot(repo_id, revision) if error.code in ("hub.unreachable", "hub.busy") else None
        if cached is None:
            raise
        note = f"The hub could not be reached ({error.cause or error.what}); the cached copy is used."
        return _from_hub_files(name, repo_id, revision, cached, (note,))
    late = f"The tokenizer is not here yet ({', '.join(files.missing)}); it is fetched with the weights."
    return _from_hub_files(name, repo_id, revision, files, (late,) if files.missing else ())


def _from_hub_files(
    name: str, repo_id: str, revision: str, files: hub.HubFiles, notes: tuple[str, ...] = ()
) -> ModelRef:
    check_files(files.names, repo_id)
    tree = read_json_object(files.folder / CONFIG_NAME, code="model.config_damaged", what="a model config")
    check_config(tree, repo_id)
    return ModelRef(
        ModelKind.HUB,
        name,
        files.folder,
        tree,
        repo_id,
        revision,
        files.commit,
        has_weights=_complete(files.folder),
        published_parameters=files.parameters,
        notes=(*notes, *_own_code_notes(tree)),
    )


def _complete(folder: Path) -> bool:
    """A snapshot may hold some shards only; it counts when every header can be read."""
    if not _weights_in(folder):
        return False
    try:
        read_headers(folder)
    except EngineError:
        return False
    return True


def _unknown_name(text: str, path: Path) -> EngineError:
    if path.suffix and path.is_file():
        return _a_file(path)
    near = near_model_names(text)
    suggestion = f"Did you mean {' or '.join(near)}?" if near else "Give a folder, or a hub id such as Qwen/Qwen3-0.6B."
    return EngineError(
        "model.not_found",
        f"'{text[:120]}' is neither a folder nor a known model.",
        cause="A hub id looks like owner/name; a folder must exist.",
        next_step=suggestion,
    )
