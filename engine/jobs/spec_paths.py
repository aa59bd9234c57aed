"""Which values of a spec name files, and specs that name other files.

Owns the one list of such values, used wherever a spec moves: into a run directory, beside another folder, to another
machine. Must not know why it moves, nor read what is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from engine.jobs.benchmark_files import is_file
from engine.jobs.spec_stream import HUB

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

LITERAL = "demo"
NOT_FILES = ("", LITERAL, "demo-long", "general", "self")
"""Values that name nothing, or something the program ships."""


class NamedKind(StrEnum):
    """What a value names."""

    FILE = "file"
    MODEL = "model"
    """A model folder, or a hub id: only who looks at the disk can tell."""
    TEXT = "text"
    """A file, a folder or a pattern."""
    TASK = "task"
    """A benchmark's own .yaml, which names others relative to its folder."""
    OUTPUT = "output"
    CACHE = "cache"


@dataclass(frozen=True, slots=True)
class Named:
    """A value of a spec that may name a file."""

    key: str
    """As a person would write it: "data.train", "sources[1].path"."""
    value: str
    kind: NamedKind


Change = Callable[[Named], str]


def map_files(spec: JobSpec, change: Change) -> JobSpec:
    """The same spec with every value that names a file replaced by what `change` makes of it."""

    def of(key: str, value: str, kind: NamedKind = NamedKind.FILE) -> str:
        return value if value in NOT_FILES else change(Named(key, value, kind))

    data, expansion = spec.data, spec.expansion
    replace = msgspec.structs.replace
    return replace(
        spec,
        model=replace(spec.model, source=of("model.source", spec.model.source, NamedKind.MODEL)),
        data=replace(
            data,
            train=of("data.train", data.train),
            heldout=of("data.heldout", data.heldout),
            base_text=of("data.base_text", data.base_text),
        ),
        expansion=replace(
            expansion,
            proof_text=of("expansion.proof_text", expansion.proof_text),
            out=of("expansion.out", expansion.out, NamedKind.OUTPUT),
        ),
        context=replace(spec.context, factors=of("context.factors", spec.context.factors)),
        distillation=replace(
            spec.distillation,
            teacher=of("distillation.teacher", spec.distillation.teacher, NamedKind.MODEL),
            cache=of("distillation.cache", spec.distillation.cache, NamedKind.CACHE),
        ),
        adapters=tuple(
            replace(adapter, path=change(Named(f"adapters[{number}].path", adapter.path, NamedKind.MODEL)))
            for number, adapter in enumerate(spec.adapters, 1)
        ),
        stream=replace(spec.stream, cache=of("stream.cache", spec.stream.cache, NamedKind.CACHE)),
        sources=tuple(
            source
            if source.path.startswith(HUB)
            else replace(source, path=change(Named(f"sources[{number}].path", source.path, NamedKind.TEXT)))
            for number, source in enumerate(spec.sources, 1)
        ),
        suites=tuple(
            replace(suite, path=of(f"suites[{number}].path", suite.path, NamedKind.TEXT))
            for number, suite in enumerate(spec.suites, 1)
        ),
        evaluation=replace(
            spec.evaluation,
            tasks=tuple(
                change(Named(f"evaluation.tasks[{number}]", task, NamedKind.TASK)) if is_file(task) else task
                for number, task in enumerate(spec.evaluation.tasks, 1)
            ),
        ),
    )


def named_files(spec: JobSpec) -> tuple[Named, ...]:
    """Every value that may name a file, in the order of the spec."""
    found: list[Named] = []

    def collect(named: Named) -> str:
        found.append(named)
        return named.value

    map_files(spec, collect)
    return tuple(found)
