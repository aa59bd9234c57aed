"""Where an exported model comes from: the run's card and spec, its base and the base's licence.

Owns gathering these from what lies on the disk. Must not know formats.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine.adapters.kinds import read_config
from engine.errors import EngineError
from engine.export.licence import Licence, licence_of
from engine.export.order import ExportOrder
from engine.jobs import layout
from engine.jobs.card import Card
from engine.jobs.card_io import read_card
from engine.jobs.spec import JobSpec
from engine.jobs.store import load_run_spec
from engine.models.resolve import resolve_model

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known; empty where the source is a plain folder."""

    base: str
    """As people know it: a hub id, or a folder's name."""
    on_hub: bool
    licence: Licence
    card: Card | None = None
    spec: JobSpec | None = None


def origin_of(order: ExportOrder) -> Origin:
    """Raises nothing: what cannot be read is left out."""
    run_dir = Path(order.run_dir) if order.run_dir else None
    spec, card = _spec(run_dir), _card(run_dir)
    named, folder, on_hub = _base(order, spec)
    licence = licence_of(folder, named if on_hub else "")
    if run_dir is None and not order.is_adapter and licence.base_model and _HUB_ID.fullmatch(licence.base_model):
        return Origin(licence.base_model, True, licence)
    return Origin(named if on_hub else Path(named).name or named, on_hub, licence, card, spec)


def spec_of(order: ExportOrder) -> JobSpec | None:
    """Of the run that made the source."""
    return _spec(Path(order.run_dir) if order.run_dir else None)


def _spec(run_dir: Path | None) -> JobSpec | None:
    try:
        return load_run_spec(run_dir) if run_dir is not None else None
    except EngineError:
        return None


def _card(run_dir: Path | None) -> Card | None:
    try:
        return read_card(run_dir) if run_dir is not None and (run_dir / layout.CARD).is_file() else None
    except EngineError:
        return None


def _base(order: ExportOrder, spec: JobSpec | None) -> tuple[str, Path, bool]:
    """The base's name, its folder and whether that is its name on the hub; of a plain model folder itself."""
    source = Path(order.source)
    if spec is not None:
        named = spec.model.source
        try:
            found = resolve_model(named, revision=spec.model.revision, offline=True)
        except EngineError:
            return named, Path(order.base) if order.base else source, False
        return found.repo_id or named, found.path or source, bool(found.repo_id)
    if order.is_adapter:
        try:
            named = read_config(source).base or order.base
        except EngineError:
            named = order.base
        try:
            found = resolve_model(named, offline=True)
        except EngineError:
            return named, Path(order.base), False
        return found.repo_id or named, Path(order.base), bool(found.repo_id)
    return str(source), source, False
