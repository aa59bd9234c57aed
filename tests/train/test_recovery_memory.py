"""Memory that runs out in a step, by a real limit on a real worker: the step is computed again in pieces."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import torch

from engine.jobs import events as ev
from engine.jobs.journal import JournalTail
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run, load_state
from engine.train.pieces import split
from tests.support.forked_workers import ForkedWorkers
from tests.train.conftest import Finished, SpecMaker, write_jsonl
from tests.train.test_resume_is_exact import losses

pytestmark = pytest.mark.slow
STEPS = 4
ROWS, WIDTH = 128, 128
ROOM_BYTES = 270_000_000
"""A whole step takes 385 MB here, half of it half of that."""


def wide_spec(make_spec: SpecMaker, folder: Path, **training: object) -> JobSpec:
    """Micro-batches whose logits are far larger than anything else in the process that varies."""
    rows = [{"text": f"heron {number} " + "amber birch cobalt dune " * 40} for number in range(ROWS)]
    return make_spec(
        "lora",
        data={
            "train": str(write_jsonl(folder / "wide.jsonl", rows)),
            "heldout": "",
            "heldout_fraction": 0.0,
            "base_text": "",
            "max_length": WIDTH,
            "packing": False,
        },
        adapter={"dropout": 0.0},
        training={"batch_size": ROWS, "max_steps": STEPS, "learning_rate": 1e-3, **training},
        evaluation={"exact_match_rows": 0},
        checkpoint={"every_steps": 1},
    )


def limited_to(room_bytes: int) -> str:
    """A preamble: from the first step on, the process gets so much more address space than it has, and no byte more."""
    return f"""
import resource
from engine.train import trainer
compute = trainer.TokenTrainer.training_step
limits = []
def limited(self, *arguments, **named):
    if not limits:
        pages = int(open("/proc/self/statm").read().split()[0])
        limits.append(pages * resource.getpagesize() + {room_bytes})
        resource.setrlimit(resource.RLIMIT_AS, (limits[0], limits[0]))
    return compute(self, *arguments, **named)
trainer.TokenTrainer.training_step = limited
"""


def kill_when_saved(workers: ForkedWorkers, run_dir: Path, preamble: str, step: int) -> None:
    """Start the worker; kill it with -9 when the checkpoint of `step` is there."""
    workers.kill_when(run_dir, lambda event: isinstance(event, ev.Checkpoint) and event.step == step, preamble)


def recoveries(run_dir: Path) -> list[ev.Recovery]:
    return [event for event in JournalTail(run_dir).read_new() if isinstance(event, ev.Recovery)]


def test_a_step_that_does_not_fit_is_computed_in_pieces_with_the_same_result(
    make_spec: SpecMaker, workers: ForkedWorkers, tmp_path: Path
) -> None:
    """The attempt after a kill -9 begins with the pieces that fit: nothing has to fail again."""
    spec = wide_spec(make_spec, tmp_path)
    run_dir = create_run(spec)
    free = Finished(run_dir, workers.run(run_dir))
    assert free.end.outcome == "finished", free.log[-3000:]
    assert not recoveries(free.run_dir)

    broken, limit = create_run(spec), limited_to(ROOM_BYTES)
    kill_when_saved(workers, broken, limit, 2)
    resumed = Finished(broken, workers.run(broken, limit))
    assert resumed.end.outcome == "finished", resumed.log[-3000:]
    assert [event.resumed_step for event in resumed.of(ev.Start)][-1] >= 2

    (found,) = recoveries(broken)
    assert found.trouble == "out of memory"
    assert found.back_to_step == found.step - 1
    assert "2 pieces" in found.remedy
    whole, pieces = losses(free.run_dir), losses(broken)
    assert sorted(pieces) == list(range(1, STEPS + 1))
    for step, values in whole.items():
        assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(values, pieces[step], strict=True))
    assert load_state(broken).findings.recoveries == [found]


def test_a_single_sequence_that_does_not_fit_ends_the_run_with_ways_out(
    make_spec: SpecMaker, workers: ForkedWorkers, tmp_path: Path
) -> None:
    long = write_jsonl(tmp_path / "long.jsonl", [{"text": "amber birch cobalt dune " * 2500}] * 2)
    spec = wide_spec(make_spec, tmp_path, batch_size=2)
    spec = msgspec.structs.replace(
        spec, data=msgspec.structs.replace(spec.data, train=str(long), max_length=8192, packing=True)
    )
    run_dir = create_run(spec)
    done = Finished(run_dir, workers.run(run_dir, limited_to(0)))
    assert done.end.outcome == "failed", done.log[-3000:]
    assert "single sequence of 8,192 tokens" in done.end.what
    assert "gradient_checkpointing" in done.end.next_step
    assert done.end.cause


def test_pieces_add_up_to_the_whole() -> None:
    """Rows, positions and targets of any split are those of the batch."""
    draw = torch.Generator().manual_seed(5)
    rows, width = 5, 7
    positions = torch.arange(rows * width)[torch.rand(rows * width, generator=draw) < 0.4]
    batch = {
        "input_ids": torch.arange(rows * width).view(rows, width),
        "position_ids": torch.arange(width).expand(rows, width),
        "positions": positions,
        "targets": positions * 10,
        "kept": True,
    }
    for pieces in (1, 2, 3, 4, 8):
        parts = split(batch, pieces)
        assert len(parts) == min(pieces, rows)
        assert torch.equal(torch.cat([part["input_ids"] for part in parts]), batch["input_ids"])
        found = torch.cat([part["input_ids"].flatten()[part["positions"]] for part in parts])
        assert torch.equal(found, positions), "the tokens that are trained"
        assert torch.equal(torch.cat([part["targets"] for part in parts]), batch["targets"])
        assert all(part["kept"] for part in parts)
        assert max(len(part["input_ids"]) for part in parts) - min(len(part["input_ids"]) for part in parts) <= 1
