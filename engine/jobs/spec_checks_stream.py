"""What [[sources]] and [stream] must say together, and what goes with text read as a stream.

Owns these checks; each names the key and the way out. Must not know files: whether they are there is found when the
text is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from engine.jobs.spec_conflict import conflict
from engine.jobs.spec_stream import HUB, SourceSection, StreamSection

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

BASE_TEXT = "base_text"
"""What retention calls the text of data.base_text; no source or suite may."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_sources(spec: JobSpec) -> None:
    """Of the whole job. Raises EngineError `spec.conflict`."""
    _check_names(spec)
    for number, source in enumerate(spec.sources, 1):
        _check_source(source, f"sources[{number}]")
    if not spec.sources:
        _check_without_sources(spec)
    elif not spec.needs_data:
        raise conflict(
            f'[[sources]] is text to train on, but task = "{spec.task.value}" trains nothing.',
            "Leave the sources out, or set task to full, lora or qlora.",
            key="sources",
        )


def check_mix(spec: JobSpec) -> None:
    """Of a job without stages, or of one stage. Raises EngineError `spec.conflict`."""
    if not spec.sources:
        return
    if not any(source.weight for source in spec.sources):
        raise conflict(
            "The weights of the sources sum to zero: there would be nothing to train on.",
            "Give at least one source a weight above 0.",
            key="sources[1].weight",
        )
    _check_rows_only(spec)


def _check_names(spec: JobSpec) -> None:
    _check_unique("sources", (source.name for source in spec.sources))
    _check_unique("suites", (suite.name for suite in spec.suites))
    taken = {source.name for source in spec.sources}
    for number, suite in enumerate(spec.suites, 1):
        if suite.name in taken:
            raise conflict(
                f'suites[{number}].name = "{suite.name}" is the name of a source, and every source is a suite already.',
                "Give the suite another name, or leave it out.",
                key=f"suites[{number}].name",
            )


def _check_unique(table: str, names: Iterable[str]) -> None:
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name == BASE_TEXT:
            raise conflict(
                f'{table}[{number}].name = "{BASE_TEXT}" is how reports call the text of data.base_text.',
                "Choose another name.",
                key=f"{table}[{number}].name",
            )
        if name in seen:
            raise conflict(
                f'{table}[{number}].name = "{name}" is the name of {table}[{seen[name]}] already.',
                "Give every one a name of its own: curves, weights and reports go by it.",
                key=f"{table}[{number}].name",
            )
        seen[name] = number


def _check_source(source: SourceSection, where: str) -> None:
    if source.path.startswith(HUB):
        if not _HUB_NAME.fullmatch(source.path.removeprefix(HUB)):
            raise conflict(
                f'{where}.path = "{source.path}" names no data set of the hub.',
                'Write it as on the hub: path = "hub:owner/name".',
                key=f"{where}.path",
            )
        return
    for name in ("config", "split"):
        if getattr(source, name) != getattr(SourceSection(name=source.name, path=source.path), name):
            raise conflict(
                f'{where}.{name} is for data sets of the hub, but {where}.path = "{source.path}" is a file or folder.',
                f'Leave {name} out, or begin the path with "hub:".',
                key=f"{where}.{name}",
            )


def _check_without_sources(spec: JobSpec) -> None:
    if spec.stream != StreamSection():
        plain = StreamSection()
        name = next(n for n in StreamSection.__struct_fields__ if getattr(spec.stream, n) != getattr(plain, n))
        raise conflict(
            f"stream.{name} says how the text of [[sources]] is read, but there are no sources.",
            "Add [[sources]] with name and path, or leave [stream] out.",
            key=f"stream.{name}",
        )
    for number, stage in enumerate(spec.stages, 1):
        if stage.weights is not None:
            raise conflict(
                f"stages[{number}].weights mixes [[sources]], but there are none.",
                "Add [[sources]] with name and path, or leave the weights out.",
                key=f"stages[{number}].weights",
            )


def _check_rows_only(spec: JobSpec) -> None:
    """Settings of rows, beside a stream."""
    context = spec.context
    if spec.data.train not in ("demo", ""):
        raise conflict(
            f'data.train = "{spec.data.train}" and [[sources]] both say what to train on.',
            "Leave out data.train to train on the sources, or the sources to train on its rows.",
            key="data.train",
        )
    if not spec.data.packing:
        raise conflict(
            "data.packing = false is for rows; text from [[sources]] always fills its sequences.",
            "Leave data.packing out. Documents in a sequence cannot see each other.",
            key="data.packing",
        )
    if context.extends and context.window != "full":
        raise conflict(
            f'context.window = "{context.window}" is for rows of many lengths; [[sources]] have one.',
            'Set context.window = "full", or train on rows (data.train).',
            key="context.window",
        )
    if context.curriculum:
        raise conflict(
            "context.curriculum is for rows.",
            'With [[sources]] lengths change from stage to stage: task = "full", max_length in [[stages]].',
            key="context.curriculum",
        )
    if spec.training.tokens_per_step:
        raise conflict(
            "training.tokens_per_step is for rows, which have many lengths; sequences of [[sources]] are all full.",
            "Set training.batch_size and gradient_accumulation: a step holds batch_size x gradient_accumulation "
            "sequences.",
            key="training.tokens_per_step",
        )
