"""Which folder a word on the command line means: a model, an adapter on its base, or what a run left.

Owns the order in which these are tried. Must not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError

_LEFT_BY_RUNS = ("output/model", "output/adapter", "output/merged", "output/held/model", "output/held/adapter")


@dataclass(frozen=True, slots=True)
class Named:
    """A folder that can be loaded."""

    folder: Path
    name: str
    base: Path | None = None
    """Under an adapter."""
    parent: Path | None = None
    """What a run was trained from, or an adapter's base, where it is on this machine."""


def named_folder(word: str, base: str = "") -> Named:
    """Raises EngineError `model.*`, `run.*`, `adapter.no_base`."""
    from engine.models.adapter import is_adapter

    folder = Path(word).expanduser()
    if is_adapter(folder):
        return _adapter(folder, folder.resolve().name, base)
    run_dir = _run_dir(word)
    if run_dir is None:
        return Named(_model(word), Path(word).name or word)
    found = next((run_dir / name for name in _LEFT_BY_RUNS if _is_there(run_dir / name)), None)
    if found is None:
        raise EngineError(
            "run.no_model",
            f"Run {run_dir.name} has left no model or adapter yet.",
            next_step="Let it finish, or stop it: stopping saves what there is.",
        )
    if is_adapter(found):
        return _adapter(found, run_dir.name, base)
    return Named(found, run_dir.name, parent=_source_of(run_dir))


def _adapter(folder: Path, name: str, base: str) -> Named:
    from engine.models.adapter import base_of_adapter

    under = _model(base) if base else base_of_adapter(folder)
    return Named(folder, name, base=under, parent=under)


def _model(word: str) -> Path:
    from engine.models.resolve import require_weights, resolve_model

    return require_weights(resolve_model(word))


def _is_there(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def _run_dir(word: str) -> Path | None:
    from engine.jobs.store import find_run

    if word.lower() == "demo" or (Path(word).expanduser() / "config.json").is_file():
        return None
    try:
        return find_run(word)
    except EngineError:
        return None


def _source_of(run_dir: Path) -> Path | None:
    from engine.jobs import layout
    from engine.jobs.spec_toml import load_spec

    try:
        return _model(load_spec(run_dir / layout.SPEC).model.source)
    except EngineError:
        return None
