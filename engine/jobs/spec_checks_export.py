"""What [export] must say together with itself and the rest of a job.

Owns these checks; each names the key and the way out. Must not know models: what a target cannot represent of one is
looked at before a start (`engine.export.portable`, asked by `scaler_tui.preflight`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.jobs.spec_conflict import conflict
from engine.jobs.spec_export import GGUF_TYPES, Destination, ExportSection
from engine.jobs.spec_section import Task

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

_PLAIN = ExportSection()
_GGUF = (Destination.GGUF, Destination.OLLAMA)


def check_export(spec: JobSpec) -> None:
    """Of the whole job. Raises EngineError `spec.conflict`."""
    section = spec.export
    if len(set(section.to)) < len(section.to):
        raise conflict("export.to names a target twice.", "Leave one of them out.", key="export.to")
    if not any(target in section.to for target in _GGUF):
        _check_nothing_for_gguf(section)
    _check_types(section)
    if not section.to and section.verify != _PLAIN.verify:
        raise conflict(
            "export.verify is about what [export] writes, but export.to is empty.",
            'Set export.to = ["gguf"], or leave export.verify out.',
            key="export.verify",
        )
    if section.adapter:
        _check_adapter(spec)


def _check_nothing_for_gguf(section: ExportSection) -> None:
    for key, is_set in (("gguf_types", section.gguf_types != _PLAIN.gguf_types), ("adapter", section.adapter)):
        if is_set:
            raise conflict(
                f"export.{key} is for gguf and ollama, but export.to names neither.",
                f'Add one: export.to = ["gguf"], or leave export.{key} out.',
                key=f"export.{key}",
            )


def _check_types(section: ExportSection) -> None:
    named = ", ".join(GGUF_TYPES)
    unknown = [kind for kind in section.gguf_types if kind not in GGUF_TYPES]
    if unknown:
        raise conflict(
            f'export.gguf_types names "{unknown[0]}", which is no type here.', f"One of {named}.",
            key="export.gguf_types",
        )  # fmt: skip
    if not section.gguf_types:
        raise conflict("export.gguf_types is empty.", f"Name at least one of {named}.", key="export.gguf_types")
    if len(set(section.gguf_types)) < len(section.gguf_types):
        raise conflict("export.gguf_types names a type twice.", "Leave one of them out.", key="export.gguf_types")


def _check_adapter(spec: JobSpec) -> None:
    """Only low-rank updates of matrices are an adapter in llama.cpp."""
    if not (spec.task.trains_adapter or spec.task is Task.MIX):
        raise conflict(
            f'export.adapter exports an adapter, but task = "{spec.task.value}" makes a whole model.',
            "Set export.adapter = false.",
            key="export.adapter",
        )
    if spec.adapter.dora and spec.task.trains_adapter:
        raise conflict(
            "export.adapter and adapter.dora do not go together: llama.cpp's adapters are low-rank updates, DoRA's "
            "are not.",
            "Set export.adapter = false, which exports the merged model, or adapter.dora = false.",
            key="export.adapter",
        )
    if spec.context.extends:
        raise conflict(
            "export.adapter leaves the model's window as it was, but [context] makes it longer.",
            "Set export.adapter = false, which exports the merged model.",
            key="export.adapter",
        )
