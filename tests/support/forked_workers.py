"""Runs of the real worker, forked from one process that has imported everything already: a test that starts seven of
them pays for the imports once. Each is a process of its own, with the worker's own log, signals and exit.

`python -m tests.support.forked_workers` reads a line of JSON per worker, answers with its process id and, when it has
ended, with its exit code; `ForkedWorkers` is the other side.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.jobs.journal import JournalTail
from tests.train.spawn import worker_environment


class ForkedWorkers:
    """Starts one worker at a time."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server
        self._unwaited: int | None = None

    def start(self, run_dir: Path, preamble: str = "") -> int:
        """The process id of a worker that has begun; `preamble` is Python that runs in it before."""
        if self._unwaited is not None:  # of a test that failed before it waited
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._unwaited, signal.SIGKILL)
            self.wait()
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"run_dir": str(run_dir), "preamble": preamble}) + "\n")
        self._server.stdin.flush()
        self._unwaited = self._answer()
        return self._unwaited

    @staticmethod
    def is_alive(worker: int) -> bool:
        """Whether a worker that was started has not ended; it is waited for at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, 0)
            return True
        return False

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        self._unwaited = None
        return self._answer()

    def kill_when(self, run_dir: Path, wanted: Callable[[Any], bool], preamble: str = "") -> None:
        """Start it, and kill it with -9 as soon as it has written an event that is wanted."""
        tail = JournalTail(run_dir)
        tail.read_new()
        worker, seen = self.start(run_dir, preamble), False
        while not seen and self.is_alive(worker):
            seen = any([wanted(event) for event in tail.read_new()])  # all of them: some count what they see
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL, "it ended by itself before that"

    def run(self, run_dir: Path, preamble: str = "") -> int:
        """To its end."""
        self.start(run_dir, preamble)
        return self.wait()

    def _answer(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


@contextlib.contextmanager
def forked_workers() -> Iterator[ForkedWorkers]:
    """The process that forks, for as long as it is needed."""
    command = [sys.executable, "-m", "tests.support.forked_workers"]
    with subprocess.Popen(
        command, env=worker_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        yield ForkedWorkers(server)
        assert server.stdin is not None
        server.stdin.close()


def main() -> None:
    """Fork as asked, until nobody asks any more."""
    from engine.train.environment import prepare_process

    prepare_process(None)
    import peft  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import engine.train.grown_stage
    import engine.train.job  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_work(order["run_dir"], order["preamble"]))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _work(run_dir: str, preamble: str) -> int:
    from engine.train.worker import main as work

    sys.orig_argv[:] = [sys.executable, "-m", "engine.train.worker", run_dir]  # what a worker begins itself again by
    exec(preamble, {})
    try:
        return work([run_dir])
    finally:
        sys.stdout.flush()


if __name__ == "__main__":
    main()
