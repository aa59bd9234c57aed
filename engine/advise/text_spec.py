"""From a spec on rows to one that goes on training on large text: sources with weights, how much, what is watched.

Owns that translation and the reading of sources as people write them ("books/=0.7"). Must not read text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from engine.advise.fit import Plan
from engine.errors import EngineError
from engine.estimate.workload import OptimizerKind
from engine.jobs.spec import JobSpec, Optimizer, SourceSection, SuiteSection, Task, TrainingSection
from engine.jobs.spec_checks_stream import BASE_TEXT
from engine.jobs.spec_stream import HUB

GENERAL = "general"
"""The plain English that ships with the program, as a suite."""
LOOKS = 20
"""Times that every text is measured while training."""
SPIKE_FACTOR = 3.0
"""A leap of the loss beyond this is data to pass over, in training that may take weeks."""
FULL_RATE = 0.1
"""Of an adapter's learning rate, for whole weights. Source: QLoRA and LoRA papers, adapters want about ten times it."""
_ENDINGS = (".gz", ".zst", ".xz", ".bz2", ".jsonl", ".ndjson", ".json", ".parquet", ".txt", ".md")


def sources_of(written: Iterable[str]) -> tuple[SourceSection, ...]:
    """ "books/=0.7", "code.jsonl.gz", "hub:owner/name=2": path and weight, 1 when left out, called after the path.

    Raises EngineError `text.source`.
    """
    found: list[SourceSection] = []
    for words in written:
        path, _, weight = words.rpartition("=")
        if not re.fullmatch(r"[0-9]*\.?[0-9]+", weight):
            path, weight = words, "1"
        if not path.strip():
            raise EngineError(
                "text.source", f"'{words}' names no text.", next_step="Write a path and a weight: books/=0.7."
            )
        name = source_name(path, [one.name for one in found])
        found.append(SourceSection(name=name, path=path.strip(), weight=float(weight)))
    return tuple(found)


def source_name(path: str, taken: Sequence[str]) -> str:
    """A name for a source, from its path; none of `taken`, nor what reports call other text."""
    stem = path.removeprefix(HUB).rstrip("/").rsplit("/", 1)[-1].lower()
    while any(stem.endswith(ending) for ending in _ENDINGS):
        stem = stem.rsplit(".", 1)[0]
    name = re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_")[:32] or "text"
    others = {*taken, GENERAL, BASE_TEXT}
    return next(one for one in (name, *(f"{name}-{number}" for number in range(2, 1000))) if one not in others)


def text_spec(spec: JobSpec, plan: Plan, sources: tuple[SourceSection, ...], tokens: float) -> JobSpec:
    """`spec` on large text: `tokens` of it, every source and plain English measured beside. Without sources (a screen
    still asks for them) only the settings are those of large text."""
    change = msgspec.structs.replace
    spec = change(spec, data=change(spec.data, train="demo", heldout="", packing=True))
    if plan.approach.text:
        spec = change(spec, task=Task.FULL, output=change(spec.output, merge=False), training=_whole(spec, plan))
    steps = max(round(tokens / (plan.work.tokens * max(plan.work.accumulation, 1))), 1)
    every = max(steps // LOOKS, 1)
    return change(
        spec,
        sources=sources,
        training=change(
            spec.training,
            max_tokens=round(tokens) if sources else 0,
            max_steps=0,
            tokens_per_step=0,
            gradient_accumulation=max(plan.work.accumulation, 1),
        ),
        suites=(SuiteSection(name=GENERAL, path=GENERAL),),
        evaluation=change(spec.evaluation, every_steps=every, exact_match_rows=0, sample_prompts=()),
        checkpoint=change(spec.checkpoint, every_steps=min(every, 500)),
        stop=change(spec.stop, spike_factor=SPIKE_FACTOR),
    )


def _whole(spec: JobSpec, plan: Plan) -> TrainingSection:
    eight_bit = plan.work.optimizer in (OptimizerKind.ADAMW_8BIT, OptimizerKind.PAGED_ADAMW_8BIT)
    return msgspec.structs.replace(
        spec.training,
        learning_rate=spec.training.learning_rate * FULL_RATE,
        optimizer=Optimizer.ADAMW_8BIT if eight_bit else Optimizer.ADAMW,
    )
