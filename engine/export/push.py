"""`python -m engine.export.push FOLDER OWNER/NAME [--private]`: a model folder on the hub, because somebody asked.

Owns the upload and the token. The token comes from HF_TOKEN or from the system's keyring and is in
nothing that is written, printed or raised. Must not know how the folder was made. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from engine import helper_process
from engine.errors import EngineError, ExitCode
from engine.export.finished import RECORD
from engine.models.hub_errors import translated
from engine.models.hub_settings import endpoint, offline

VARIABLE = "HF_TOKEN"
SERVICE, USER = "scaler-wizard", "huggingface"
"""The keyring's entry: `keyring set scaler-wizard huggingface`."""
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HIDDEN = "(the token)"
_OF_GETTING = ("hub.unreachable", "hub.not_found", "hub.cache")
"""Refusals whose words are about a download."""


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload `folder`, make the repository where it is missing; returns its address. Raises EngineError `push.*`,
    `hub.*`, none of which holds the token."""
    check_push(repo_id)
    token = find_token()
    try:
        return translated(repo_id, "", lambda: _upload(folder, repo_id, token, private=private))
    except _Denied as denied:
        raise EngineError(
            "push.denied",
            f"The hub does not let this token write to {repo_id}.",
            cause=_scrubbed(str(denied), token)[:300],
            next_step=f"Use a token with write access to {repo_id.partition('/')[0]}: {endpoint()}/settings/tokens",
        ) from None
    except EngineError as error:
        if error.code in _OF_GETTING:
            raise _failed(folder, repo_id, _scrubbed(error.cause or error.what, token)) from None
        raise _without(error, token) from None
    except Exception as error:
        raise _failed(folder, repo_id, _scrubbed(f"{type(error).__name__}: {error}", token)) from None


def _failed(folder: Path, repo_id: str, cause: str) -> EngineError:
    return EngineError(
        "push.failed",
        f"{folder} is written, but it could not be uploaded to {repo_id}.",
        cause=cause[:300],
        next_step="Run the same command again: only the upload is repeated, and what the hub has is not sent twice.",
        exit_code=ExitCode.RUN_FAILED,
    )


def check_push(repo_id: str) -> None:
    """What can be known before anything is written. Raises EngineError `push.name`, `push.offline`, `push.no_token`."""
    check_repo_id(repo_id)
    if offline():
        raise EngineError(
            "push.offline",
            f"Nothing is pushed to {repo_id}: the environment says to stay offline.",
            next_step="Unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, then push again.",
        )
    find_token()


class _Denied(Exception):
    """The hub's words when it does not let the token write."""


def check_repo_id(repo_id: str) -> None:
    """Raises EngineError `push.name`."""
    if not _REPO.fullmatch(repo_id) or len(repo_id) > 96:
        raise EngineError(
            "push.name",
            f"'{repo_id}' is no name of a repository.",
            next_step="Give it as OWNER/NAME, for example --push me/my-model",
        )


def find_token() -> str:
    """From the environment, else from the keyring. Raises EngineError `push.no_token`."""
    found = os.environ.get(VARIABLE, "").strip() or _from_keyring()
    if not found:
        raise EngineError(
            "push.no_token",
            "There is no token for the hub.",
            cause=f"{VARIABLE} is not set, and the system's keyring has none (or keyring is not installed).",
            next_step=f"Set {VARIABLE}, or: pip install 'scaler-wizard[hub]' && keyring set {SERVICE} {USER}",
        )
    return found


def _from_keyring() -> str:
    try:
        import keyring
    except ImportError:
        return ""
    try:
        return keyring.get_password(SERVICE, USER) or ""
    except Exception:  # a locked or missing keyring raises what its system does
        return ""


def _upload(folder: Path, repo_id: str, token: str, *, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=endpoint(), token=token)
    try:
        api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type="model",
            commit_message="Upload with scaler-wizard",
            ignore_patterns=[RECORD],
        )
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise _Denied(str(error)) from None
        raise
    return f"{endpoint()}/{repo_id}"


def _scrubbed(text: str, token: str) -> str:
    return " ".join(text.replace(token, _HIDDEN).split())


def _without(error: EngineError, token: str) -> EngineError:
    return EngineError(
        error.code,
        _scrubbed(error.what, token),
        cause=_scrubbed(error.cause, token),
        next_step=_scrubbed(error.next_step, token),
        exit_code=error.exit_code,
    )


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine.export.push", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("repo_id")
    parser.add_argument("--private", action="store_true")
    options = parser.parse_args(arguments)

    def work() -> None:
        url = push(options.folder, options.repo_id, private=options.private)
        told: dict[str, Any] = {"url": url}
        helper_process.LineOut().write(json.dumps(told).encode() + b"\n")

    os.environ.setdefault("HF_HUB_OFFLINE", "0")  # asking for it is asking for the network
    return helper_process.run(work, _out_of_memory)


def _out_of_memory(cause: str) -> EngineError:
    return EngineError("push.memory", "There is no memory left.", cause=cause, exit_code=ExitCode.DOES_NOT_FIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
