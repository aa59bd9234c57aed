"""`python -m engine.remote tail RUN_DIR [--detach]`; follow, pause, checkpoint, stop, resume or merge RUN_DIR.

Owns these words. Whoever holds a mirror calls them in a process of its own (`engine.jobs.elsewhere`); the host's answer
and an error are one line of JSON on standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engine.errors import EngineError, ExitCode
from engine.remote import passing, tail


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    word, run_dir = arguments[0], Path(arguments[1]).resolve()
    try:
        if word == "tail":
            return tail.work(run_dir, detach="--detach" in arguments[2:])
        if word == "follow":
            tail.start(run_dir)
        else:
            sys.stdout.write(json.dumps(passing.pass_on(run_dir, word)) + "\n")
    except EngineError as error:
        sys.stdout.write(json.dumps({"error": error.as_dict()}) + "\n")
        return int(error.exit_code)
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
