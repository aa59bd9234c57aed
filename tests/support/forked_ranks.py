"""Runs of the real worker as several ranks, forked from one process that has imported everything already.

`python -m tests.support.forked_ranks RUN_DIR=WORLD ...` does one attempt at each run, one run after the other; 0 stands
for a worker alone, RUN_DIR=WORLD! for ranks that are all killed (-9) when the first checkpoint is there, and
RUN_DIR=WORLD/PIECES for ranks that start after memory ran out (2!/2: both). Ranks that are to begin again do so, as
often as they say. What torchrun and the runner would set is set here, so that a test pays for the imports once.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from engine.jobs.crew import PIECES
from engine.train.environment import prepare_process


def main(arguments: list[str]) -> int:
    """The worst exit code."""
    prepare_process(None)
    import peft  # noqa: F401
    import torch

    torch.set_num_threads(1)
    worst = 0
    for argument in arguments:
        run_dir, _, world = argument.rpartition("=")
        world, _, pieces = world.partition("/")
        os.environ[PIECES] = pieces or "1"
        code = attempt(Path(run_dir), int(world.rstrip("!")), killed="!" in world)
        while code and _begins_again(Path(run_dir), int(world.rstrip("!"))):
            code = attempt(Path(run_dir), int(world.rstrip("!")), killed=False)
        worst = max(worst, code)
    return worst


def attempt(run_dir: Path, world: int, *, killed: bool) -> int:
    """Fork the ranks of one attempt and wait for them; the worst exit code, 0 where they were meant to be killed."""
    from engine.jobs import checkpoints, ranks

    ranks.clear_signs(run_dir)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(max(world, 1)):
        child = os.fork()
        if child == 0:
            if world:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
                meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in (place | meeting).items()})
            os._exit(_work(run_dir))
        children.append(child)
    if killed:
        while not checkpoints.newest_step(run_dir) and os.waitpid(children[0], os.WNOHANG)[0] == 0:
            time.sleep(0.005)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return 0
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def _begins_again(run_dir: Path, world: int) -> bool:
    """As the runner sees it."""
    from engine.jobs import ranks

    trouble = ranks.failed(ranks.read_signs(run_dir, world))
    return trouble is not None and trouble.kind == "again"


def _work(run_dir: Path) -> int:
    from engine.train.worker import main as work

    sys.orig_argv = [sys.executable, "-m", "engine.train.worker", str(run_dir)]  # how a worker alone begins again
    return work([str(run_dir)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
