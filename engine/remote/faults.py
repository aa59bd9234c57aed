"""What ssh says when it cannot connect, in the program's own words: what, cause, next step.

Owns the reading of OpenSSH's messages (sshconnect.c, sshconnect2.c, ssh.c of 8.x to 10.x; they are not translated).
Must not know what the connection was for.
"""

from __future__ import annotations

from engine.errors import EngineError, ExitCode

DROPPED = "remote.dropped"
UNREACHABLE = "remote.unreachable"
PASSING = (DROPPED, UNREACHABLE)
"""Codes of failures that may be over in a moment."""

_NOISE = (
    "debug1:",
    "Warning: Permanently added",
    "mux_client",
    "ControlSocket",
    "** WARNING",
    "** This session",
    "** The",
)
_UNREACHABLE = (
    "Connection refused",
    "timed out",
    "Connection timed out",
    "No route to host",
    "Network is unreachable",
    "Host is down",
    "Connection reset",
    "Temporary failure in name resolution",
)


def ssh_error(host: str, said: str) -> EngineError:
    """Why ssh ended with 255, from what it wrote."""
    cause = _cause(said)
    if "Could not resolve hostname" in said and "Temporary failure" not in said:
        return EngineError(
            "remote.unknown_host",
            f"There is no host called '{host}'.",
            cause=cause,
            next_step="Write it as user@address, or give it a name in ~/.ssh/config (Host, HostName, User, Port).",
        )
    if "IDENTIFICATION HAS CHANGED" in said:
        return EngineError(
            "remote.host_key_changed",
            f"{host} shows another host key than before, so nothing was sent.",
            cause="It was set up anew, or somebody is between you and it.",
            next_step=f"Ask whoever runs it for its key; if it was set up anew: ssh-keygen -R {_bare(host)}, then "
            f"ssh {host}.",
        )
    if "Host key verification failed" in said or "host key is known for" in said:
        return EngineError(
            "remote.host_key_unknown",
            f"The host key of {host} is not known here, so nothing was sent.",
            cause=cause,
            next_step=f"Connect once by hand and compare the fingerprint: ssh {host}",
        )
    if "Permission denied" in said or "Too many authentication failures" in said or "no matching" in said.lower():
        return _denied(host, cause)
    if any(words in said for words in _UNREACHABLE):
        return EngineError(
            UNREACHABLE,
            f"{host} cannot be reached.",
            cause=cause,
            next_step=f"Is it on, and is the port right? Try: ssh {host}",
        )
    if "configuration" in said.lower() or "config file" in said.lower():
        return EngineError(
            "remote.ssh_config", "ssh does not understand its own configuration.", cause=cause, next_step="Correct it."
        )
    return EngineError(
        DROPPED,
        f"The connection to {host} was lost.",
        cause=cause,
        next_step=f"Try again; if it happens each time, see what ssh says: ssh -v {host}",
        exit_code=ExitCode.RUN_FAILED,
    )


def _denied(host: str, cause: str) -> EngineError:
    return EngineError(
        "remote.denied",
        f"{host} does not let you in.",
        cause=cause,
        next_step=f"Check that this works without a question: ssh {host} true. Add your key there with ssh-copy-id "
        f"{host}, or name the right one in ~/.ssh/config (IdentityFile).",
    )


def _cause(said: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in said.replace("\r", "\n").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(_NOISE)]
    return lines[-1].removeprefix("ssh: ") if lines else "ssh ended without a word."


def _bare(host: str) -> str:
    return host.removeprefix("ssh://").rpartition("@")[2]
