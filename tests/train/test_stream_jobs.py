"""Text that is streamed as training data: where it stands is in every checkpoint, and every document is seen once.

The run grows the demo model twice and trains it three times, each time on another mix: killed anywhere, it ends as it
would have.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.jobs import events as ev
from engine.jobs.card_io import read_card
from engine.jobs.journal import JournalTail
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run, load_state
from engine.resources import demo_dir
from engine.train.documents_log import DocumentRecord, read_documents
from tests.support.corpora import prepared, stream_of, texts, write_rows
from tests.support.forked_workers import ForkedWorkers
from tests.train.conftest import Finished, write_jsonl
from tests.train.test_resume_is_exact import losses

pytestmark = pytest.mark.slow
KILLS = 5
RECORDS = 8
STEPS = (6, 8, 8)
"""The first stage would go on, but its held-out loss ends it at the first look."""
TINY_SHARDS = 1024
"""Tokens: so that a stream goes over many files."""
STAGES: tuple[dict[str, Any], ...] = (
    {
        "name": "short",
        "max_steps": 20,
        "max_length": 32,
        "weights": {"records": 1.0},
        "trainable": ["*.mlp.*"],
        "stop_loss": 99.0,
    },
    {"name": "wider", "max_steps": STEPS[1], "ffn": 640, "task": "new_coordinates", "unfreeze_after": 4.0},
    {"name": "deeper", "max_steps": STEPS[2], "layers": 10, "weights": {"notes": 3.0, "records": 1.0}, "ramp_from": 2},
)


def progressive(folder: Path) -> JobSpec:
    """Records are few enough to be read several times over."""
    lines = (demo_dir() / "long" / "short.jsonl").read_text().splitlines()[:RECORDS]
    records = [{"text": json.loads(line)["text"][:300]} for line in lines]
    sources = [
        {"name": "records", "path": str(write_jsonl(folder / "records.jsonl", records))},
        {"name": "notes", "path": str(demo_dir() / "long" / "train.jsonl")},
    ]
    tree = {
        "task": "full",
        "model": {"source": "demo"},
        "data": {"train": "demo", "heldout": "", "base_text": "", "max_length": 64},
        "sources": sources,
        "stream": {
            "record_documents": True,
            "cache": str(folder / "cache"),
            "shard_tokens": TINY_SHARDS,
            "shuffle_documents": 8,
            "heldout_share": 0.02,
            "heldout_tokens": 256,
        },
        "expansion": {"proof": False},
        "training": {
            "batch_size": 2,
            "gradient_accumulation": 2,
            "learning_rate": 1e-4,
            "new_learning_rate": 5e-4,
            "schedule": "wsd",
            "final_rate_ratio": 0.1,
            "threads": 1,
        },
        "evaluation": {"exact_match_rows": 0, "every_steps": 6, "max_new_tokens": 4},
        "checkpoint": {"every_steps": 2},
        "stages": STAGES,
    }
    return msgspec.convert(tree, JobSpec)


def kill_somewhere(workers: ForkedWorkers, run_dir: Path, generator: random.Random) -> str:
    """Start the worker, let it come some way, kill it with -9: in its first steps, in growth, or where it comes from
    one to the other. Returns where."""
    tail = JournalTail(run_dir)
    tail.read_new()
    worker = workers.start(run_dir)
    wanted = generator.randint(2, 6)
    in_growth = generator.random() < 0.5
    steps, last, over = 0, "nothing", False
    while not over and workers.is_alive(worker):
        for event in tail.read_new():
            last = f"{type(event).__name__} {getattr(event, 'name', '')}"
            steps += isinstance(event, ev.Step)
            training = isinstance(event, ev.Phase) and event.name == "training"
            grows = isinstance(event, ev.Growth) and event.phase == "writing"
            enough = steps >= wanted and (steps > 0 or training)
            over = over or enough or (grows and in_growth)
        time.sleep(0.001)
    time.sleep(generator.uniform(0, 0.15))
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    workers.wait()
    return f"{steps} steps, last {last}"


def finished(workers: ForkedWorkers, run_dir: Path) -> Finished:
    return Finished(run_dir, workers.run(run_dir))


def weights_of(done: Finished) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted((done.run_dir / "output" / "model").glob("*.safetensors")):
        found |= load_file(path)
    return found


def assert_every_document_once(run_dir: Path) -> None:
    """Its spans meet exactly; an epoch that another one follows holds every document that is kept, to its end."""
    spans: dict[tuple[str, int], dict[int, list[DocumentRecord]]] = defaultdict(lambda: defaultdict(list))
    for line in read_documents(run_dir):
        for one in line.documents:
            spans[one.source, one.epoch][one.document].append(one)
    assert max(epoch for source, epoch in spans if source == "records") >= 2, "more than one pass"
    for documents in spans.values():
        for parts in documents.values():
            assert parts[0].from_token == 0
            assert all(one.to_token == two.from_token for one, two in itertools.pairwise(parts))
    ends = {key: {number: parts[-1].to_token for number, parts in found.items()} for key, found in spans.items()}
    whole = [found for (source, epoch), found in ends.items() if source == "records" and (source, epoch + 1) in ends]
    kept, tokens = kept_records(run_dir)
    assert kept == RECORDS - 1, "one is held out"
    assert len(whole) >= 2
    for found in whole:
        assert found == whole[0]
        assert (len(found), sum(found.values())) == (kept, tokens)
        assert set(found) < set(range(RECORDS))


def kept_records(run_dir: Path) -> tuple[int, int]:
    """Documents and tokens of one epoch, as they were told before the training."""
    logs = [event.message for event in JournalTail(run_dir).read_new() if isinstance(event, ev.Log)]
    told = next(match for line in logs if (match := re.match(r"records: ([\d,]+) documents, ([\d,]+) tokens", line)))
    documents, tokens = (int(number.replace(",", "")) for number in told.groups())
    return documents, tokens


def test_a_progressive_growth_run_killed_five_times_changes_no_bit(tmp_path: Path, workers: ForkedWorkers) -> None:
    import torch

    seed = int(os.environ.get("SCALER_WIZARD_KILL_SEED", "0")) or time.time_ns() % 10**9
    generator = random.Random(seed)
    spec = progressive(tmp_path)
    unbroken = finished(workers, create_run(spec))
    assert unbroken.end.outcome == "finished", unbroken.log[-3000:]
    broken = create_run(spec)
    moments = [kill_somewhere(workers, broken, generator) for _ in range(KILLS)]
    resumed = finished(workers, broken)
    context = f"seed {seed}; killed after {moments}"
    assert resumed.end.outcome == "finished", context + resumed.log[-3000:]
    assert len(resumed.of(ev.Start)) == KILLS + 1, context

    assert losses(broken) == losses(unbroken.run_dir), context
    one, other = weights_of(unbroken), weights_of(resumed)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one), context
    assert (broken / "documents.jsonl").read_bytes() == (unbroken.run_dir / "documents.jsonl").read_bytes(), context
    assert [line.step for line in read_documents(broken)] == list(range(1, sum(STEPS) + 1))
    assert_every_document_once(broken)
    check_stages(unbroken, one)


def check_stages(done: Finished, weights: dict[str, Any]) -> None:
    """Each stage has its own mix, length, batch and rate, and the streams go on from one to the next."""
    steps = done.of(ev.Step)
    first, second, third = steps[:6], steps[6:14], steps[14:]
    assert {step.tokens for step in first} == {4 * 32}
    assert {step.tokens for step in second} == {4 * 64}
    assert third[0].tokens == 2 * 64, "the batch grows"
    assert third[-1].tokens == 4 * 64
    assert all(set(step.domains) == {"records"} for step in first)
    taken = {name: sum(step.domains.get(name, 0) for step in steps) for name in ("records", "notes")}
    assert sum(taken.values()) == sum(step.tokens for step in steps)
    progress = json.loads((done.run_dir / "checkpoints" / "step-00000022" / "progress.json").read_text())
    assert progress["position"] == taken
    assert third[-1].learning_rate < 0.5 * third[4].learning_rate, "wsd decays at the end"
    state = load_state(done.run_dir)
    assert (state.stage_index, state.step, state.total_steps) == (3, 22, 22)
    assert weights["model.layers.0.mlp.up_proj.weight"].shape[0] == 640
    waited = sorted(step.wait_seconds / step.step_seconds for step in steps)
    assert waited[len(steps) // 2] < 0.02, "of a usual step; a machine that is busy delays any one"
    card = read_card(done.run_dir)
    assert any("Stage 1 ended at step 6" in note for note in card.notes)


def test_a_step_is_read_while_the_one_before_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, once, and it is what a reader without haste gets."""
    from engine.corpus.corpus import Domain
    from engine.corpus.steps import Position
    from engine.schedule.steps import stream_steps
    from engine.train.course import Course
    from engine.train.stream_batches import StreamSteps

    corpus = prepared({"text": write_rows(tmp_path / "rows.jsonl", texts(60))}, stream_of(tmp_path / "c"))
    tree = {
        "task": "full",
        "data": {"max_length": 16},
        "training": {"max_steps": 3, "batch_size": 2, "gradient_accumulation": 1},
        "sources": [{"name": "text", "path": "rows.jsonl"}],
    }
    spec = msgspec.convert(tree, JobSpec)

    def steps() -> StreamSteps:
        return StreamSteps(spec, corpus, stream_steps(spec, 0), Position(), Course())

    whole = steps()  # to its end, so that nothing of it still reads ahead below
    wanted = [whole[index][0]["input_ids"].tolist() for index in range(3)]
    read: list[int] = []
    begun, plain_read = threading.Event(), Domain.read

    def noted(self: Domain, first: int, count: int) -> Any:
        read.append(first)
        if first == 48:  # the last sequence of step 1
            begun.set()
        return plain_read(self, first, count)

    monkeypatch.setattr(Domain, "read", noted)
    dataset = steps()
    assert dataset[0][0]["input_ids"].tolist() == wanted[0]
    assert begun.wait(60), "nobody has asked for step 1 yet"
    assert [dataset[index][0]["input_ids"].tolist() for index in (1, 2)] == wanted[1:]
    assert read == [0, 16, 32, 48, 64, 80]
