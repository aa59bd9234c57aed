"""What a run follows as it is asked for, the texts that this means, and what an earlier attempt has told of it.

Owns reading these. Must not know how anything is measured or judged (`retention`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.data.tokenizer import ChatTokenizer
from engine.evaluation.findings import SuiteText
from engine.evaluation.suite_text import BASE_TEXT, cut_documents, read_suite
from engine.jobs import events as ev
from engine.jobs.journal import JournalTail
from engine.jobs.spec import JobSpec

BASE_TEXT_TOKENS = 32_768


@dataclass(frozen=True, slots=True)
class WatchOrder:
    """What is followed, and where it is told."""

    run_dir: Path
    spec: JobSpec
    """Of the whole job."""
    spec_hash: str
    folder: Path
    """With the model's tokenizer as transformers reads it."""
    tokenizer: ChatTokenizer
    window: int
    """Tokens the parent model was made for; 0 where its config does not say."""
    tell: Callable[[ev.AnyEvent], None]
    phase: Callable[[str, str, int, int], None] = lambda *_: None
    """(what is going on, which suite or task, done, of how many)."""
    heldout: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Source -> its held-out documents."""
    resumed_step: int = 0


def suite_texts(order: WatchOrder) -> tuple[SuiteText, ...]:
    """Of [[suites]], of every source's held-out documents, and data.base_text. Raises EngineError `suite.*`."""
    spec, tokenizer, window = order.spec, order.tokenizer, order.window
    found = [
        read_suite(suite.name, suite.path, suite.field, tokenizer, window, suite.max_tokens) for suite in spec.suites
    ]
    for source, texts in order.heldout.items():
        most = spec.stream.heldout_tokens or sum(map(len, texts))
        documents = cut_documents(texts, tokenizer, window, most)
        if documents:
            found.append(SuiteText(source, documents))
    named = {suite.name for suite in found}
    if spec.data.base_text and BASE_TEXT not in named:
        found.append(read_suite(BASE_TEXT, spec.data.base_text, "text", tokenizer, window, BASE_TEXT_TOKENS))
    return tuple(found)


Identity = tuple[str, int, str, str, bool]


def identity(event: ev.AnyEvent) -> Identity:
    """Equal for events that say the same thing of the same step."""
    match event:
        case ev.SuiteScore():
            return "suite", event.step, event.suite, "", False
        case ev.BenchmarkScore():
            return "benchmark", event.step, event.task, event.metric, event.part
        case ev.Retention():
            compared = ",".join(f"{report.on}:{report.pairs}" for report in event.reports)
            return "retention", event.step, compared, event.gate, False
        case _:
            return type(event).__name__, 0, "", "", False


def told_before(order: WatchOrder) -> set[Identity]:
    """What the journal has of steps that the run goes on from."""
    kinds = (ev.SuiteScore, ev.BenchmarkScore, ev.Retention)
    told = (event for event in JournalTail(order.run_dir).stream() if isinstance(event, kinds))
    return {identity(event) for event in told if event.step <= order.resumed_step}
