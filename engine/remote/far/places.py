"""The host itself, and what a job needs there before it can start: a folder, the program, an environment.

Owns the folders `wheels/`, `programs/` and `environments/` below the root. Must not know jobs.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from .common import Locked, Refused, blob_path


def look(order: dict[str, Any]) -> dict[str, Any]:
    """What this host is, and the folder that holds everything: `home` of the order, else the program's own."""
    home = Path(order.get("home") or _data_home()).expanduser().absolute()
    home.mkdir(parents=True, exist_ok=True)
    probe = home / f".write-test-{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()
    return {
        "home": str(home),
        "free_bytes": shutil.disk_usage(home).free,
        "host": socket.gethostname(),
        "python_version": ".".join(map(str, sys.version_info[:3])),
        "platform": f"{sys.platform} {os.uname().machine}",
    }


def _data_home() -> str:
    override = os.environ.get("SCALER_WIZARD_HOME", "")
    if override:
        return override
    if sys.platform == "darwin" and not os.environ.get("XDG_DATA_HOME"):
        return "~/Library/Application Support/scaler-wizard"
    base = os.environ.get("XDG_DATA_HOME", "")
    return f"{base}/scaler-wizard" if base.startswith("/") else "~/.local/share/scaler-wizard"


def environment(order: dict[str, Any]) -> dict[str, Any]:
    """A virtual environment with what the wheel needs, made once per `key`."""
    root = Path(order["root"])
    place = root / "environments" / order["key"]
    python = place / "bin" / "python"
    with Locked(place.with_name(f".{place.name}.lock")):
        if (place / "ready").is_file():
            return {"python": str(python), "made": False}
        shutil.rmtree(place, ignore_errors=True)
        _run(
            [sys.executable, "-m", "venv", str(place)],
            "remote.no_venv",
            "No virtual environment can be made on the host.",
        )
        requirements = [order["wheel"] + (f"[{','.join(order['extras'])}]" if order["extras"] else "")]
        constraints = place / "constraints.txt"
        constraints.write_text("".join(line + "\n" for line in order["constraints"]))
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(constraints)]
        _run([*pip, *requirements], "remote.install", "The program's packages cannot be installed on the host.")
        (place / "ready").write_bytes(b"")
    return {"python": str(python), "made": True}


def _run(words: list[str], code: str, what: str) -> None:
    result = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("ERROR", "error"))] or lines
        next_step = "Look at its network and disk, or name a python that has the packages with --python."
        if "ensurepip" in result.stdout + result.stderr:
            next_step = (
                "On Debian or Ubuntu: apt install python3-venv; or name a python that has the packages with --python."
            )
        raise Refused(code, what, " ".join(errors[:2])[:400], next_step)


def wheel(order: dict[str, Any]) -> dict[str, Any]:
    """The wheel under its own name, and unpacked."""
    root = Path(order["root"])
    place = root / "wheels" / order["sha"][:16] / order["name"]
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_file():
        staging = place.with_name(f".{place.name}.{os.getpid()}")
        shutil.copyfile(blob_path(root, order["sha"]), staging)
        staging.replace(place)
    unpacked = root / "programs" / order["sha"][:16]
    if not unpacked.is_dir():
        staging = unpacked.with_name(f".{unpacked.name}.{os.getpid()}")
        with zipfile.ZipFile(place) as archive:
            archive.extractall(staging)
        try:
            staging.rename(unpacked)
        except OSError:
            shutil.rmtree(staging)
    return {"wheel": str(place), "unpacked": str(unpacked)}


def programs(order: dict[str, Any]) -> dict[str, Any]:
    """The newest environment that is ready, and the newest program unpacked; "" for none."""
    root = Path(order["root"])
    ready = sorted((root / "environments").glob("*/ready"), key=lambda path: path.stat().st_mtime)
    unpacked = sorted((root / "programs").glob("[!.]*"), key=lambda path: path.stat().st_mtime)
    return {
        "environment": str(ready[-1].parent / "bin" / "python") if ready else "",
        "unpacked": str(unpacked[-1]) if unpacked else "",
    }


def lacks(order: dict[str, Any]) -> dict[str, Any]:
    """Which of the packages named are not installed for this python."""
    from importlib import metadata

    missing = []
    for name in order["packages"]:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    return {"missing": missing, "python": sys.executable}
