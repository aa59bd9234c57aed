"""Whether the benchmarks of a spec can be asked on this machine: lm-eval installed, tasks known, data here or fetched.

Owns the refusal before a start. Must not import torch or lm-eval: tasks are loaded in a process of its own, which keeps
the data for the run. A spec without benchmarks costs nothing.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

KEY = "evaluation.tasks"
INSTALL = "Install it: pip install 'scaler-wizard[benchmarks]'"


def require_benchmarks(spec: JobSpec) -> None:
    """Names in the spec are absolute. Raises EngineError `benchmarks.*`, `retention.*`, naming the task."""
    if not spec.evaluation.tasks:
        return
    if find_spec("lm_eval") is None:
        raise EngineError(
            "benchmarks.not_installed",
            "Benchmarks need lm-eval, which is not installed.",
            cause=f"evaluation.tasks names {', '.join(spec.evaluation.tasks)}.",
            next_step=f"{INSTALL}. Or leave evaluation.tasks out.",
            key=KEY,
        )
    from engine.surgery.helpers import Failing, run_module

    words = ["--check", *(word for task in spec.evaluation.tasks for word in ("--task", task))]
    for name in _limited_tasks(spec):
        words += ["--on", name]
    failing = Failing("benchmarks.failed", "Try it again, or leave evaluation.tasks out.", own_exit_code=True)
    with tempfile.TemporaryDirectory(prefix="scaler-wizard-tasks-") as folder:
        log = Path(folder) / "tasks.log"
        try:
            run_module("engine.evaluation.compare", words, log, "benchmarks", lambda _: None, failing=failing)
        except EngineError as error:
            limited = [number for number, limit in enumerate(spec.retention, 1) if f'"{limit.on}"' in error.what]
            error.key = f"retention[{limited[0]}].on" if limited and error.code.startswith("retention.") else KEY
            raise


def _limited_tasks(spec: JobSpec) -> list[str]:
    """What [[retention]] limits beside texts."""
    texts = {"base_text", *(suite.name for suite in spec.suites), *(source.name for source in spec.sources)}
    return [limit.on for limit in spec.retention if limit.on not in texts]
