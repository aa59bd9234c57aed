"""Whether a job's adapters are there and belong to its base, and whether its result can be merged: before the start.

Owns these checks on a spec. Must not know machines. Only headers are read, and of the base as much as its fingerprint
takes.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from engine.adapters.base import Base, check_base, read_base, resized
from engine.adapters.folder import AdapterFolder, read_adapter
from engine.adapters.merge_plan import Weighed, plan_merge
from engine.adapters.merge_refusals import check_not_quantised
from engine.data.load import DEMO, PreparedData, prepare, prepare_beside
from engine.errors import EngineError
from engine.jobs.named_adapter import adapter_folder
from engine.jobs.spec import JobSpec
from engine.jobs.spec_section import Task
from engine.models.folder import check_folder
from engine.models.headers import read_headers
from engine.models.source import ModelRef


def check_adapters_of(spec: JobSpec, ref: ModelRef) -> tuple[AdapterFolder, ...]:
    """The adapters of a job that mixes, in the spec's order. Raises EngineError `adapter.*`, `run.*`, with the key."""
    found = []
    for number, named in enumerate(spec.adapters, 1):
        try:
            adapter = read_adapter(adapter_folder(named.path))
            if ref.path is not None and ref.has_weights:
                check_base(adapter, ref.path)
                _check_vocabulary(adapter, read_base(ref.path))
        except EngineError as error:
            error.key = error.key or f"adapters[{number}].path"
            raise
        found.append(adapter)
    return tuple(found)


def _check_vocabulary(adapter: AdapterFolder, base: Base) -> None:
    """A mix is measured with all its adapters on one model, whose vocabulary has one size."""
    for name, own, theirs in resized(adapter, base):
        raise EngineError(
            "adapter.resized",
            f"The adapter in {adapter.path} has a vocabulary of its own: {own:,} rows in '{name[:80]}', the model's "
            f"has {theirs:,}.",
            cause="A model whose vocabulary was resized for one adapter is another model for the others.",
            next_step="Merge that adapter into the base first (scaler-wizard adapters merge), and mix what was "
            "trained on the result.",
        )


def heldout_of(spec: JobSpec, folder: Path, now: datetime | None = None) -> PreparedData:
    """What a mix is measured on: the user's held-out file alone where there is one, else what is set aside of the
    rows. `folder` has the tokenizer. Raises EngineError `data.*`, with the key where nothing is held out."""
    section = spec.data
    ready = prepare_beside if section.heldout not in ("", DEMO) else prepare
    found = ready(section, folder, now=now)
    if spec.mix.sweep and not found.heldout:
        raise EngineError(
            "adapter.no_rows",
            "mix.sweep measures weights on held-out rows, and there are none.",
            next_step="Name a file of rows in data.heldout.",
            key="data.heldout",
        )
    return found


def check_mergeable(spec: JobSpec, ref: ModelRef, adapters: tuple[AdapterFolder, ...] = ()) -> None:
    """Raises EngineError `merge.*` where the job is to end in a merged model, and its base is packed or has no place
    for what an adapter adds."""
    if ref.path is None or not ref.has_weights or not (spec.output.merge or spec.task is Task.MIX):
        return
    try:
        check_not_quantised(check_folder(Path(ref.path)), read_headers(ref.path), spec.model.source)
    except EngineError as error:
        error.key = error.key or ("output.merge" if spec.output.merge else "model.source")
        raise
    if not (spec.output.merge and spec.task is Task.MIX):
        return
    base = read_base(Path(ref.path))
    mix = [Weighed(adapter, named.weight) for adapter, named in zip(adapters, spec.adapters, strict=True)]
    try:
        plan_merge(base, mix, "", tied=base.tied)
    except EngineError as error:
        error.key = error.key or "output.merge"
        raise
