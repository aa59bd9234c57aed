"""The adapter that a word means: a peft folder, or a run of this machine that trained one.

Owns the order in which these are tried. Must not know what is done with it.
"""

from __future__ import annotations

from pathlib import Path

from engine.errors import EngineError
from engine.jobs import layout
from engine.jobs.store import find_run
from engine.models.adapter import is_adapter

_OUTPUTS = ("adapter", "held/adapter")


def adapter_folder(word: str) -> Path:
    """An absolute path. Raises EngineError `run.*`, `adapter.config` for a folder without an adapter."""
    folder = Path(word).expanduser().absolute()
    if is_adapter(folder):
        return folder
    run_dir = folder if (folder / layout.SPEC).is_file() else None
    if run_dir is None and folder.exists():
        raise EngineError(
            "adapter.config",
            f"{folder} is not an adapter: it has no adapter_config.json.",
            next_step="Give a folder that peft's save_pretrained wrote, or a run that trained an adapter.",
        )
    run_dir = run_dir or find_run(word)
    for name in _OUTPUTS:
        if is_adapter(run_dir / layout.OUTPUT / name):
            return run_dir / layout.OUTPUT / name
    raise EngineError(
        "run.no_adapter",
        f"Run {run_dir.name} has left no adapter.",
        next_step="Name an adapter's folder, or a run that trained one to its end.",
    )


def adapter_name(word: str) -> str:
    """How reports call it: the run's id, or the folder's name."""
    folder = adapter_folder(word)
    return folder.parents[1].name if folder.parent.name == layout.OUTPUT else folder.name
