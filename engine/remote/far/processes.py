"""Commands on the host: to their end, once however often they are asked for, or left running.

Owns their start and what is known of them afterwards. Must not know what they do.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from .common import Locked, write_whole


def call(order: dict[str, Any]) -> dict[str, Any]:
    """Run a command to its end. With `once`, a folder, it runs once however often it is asked for: an answer that was
    lost on the way is given again."""
    if not order.get("once"):
        return _called(order)
    folder = Path(order["once"])
    with Locked(folder / "lock"):
        answer = folder / "answer.json"
        if not answer.is_file():
            write_whole(answer, json.dumps(_called(order)))
        found: dict[str, Any] = json.loads(answer.read_text())
        return found


def _called(order: dict[str, Any]) -> dict[str, Any]:
    result = subprocess.run(
        order["words"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, **order["environment"]},
        cwd=order.get("folder") or None,
    )
    return {"code": result.returncode, "out": result.stdout, "err": result.stderr[-4000:]}


def spawn(order: dict[str, Any]) -> dict[str, Any]:
    """Start a command that outlives the connection, its output in a file; returns its process id and start."""
    with open(order["log"], "ab") as log:
        process = subprocess.Popen(
            order["words"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **order["environment"]},
            cwd=order.get("folder") or None,
        )
    return {"pid": process.pid, "start": _start_of(process.pid)}


def alive(order: dict[str, Any]) -> dict[str, Any]:
    """Is that very process still there?"""
    return {"alive": _start_of(order["pid"]) == order["start"] != ""}


def end(order: dict[str, Any]) -> dict[str, Any]:
    """A signal to that process and all it started; nothing when it is gone or its id belongs to another."""
    if alive(order)["alive"]:
        os.killpg(order["pid"], order["signal"])
    return {}


def _start_of(pid: int) -> str:
    """Something only this process has under that id; "" when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        line = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        words = line.stdout.split()
        return "" if not words or words[0].startswith("Z") else " ".join(words[1:])
    fields = text[text.rindex(")") + 2 :].split()
    return "" if fields[0] in "ZX" else fields[19]
