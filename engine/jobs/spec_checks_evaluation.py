"""What benchmarks, suites and limits of retention must say together.

Owns these checks; each names the key and the way out. Must not know what a group of benchmarks holds: names inside of
one are checked when the benchmarks are loaded, before training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.jobs.benchmark_files import is_file
from engine.jobs.spec_checks_stream import BASE_TEXT
from engine.jobs.spec_conflict import conflict
from engine.jobs.spec_section import Task

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

DEMO = "demo"
DEMO_SKILLS = ("demo_arithmetic", "demo_copy", "demo_facts", "demo_patterns", "demo_recall")
"""Tasks that "demo" is a group of."""


def check_evaluation(spec: JobSpec) -> None:
    """Of the whole job. Raises EngineError `spec.conflict`."""
    section = spec.evaluation
    for name in ("tasks_every_steps", "tasks_limit"):
        if getattr(section, name) and not section.tasks:
            raise conflict(
                f"evaluation.{name} is about benchmarks, but evaluation.tasks names none.",
                f'Set evaluation.tasks, for example ["demo"], or leave evaluation.{name} out.',
                key=f"evaluation.{name}",
            )
    repeated = next((task for number, task in enumerate(section.tasks) if task in section.tasks[:number]), None)
    if repeated is not None:
        raise conflict(
            f'evaluation.tasks names "{repeated}" twice.', "Name every benchmark once.", key="evaluation.tasks"
        )
    _check_retention(spec)


def _check_retention(spec: JobSpec) -> None:
    seen: dict[str, int] = {}
    for number, limit in enumerate(spec.retention, 1):
        where = f"retention[{number}]"
        if not spec.needs_data and spec.task is not Task.MIX:
            raise conflict(
                f'{where} limits what training may lose, but task = "{spec.task.value}" trains nothing.',
                "Leave [[retention]] out; what growth changes is in its proof.",
                key=where,
            )
        if limit.on == BASE_TEXT and not spec.data.base_text:
            raise conflict(
                f'{where}.on = "{BASE_TEXT}" needs data.base_text, which is empty.',
                'Set data.base_text = "general" or name a file.',
                key=f"{where}.on",
            )
        if not may_be_measured(spec, limit.on):
            raise conflict(
                f'{where}.on = "{limit.on}" is nothing that this job measures.',
                f"It may be one of: {', '.join(_measured(spec))}.",
                key=f"{where}.on",
            )
        if limit.on in seen:
            raise conflict(
                f'{where}.on = "{limit.on}" has a limit in retention[{seen[limit.on]}] already.',
                "Leave one of them out.",
                key=f"{where}.on",
            )
        seen[limit.on] = number


def may_be_measured(spec: JobSpec, name: str) -> bool:
    """Whether the job measures something of this name, as far as the spec alone can tell."""
    tasks = spec.evaluation.tasks
    if name in _measured(spec) or (DEMO in tasks and name in DEMO_SKILLS):
        return True
    return any(task != DEMO for task in tasks)  # a group of tasks, or a file that names its own


def _measured(spec: JobSpec) -> tuple[str, ...]:
    base = (BASE_TEXT,) if spec.data.base_text else ()
    suites = [suite.name for suite in spec.suites] + [source.name for source in spec.sources]
    tasks = (one for task in spec.evaluation.tasks for one in ((task, *DEMO_SKILLS) if task == DEMO else (task,)))
    return tuple(dict.fromkeys((*suites, *(task for task in tasks if not is_file(task)), *base)))
