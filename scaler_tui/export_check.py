"""What [export] of a spec means before the start: a refusal, words, and bytes on disk.

Owns these for `scaler_tui.preflight`. The judgement is the engine's (`engine.export.portable`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.advise.spec_growth import SpecGrowth
    from engine.jobs.spec import JobSpec
    from engine.models.architecture import Architecture
    from engine.models.source import ModelRef
    from scaler_tui.preflight import Checked


_WIDTHS = {"float64": 4, "float32": 4}
"""Bytes per weight in the files that [export] works from; the others have 2."""


@dataclass(frozen=True, slots=True)
class ExportCheck:
    """Of one job."""

    notes: tuple[str, ...] = ()
    disk_bytes: int = 0

    def on(self, checked: Checked) -> Checked:
        """`checked` with what its exports add."""
        return replace(checked, notes=(*checked.notes, *self.notes), disk_bytes=checked.disk_bytes + self.disk_bytes)


def check_export_of(spec: JobSpec, ref: ModelRef, growth: SpecGrowth | None, architecture: Architecture) -> ExportCheck:
    """Raises EngineError `export.*` with the spec's key where a target cannot represent the result."""
    if not spec.export.to:
        return ExportCheck()
    from engine.export.portable import check_portable, export_bytes, size_note

    assert ref.path is not None
    config = growth.config if growth is not None else ref.config
    result = growth.architecture if growth is not None else architecture
    parameters = result.parameters
    notes = check_portable(spec, ref.path, config)
    sizes = size_note(spec, parameters)
    return ExportCheck(
        (*((sizes,) if sizes else ()), *notes), export_bytes(spec, parameters, _WIDTHS.get(result.dtype, 2))
    )
