"""How tests start the real worker."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from engine.train.environment import VARIABLES


def worker_command(run_dir: Path, preamble: str = "") -> list[str]:
    """`python -m engine.train.worker RUN_DIR`; `preamble` is Python that runs in the process before it."""
    if not preamble:
        return [sys.executable, "-m", "engine.train.worker", str(run_dir)]
    code = f"import sys\n{preamble}\nfrom engine.train.worker import main\nsys.exit(main(sys.argv[1:]))\n"
    return [sys.executable, "-c", code, str(run_dir)]


def worker_environment() -> dict[str, str]:
    """As the runner gives it, without what the test session set for itself."""
    dropped = {*VARIABLES, "SCALER_WIZARD_ATTEMPT"}
    return {name: value for name, value in os.environ.items() if name not in dropped}
