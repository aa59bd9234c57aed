"""Benchmarks as lm-eval knows them: found by name, from a yaml file, or the demo model's own, and their data at hand.

Owns finding and loading tasks, and the words where that fails. Must not know models. lm-eval is imported when tasks are
loaded, not before; it is not among what the program always needs.

Data comes from the hub's cache, and from the hub itself unless HF_HUB_OFFLINE is set. A task that runs code a model
wrote is refused: nothing here can contain it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.jobs.benchmark_files import INDEXED, group_of, is_file
from engine.jobs.spec_checks_evaluation import DEMO, DEMO_SKILLS
from engine.resources import demo_dir

__all__ = ["DEMO", "Asked", "load_tasks", "question_texts", "require_lm_eval"]

INSTALL = "Install it: pip install 'scaler-wizard[benchmarks]'"
FEWSHOT_SEED = 1234
"""lm-eval's own, so that its command line asks the same questions."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One name of `evaluation.tasks`, loaded."""

    name: str
    """As journals and reports call it: a file's own task or group, not its path."""
    loaded: Any
    """lm-eval's TaskDict."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The single tasks in it."""
        return tuple(self.loaded["tasks"])

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.loaded.get("groups") or ())


def demo_tasks_dir() -> Path:
    """The folder of the demo model's tasks, in lm-eval's form."""
    return demo_dir() / "tasks"


def require_lm_eval() -> None:
    """Raises EngineError `benchmarks.not_installed`."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise EngineError(
            "benchmarks.not_installed",
            "Benchmarks need lm-eval, which is not installed.",
            cause=str(error),
            next_step=INSTALL,
        ) from error


def load_tasks(names: Sequence[str]) -> tuple[Asked, ...]:
    """Every task of `names` with its data. Raises EngineError `benchmarks.*`, naming the task."""
    if not names:
        return ()
    require_lm_eval()
    known = _manager([name for name in names if not group_of(name)])
    return tuple(_load(_manager_beside(name, group) if (group := group_of(name)) else known, name) for name in names)


def _manager(names: Sequence[str]) -> Any:
    """lm-eval's index of tasks; its own thousands are looked through only where one of them is asked for."""
    from lm_eval.tasks import TaskManager

    own = all(name in (DEMO, *DEMO_SKILLS) or is_file(name) for name in names)
    return TaskManager(include_path=str(demo_tasks_dir()), include_defaults=not own)


def _manager_beside(file: str, group: str) -> Any:
    """The index for a group's file, which names its tasks as the files beside it and below do. Raises EngineError
    `benchmarks.not_loaded` where lm-eval would take another file's group."""
    from lm_eval.tasks import TaskManager

    path = Path(file).resolve()
    if path.suffix != INDEXED:
        raise EngineError(
            "benchmarks.not_loaded",
            f"{file} defines a group, and lm-eval finds the tasks of groups in {INDEXED} files only.",
            next_step=f"Rename it, and the files of its tasks, so that they end in {INDEXED}.",
        )
    folders = [str(demo_tasks_dir()), str(path.parent)]
    manager = TaskManager(include_path=folders, include_defaults=False)
    entry = manager.task_index.get(group)
    if entry is None or entry.yaml_path is None:
        return manager  # loading says what is wrong with the file
    if entry.yaml_path.resolve() != path:
        raise EngineError(
            "benchmarks.not_loaded",
            f"The group '{group}' of {file} is also defined in {entry.yaml_path}.",
            cause="lm-eval knows one group of a name in a folder and what is below it.",
            next_step="Give one of them another name, or move it to another folder.",
        )
    listed = (entry.cfg or {}).get("task")
    members = listed if isinstance(listed, list) else []
    if all(each in manager.task_index for each in members if isinstance(each, str)):
        return manager
    return TaskManager(include_path=folders, include_defaults=True)


def _load(manager: Any, name: str) -> Asked:
    if is_file(name) and not Path(name).is_file():
        raise EngineError("benchmarks.no_file", f"There is no file {name}.", next_step="Check evaluation.tasks.")
    if not is_file(name) and name not in manager.all_tasks:
        near = get_close_matches(name, manager.all_tasks, n=3)
        raise EngineError(
            "benchmarks.unknown_task",
            f"lm-eval has no task '{name}'.",
            next_step=(f"Did you mean {', '.join(near)}? " if near else "") + "lm-eval ls tasks shows all of them.",
        )
    try:
        loaded = manager.load([group_of(name) or name])
    except Exception as error:  # datasets, yaml, a task's own functions: each fails in its own way
        raise _not_loaded(name, error) from error
    if not loaded["tasks"]:
        raise EngineError(
            "benchmarks.not_loaded",
            f"'{name}' holds no task.",
            next_step="Write a group's tasks as a list; in the file of one task, write `tag:` for `group:`.",
        )
    for task, built in loaded["tasks"].items():
        _prepare(task, built)
    groups = list(loaded.get("groups") or ())
    title = name if not is_file(name) else group_of(name) or (groups or list(loaded["tasks"]))[0]
    return Asked(title, loaded)


def _prepare(name: str, task: Any) -> None:
    """What lm-eval's own command line does to a task before it runs. Raises EngineError `benchmarks.runs_code`."""
    if getattr(task, "UNSAFE_CODE", False):
        raise EngineError(
            "benchmarks.runs_code",
            f"The task '{name}' runs code that the model wrote.",
            cause="Nothing here can contain that code.",
            next_step="Leave it out of evaluation.tasks.",
        )
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)


def _not_loaded(name: str, error: Exception) -> EngineError:
    cause = " ".join(str(error).split())[:300] or type(error).__name__
    if not isinstance(error, OSError) and "cache" not in cause:  # offline, datasets says that it has found no cache
        return EngineError(
            "benchmarks.not_loaded",
            f"The task '{name}' cannot be loaded.",
            cause=f"{type(error).__name__}: {cause}",
            next_step="Try it alone: lm_eval validate --tasks ...",
        )
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    way = "Unset HF_HUB_OFFLINE once, with a network" if offline else "Try again with a network"
    return EngineError(
        "benchmarks.no_data",
        f"The data of the task '{name}' is not on this machine and cannot be fetched.",
        cause=cause,
        next_step=f"{way}, so that it is fetched and kept; or leave '{name}' out of evaluation.tasks.",
    )


def question_texts(asked: Sequence[Asked]) -> Iterator[str]:
    """Every question with each of its choices or answers, as the model sees it: what training text must not share runs
    of words with."""
    for one in asked:
        for task in one.loaded["tasks"].values():
            for document in task.test_docs() if task.has_test_docs() else task.validation_docs() or ():
                yield from _question_texts(task, document)


def _question_texts(task: Any, document: Any) -> Iterator[str]:
    question, answer = task.doc_to_text(document), task.doc_to_target(document)
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(document)
        if isinstance(question, int):  # the right choice by its number: choices are what comes before the answer
            pairs = [(choice, answer) for choice in choices]
        else:  # the answer is the right choice, mostly by its number
            pairs = [(question, choice) for choice in choices]
    else:
        pairs = [(question, each) for each in (answer if isinstance(answer, list) else [answer])]
    between = task.get_config("target_delimiter")
    yield from (f"{before}{between}{after}" for before, after in pairs)
