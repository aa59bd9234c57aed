"""Orders to a host: finding a python there, putting our own end of the connection beside it, asking and listening.

Owns the messages between both ends and patience with connections that are lost. Must not know what orders mean
(`engine.remote.far`).
"""

from __future__ import annotations

import hashlib
import io
import shlex
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import EngineError, ExitCode
from engine.remote import ssh
from engine.remote.far.orders import MARK
from engine.remote.faults import PASSING
from engine.remote.ssh import Host, Talk

WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Before a lost connection is tried again, each time longer."""
OLDEST_PYTHON = (3, 11)

_FAR_FOLDER = Path(__file__).parent / "far"
_PYTHONS = "python3 python3.13 python3.12 python3.11 python3.14 python"
_PLACES = (
    '"$HOME/.local/bin" "$HOME/miniconda3/bin" "$HOME/anaconda3/bin" "$HOME/.venv/bin" '
    "/opt/conda/bin /venv/bin /usr/local/bin"
)
_LEAD = "scaler-wizard-says "


@dataclass(frozen=True, slots=True)
class Far:
    """Our end of the connection on a host, and the python that runs it."""

    host: Host
    python: str
    script: str
    """Its path there."""

    def words(self, order: str) -> str:
        """The shell command that waits for one order."""
        return f"exec {shlex.quote(self.python)} -P {shlex.quote(self.script)} {order}"


class _Reply(msgspec.Struct):
    answer: dict[str, Any] | None = None
    error: dict[str, str] | None = None


@cache
def archive() -> bytes:
    """Our end as one file that a python can run; equal sources, equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        entries = [(f"far/{path.name}", path.read_bytes()) for path in sorted(_FAR_FOLDER.glob("*.py"))]
        entries.append(("__main__.py", b"import sys\nfrom far.orders import main\nsys.exit(main(sys.argv[1]))\n"))
        for name, content in entries:
            packed.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def reach(host: Host, *, python: str = "", may_ask: bool = False) -> Far:
    """Connect, find a python of at least 3.11 (`python` where it is named) and put our end there, once.

    Raises EngineError `remote.*`: no connection, no python, no place to write.
    """
    content = archive()
    script = f"far-{hashlib.sha256(content).hexdigest()[:16]}.pyz"
    found = ssh.ask(host, _probe(python, script), may_ask=may_ask)
    told = dict(_told(found.out.decode(errors="replace")))
    if "cache" not in told:
        cause = (found.err.strip().splitlines() or ["It ended without an answer."])[-1]
        raise EngineError(
            "remote.no_shell",
            f"{host.name} runs no commands for you.",
            cause=cause,
            next_step=f"Try: ssh {host.name} true",
        )
    if "python" not in told:
        raise _no_python(host, python, told)
    place = f"{told['cache']}/{script}"
    if "there" not in told:
        quoted, part = shlex.quote(place), shlex.quote(f"{place}.$$").replace("$$", "'$$'")
        put = f"umask 077; mkdir -p {shlex.quote(told['cache'])} && cat > {part} && mv {part} {quoted}"
        answer = ssh.ask(host, put, [content])
        if answer.code:
            raise EngineError(
                "remote.disk",
                f"Nothing can be written on {host.name}.",
                cause=(answer.err.strip().splitlines() or [""])[-1],
                next_step="Free some space in your home folder there.",
            )
    return Far(host, told["python"], place)


