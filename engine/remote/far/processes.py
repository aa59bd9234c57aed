"""Commands on the host: run to their end, once however often they are asked for.

Owns their start and their answers. Must not know what they do.
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
