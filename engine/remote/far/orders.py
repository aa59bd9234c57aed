"""One order from the other side, read from the first line of standard input as JSON and answered behind a mark.

Owns the list of orders and how a refusal is told. A login shell may have printed before, therefore the mark.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from .common import Refused
from .files import have, listing, read, receive, send, tree, write
from .following import tail
from .places import environment, lacks, look, programs, wheel
from .processes import call

MARK = b"\x1escaler-wizard\n"

ANSWERED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "look": look, "have": have, "receive": receive, "tree": tree, "write": write, "environment": environment,
    "wheel": wheel, "lacks": lacks, "call": call, "listing": listing, "read": read, "programs": programs,
}  # fmt: skip
STREAMED: dict[str, Callable[[dict[str, Any]], None]] = {"send": send, "tail": tail}


def main(name: str) -> int:
    """Carry out one order."""
    order = json.loads(sys.stdin.buffer.readline())
    sys.stdout.buffer.write(MARK)
    sys.stdout.buffer.flush()
    try:
        if name in STREAMED:
            STREAMED[name](order)
            return 0
        answer = {"answer": ANSWERED[name](order)}
    except Refused as error:
        answer = {"error": error.told}
    except BrokenPipeError:
        return 1
    except OSError as error:
        full = error.errno in (28, 122)
        code = "remote.disk_full" if full else "remote.disk"
        what = "The host's disk is full." if full else "The host's disk cannot be used."
        step = "Free some space there, or name a folder on a larger disk with --home."
        answer = {"error": {"code": code, "what": what, "cause": str(error), "next_step": step}}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()
    return 0