def _probe(python: str, script: str) -> str:
    """Prints, one per line behind a lead: the first python that is new enough, and whether our end is there."""
    test = f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    where = "import sys; print(sys.executable)"
    names = shlex.quote(python) if python else _PYTHONS
    lines = [
        f'PATH="$PATH":$(printf "%s:" {_PLACES})',
        'cache="${XDG_CACHE_HOME:-$HOME/.cache}/scaler-wizard"',
        f'echo "{_LEAD}cache $cache"',
        f'test -s "$cache/{script}" && echo "{_LEAD}there yes"',
        f"for one in {names}; do",
        '  case "$one" in "~/"*) one="$HOME/${one#"~/"}";; esac',
        '  command -v "$one" >/dev/null 2>&1 || continue',
        f'  if "$one" -c {shlex.quote(test)} >/dev/null 2>&1; then',
        f'    echo "{_LEAD}python $("$one" -c {shlex.quote(where)})"; break',
        "  fi",
        f'  echo "{_LEAD}older $("$one" -V 2>&1 | head -n 1)"',
        "done",
        "exit 0",
    ]
    return "\n".join(lines)


def _told(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        _, lead, rest = line.partition(_LEAD)
        if lead:
            name, _, value = rest.partition(" ")
            yield name, value.strip()


def _no_python(host: Host, named: str, told: dict[str, str]) -> EngineError:
    older = told.get("older", "")
    missing = "It is not there." if named else "None is in PATH, in ~/.local/bin nor in conda's usual places."
    return EngineError(
        "remote.no_python",
        f"{named} on {host.name} is no Python 3.11 or newer." if named else f"{host.name} has no Python 3.11 or newer.",
        cause=f"What was found: {older}." if older else missing,
        next_step="Install one there (apt install python3.11 python3-venv, or: curl -LsSf "
        "https://astral.sh/uv/install.sh | sh; uv python install 3.12), or name it with --python.",
    )


# ── orders ────────────────────────────────────────────────────────────────────────────────────────────────────────
def order(far: Far, name: str, /, data: Iterable[bytes] = (), **words: Any) -> dict[str, Any]:
    """The answer to one order, `data` being what follows it. Raises EngineError: the host's own, or `remote.*`."""
    head = msgspec.json.encode(words) + b"\n"
    answer = ssh.ask(far.host, far.words(name), (piece for part in ([head], data) for piece in part))
    _, mark, reply = answer.out.partition(MARK)
    try:
        found = msgspec.json.decode(reply, type=_Reply)
    except msgspec.MsgspecError:
        cause = (answer.err.strip().splitlines() or [f"It ended with code {answer.code}."])[-1]
        code = "remote.dropped" if mark and not reply else "remote.failed"
        raise EngineError(
            code, f"{far.host.name} gave no answer.", cause=cause, next_step="Try again.", exit_code=ExitCode.RUN_FAILED
        ) from None
    if found.error is not None:
        raise told_error(far.host.name, found.error)
    return found.answer or {}


def patiently(work: Callable[[], Any], *, say: Callable[[str], None] = lambda _: None) -> Any:
    """`work`, tried again while the connection is lost; only for what may be done twice. Raises EngineError."""
    for wait in (*WAITS_SECONDS, None):
        try:
            return work()
        except EngineError as error:
            if error.code not in PASSING or wait is None:
                raise
            say(f"{error.what} Trying again in {wait:.0f} s.")
            time.sleep(wait)
    raise AssertionError("not reached")


@contextmanager
def listening(far: Far, name: str, /, **words: Any) -> Iterator[Talk]:
    """An order whose answer is a stream; `talk.out` stands behind the mark. Raises EngineError."""
    with ssh.talking(far.host, far.words(name)) as talk:
        with suppress(BrokenPipeError):  # it says why
            talk.send(msgspec.json.encode(words) + b"\n")
        while True:
            line = talk.out.readline()
            if line.endswith(MARK):
                break
            if not line:
                talk.process.wait()
                raise talk.lost()
        yield talk


def told_error(host: str, told: dict[str, str]) -> EngineError:
    """A refusal of the host's as our own."""
    full = told.get("code") == "remote.disk_full"
    return EngineError(
        told.get("code", "remote.failed"),
        f"{host}: {told.get('what', '')}",
        cause=told.get("cause", ""),
        next_step=told.get("next_step", ""),
        exit_code=ExitCode.DOES_NOT_FIT if full else ExitCode.BAD_INPUT,
    )
