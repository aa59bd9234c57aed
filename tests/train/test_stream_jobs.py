"""Text that is streamed as training data: where it stands is in every checkpoint, and every document is seen once."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.jobs import events as ev
from engine.jobs.spec import JobSpec, SourceSection, StreamSection
from engine.jobs.store import create_run
from engine.train.documents_log import Line, read_documents
from tests.train.conftest import WORDS, RunWorker, SpecMaker, write_jsonl
from tests.train.test_resume_is_exact import adapter_bytes, kill_at_random, losses

pytestmark = pytest.mark.slow
PATIENCE_SECONDS = 900
LENGTH = 32


def write_texts(path: Path, count: int, words: int, seed: int) -> Path:
    draw = random.Random(seed)
    rows = [{"text": " ".join(draw.choice(WORDS) for _ in range(draw.randint(3, words)))} for _ in range(count)]
    return write_jsonl(path, rows)


@pytest.fixture
def sources(tmp_path: Path) -> tuple[SourceSection, ...]:
    """Two domains; a step is shorter than many a document and longer than others."""
    web = write_texts(tmp_path / "web.jsonl", 60, 50, 1)
    code = write_texts(tmp_path / "code.jsonl", 40, 20, 2)
    return (
        SourceSection(name="web", path=str(web), weight=3.0),
        SourceSection(name="code", path=str(code), weight=1.0),
    )


def streamed(
    make_spec: SpecMaker, sources: tuple[SourceSection, ...], cache: Path, task: str = "lora", **sections: Any
) -> JobSpec:
    tree: dict[str, Any] = {
        "data": {"train": "demo", "heldout": "", "max_length": LENGTH, "base_text": ""},
        "training": {"max_steps": 30, "batch_size": 2, "gradient_accumulation": 2},
        "evaluation": {"exact_match_rows": 0},
    }
    for name, changes in sections.items():
        tree.setdefault(name, {}).update(changes)
    spec = make_spec(task, **tree)
    stream = StreamSection(record_documents=True, cache=str(cache), heldout_share=0.05, shuffle_documents=16)
    return msgspec.structs.replace(spec, sources=sources, stream=stream)


def seen_spans(lines: Iterable[Line]) -> dict[tuple[str, int, int], list[tuple[int, int]]]:
    """(source, epoch, document) -> spans of tokens in the order they were trained."""
    found: dict[tuple[str, int, int], list[tuple[int, int]]] = defaultdict(list)
    for line in lines:
        for one in line.documents:
            found[one.source, one.epoch, one.document].append((one.from_token, one.to_token))
    return found


def assert_nothing_twice_or_left_out(run_dir: Path, whole_epochs: dict[str, int]) -> None:
    """Spans of every document meet exactly; an epoch that another one follows holds every document to its end."""
    spans = seen_spans(read_documents(run_dir))
    lengths: dict[tuple[str, int], int] = {}
    for (source, epoch, document), parts in sorted(spans.items()):
        assert parts[0][0] == 0, "from its first token"
        assert all(end == begin for (_, end), (begin, _) in zip(parts[:-1], parts[1:], strict=True))
        if epoch < whole_epochs[source]:
            assert lengths.setdefault((source, document), parts[-1][1]) == parts[-1][1], "to the same last token"
    for source, epochs in whole_epochs.items():
        documents = [{doc for name, at, doc in spans if (name, at) == (source, epoch)} for epoch in range(epochs)]
        assert epochs >= 1
        assert all(one == documents[0] for one in documents), "every epoch has every document"


def last_whole_epochs(run_dir: Path) -> dict[str, int]:
    latest: dict[str, int] = {}
    for line in read_documents(run_dir):
        for one in line.documents:
            latest[one.source] = max(latest.get(one.source, 0), one.epoch)
    return latest


def test_killed_at_random_a_streamed_run_sees_every_document_once_and_ends_the_same(
    make_spec: SpecMaker, run_worker: RunWorker, sources: tuple[SourceSection, ...], tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    generator = random.Random(seed)
    spec = streamed(
        make_spec, sources, tmp_path / "cache", evaluation={"every_steps": 10}, checkpoint={"every_steps": 4}
    )
    unbroken = run_worker(spec, timeout_seconds=PATIENCE_SECONDS)
    assert unbroken.end.outcome == "finished", unbroken.log[-3000:]
    broken = create_run(spec)
    moments = [kill_at_random(broken, generator) for _ in range(3)]
    resumed = run_worker(broken, timeout_seconds=PATIENCE_SECONDS)
    context = f"seed {seed}; killed after {moments}"
    assert resumed.end.outcome == "finished", context + resumed.log[-3000:]
    assert losses(broken) == losses(unbroken.run_dir), context
    assert adapter_bytes(resumed) == adapter_bytes(unbroken), context

    assert (broken / "documents.jsonl").read_bytes() == (unbroken.run_dir / "documents.jsonl").read_bytes(), context
    assert [line.step for line in read_documents(broken)] == list(range(1, 31))
    assert_nothing_twice_or_left_out(broken, last_whole_epochs(broken))

    steps = unbroken.of(ev.Step)
    total = {name: sum(step.domains.get(name, 0) for step in steps) for name in ("web", "code")}
    assert sum(total.values()) == sum(step.tokens for step in steps) == 30 * 4 * LENGTH
    assert total["web"] == 3 * total["code"]
    progress = json.loads((broken / "checkpoints" / "step-00000030" / "progress.json").read_text())
    assert progress["position"] == total
