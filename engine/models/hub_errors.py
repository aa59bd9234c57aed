"""Failures of the hub as errors people can act on: gated, missing, offline, too busy, unreachable.

Owns the translation. Must not know what was being fetched, or why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from engine.errors import EngineError
from engine.models.hub_settings import cache_dir, endpoint
from engine.models.model_profiles import near_model_names

T = TypeVar("T")


def translated(repo_id: str, revision: str, work: Callable[[], T]) -> T:
    """Run `work`; every failure of the hub library becomes an EngineError `hub.*`."""
    from huggingface_hub import errors

    try:
        return work()
    except errors.GatedRepoError as error:
        raise _gated(repo_id) from error
    except errors.RevisionNotFoundError as error:
        raise EngineError(
            "hub.no_revision",
            f"{repo_id} has no revision '{revision}'.",
            next_step=f"Look up its branches and tags at {endpoint()}/{repo_id}/tree/main.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise missing_model(repo_id) from error
    except errors.HFValidationError as error:
        raise missing_model(repo_id, "A hub id looks like owner/name.") from error
    except errors.DisabledRepoError as error:
        raise EngineError("hub.disabled", f"{repo_id} was disabled by the hub.", next_step="Choose another.") from error
    except errors.HfHubHTTPError as error:
        raise _refused(repo_id, error) from error
    except (errors.LocalEntryNotFoundError, errors.FileMetadataError, errors.OfflineModeIsEnabled) as error:
        raise unreachable(repo_id, str(error).splitlines()[0]) from error
    except OSError as error:
        if error.errno is not None and error.filename is not None:
            raise EngineError(
                "hub.cache",
                f"Cannot write the hub cache {cache_dir()}.",
                cause=error.strerror or str(error),
                next_step="Free some space there, or set HF_HOME to a folder you can write to.",
            ) from error
        raise unreachable(repo_id, str(error)) from error
    except Exception as error:
        if not _is_network_error(error):
            raise
        raise unreachable(repo_id, f"{type(error).__name__}: {error}".rstrip(": ")) from error


def _is_network_error(error: Exception) -> bool:
    """Whether it comes from the HTTP library, whichever one the hub library of the day uses."""
    return type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpx2",
        "httpcore",
        "httpcore2",
        "requests",
        "urllib3",
    )


def _refused(repo_id: str, error: Any) -> EngineError:
    """An HTTP error that has no class of its own."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status == 401 and "Invalid credentials" in str(error):
        return EngineError(
            "hub.bad_token",
            f"The hub does not accept your access token (while asking for {repo_id}).",
            cause="It may have expired, or HF_TOKEN holds an old one.",
            next_step="Run `hf auth login` with a new token, or unset HF_TOKEN for public models.",
        )
    if status == 403:
        return _gated(repo_id)
    if status in (401, 404):
        return missing_model(repo_id)
    if status == 429:
        return EngineError(
            "hub.busy",
            f"The hub refuses more requests for now (HTTP 429) while asking for {repo_id}.",
            cause="Too many requests came from this address.",
            next_step="Wait a few minutes, or log in with `hf auth login`, which has a higher limit.",
        )
    return unreachable(repo_id, f"{endpoint()} answered HTTP {status}")


def _gated(repo_id: str) -> EngineError:
    return EngineError(
        "hub.gated",
        f"{repo_id} is gated: its licence must be accepted first.",
        cause="The hub gives its files only to accounts that accepted the terms.",
        next_step=f"Accept the terms at https://huggingface.co/{repo_id}, then run `hf auth login` (or set HF_TOKEN).",
    )


def missing_model(repo_id: str, detail: str = "") -> EngineError:
    """The error for a repository that the hub does not know; suggests known names that look like it."""
    near = [name for name in near_model_names(repo_id) if name != repo_id]
    suggestion = (
        f"Did you mean {' or '.join(near)}?" if near else "Check the spelling at https://huggingface.co/models."
    )
    return EngineError(
        "hub.not_found",
        f"The hub has no model '{repo_id}', or it is private.",
        cause=detail,
        next_step=f"{suggestion} For a private model run `hf auth login`.",
    )


def unreachable(repo_id: str, cause: str) -> EngineError:
    """The error for a hub that does not answer, or answers nonsense."""
    return EngineError(
        "hub.unreachable",
        f"Cannot get {repo_id} from the hub.",
        cause=cause[:300],
        next_step="Check the network and try again, or give a local folder; known models can be planned offline.",
    )


def not_cached(repo_id: str) -> EngineError:
    """The error for a repository that is wanted offline and is not in the cache."""
    near = [name for name in near_model_names(repo_id) if name.lower() != repo_id.lower()]
    meant = f"Did you mean {near[0]}? Otherwise go" if near else "Go"
    return EngineError(
        "hub.offline",
        f"{repo_id} is not in the local cache and the hub is switched off (offline).",
        cause=f"The cache is {cache_dir()}.",
        next_step=f"{meant} online once (unset HF_HUB_OFFLINE), or download it elsewhere with `hf download {repo_id}`.",
    )
