"""The machines of a run on several: looked at before anything starts, so that one that cannot take part is named.

Owns the conditions the launchers rely on (`engine.jobs.crew`): ssh without a question, the same program at the same
place, one folder of runs for all. Must not know launchers.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from engine import __version__
from engine.errors import EngineError
from engine.jobs.crew import Host, is_here
from engine.jobs.launch import child_environment
from engine.paths import ensure_writable, runs_dir
from engine.remote.farside import Far, order, reach
from engine.remote.ssh import parse_host

_PROGRAM = "import engine, importlib.util as u; assert u.find_spec('torch'), 'no torch'; print(engine.__version__)"


def check_hosts(hosts: Sequence[Host]) -> None:
    """Raises EngineError `hosts.*` or `remote.*` that names the first machine which cannot take part, and why."""
    folder = ensure_writable(runs_dir())
    sign = folder / f".seen-{secrets.token_hex(8)}"
    sign.write_bytes(b"")
    try:
        for host in hosts:
            if not is_here(host):
                _check(host.name, sign)
    finally:
        sign.unlink(missing_ok=True)


def _check(name: str, sign: Path) -> None:
    far = reach(parse_host(name), python=sys.executable)
    _check_program(far, name)
    seen = order(far, "call", words=["test", "-f", str(sign)], environment={})
    if seen["code"]:
        raise EngineError(
            "hosts.not_shared",
            f"{name} does not see the folder of runs, {sign.parent}.",
            cause="The machines of one run work in one folder: checkpoints and signs of life are there.",
            next_step="Put it on a file system that all of them mount (SCALER_WIZARD_HOME); for one machine elsewhere "
            "use scaler-wizard remote.",
        )


def _check_program(far: Far, name: str) -> None:
    paths = child_environment().get("PYTHONPATH", "")
    words = [sys.executable, "-P", "-c", _PROGRAM]
    found = order(far, "call", words=words, environment={"PYTHONPATH": paths} if paths else {})
    version = found["out"].strip()
    if found["code"] or version != __version__:
        last = (found["err"].strip().splitlines() or [f"It has version {version}; this machine has {__version__}."])[-1]
        raise EngineError(
            "hosts.no_program",
            f"{name} has not the same program at the same place, {sys.executable}.",
            cause=last,
            next_step="Install the same version there in the same folder, or share that folder too.",
        )
