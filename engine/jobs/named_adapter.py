"""The adapter that a word means: a peft folder, or a run of this machine that trained one.

Owns the order in which these are tried, for specs and commands alike. Must not know what is done with it.
"""

from __future__ import annotations

from pathlib import Path

from engine.errors import EngineError
from engine.jobs import layout
from engine.jobs.store import find_run, list_runs
from engine.models.adapter import is_adapter

LEFT_BY_RUNS = ("output/adapter", "output/held/adapter")


def adapter_folder(word: str) -> Path:
    """An absolute path. Raises EngineError `run.*`, `adapter.unknown`, `adapter.config` for a folder without one."""
    folder = Path(word).expanduser().absolute()
    if is_adapter(folder):
        return folder
    if folder.is_dir() and not (folder / layout.SPEC).is_file():
        raise EngineError(
            "adapter.config",
            f"{folder} is not an adapter: it has no adapter_config.json.",
            next_step="Give a folder that peft's save_pretrained wrote, or a run that trained an adapter.",
        )
    run_dir = _run(word)
    for name in LEFT_BY_RUNS:
        if is_adapter(run_dir / name):
            return run_dir / name
    raise EngineError(
        "run.no_adapter",
        f"Run {run_dir.name} has left no adapter.",
        next_step="Name an adapter's folder, or a run that trained one to its end.",
    )


def adapter_name(folder: Path) -> str:
    """How reports call the adapter in `folder`: the run's id for what a run left, else the folder's name."""
    run_dir = next((folder.parents[len(Path(left).parts) - 1] for left in LEFT_BY_RUNS if folder.match(left)), None)
    return run_dir.name if run_dir is not None and (run_dir / layout.SPEC).is_file() else folder.name


def _run(word: str) -> Path:
    try:
        return _run_called(word) or find_run(word)
    except EngineError as error:
        if error.code != "run.unknown":
            raise
        raise EngineError(
            "adapter.unknown",
            f"'{word}' is neither an adapter's folder nor a run.",
            cause=error.cause,
            next_step="Name a folder with an adapter_config.json; scaler-wizard adapters list shows those of runs.",
        ) from error


def _run_called(name: str) -> Path | None:
    """The run with this name as lists show it, "facts" or, where several have it, "facts 1a2b". Raises EngineError
    `run.ambiguous`."""
    found = [run for run in list_runs() if name and name in (run.name, f"{run.name} {run.id.rpartition('-')[2]}")]
    if len(found) > 1:
        raise EngineError(
            "run.ambiguous",
            f"{len(found)} runs are called '{name}': {', '.join(run.id for run in found[:8])}.",
            next_step="Name one by its id.",
        )
    return found[0].directory if found else None
