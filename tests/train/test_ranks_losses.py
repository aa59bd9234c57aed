"""Several processes compute the steps of one: equal losses with copies and with shards, and after a resume on another
number of processes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.jobs import events as ev
from engine.jobs.checkpoints import latest
from engine.jobs.journal import JournalTail
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run
from engine.train.checkpointing import PROGRESS, Progress
from tests.train.spawn import worker_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 6
TOLERANCE = 1e-5
GROWTH = [{"max_steps": 2}, {"ffn": 192, "task": "new_coordinates", "max_steps": 4, "unfreeze_after": 2.0}]
"""Two steps, then a wider model whose old coordinates join after two more."""


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    run_dir: Path

    def of(self, kind: type) -> list[Any]:
        return [event for event in JournalTail(self.run_dir).read_new() if isinstance(event, kind)]

    @property
    def steps(self) -> dict[int, ev.Step]:
        """The newest event of each."""
        return {event.step: event for event in self.of(ev.Step)}

    @property
    def worlds(self) -> list[tuple[int, str]]:
        return [(event.world, event.strategy) for event in self.of(ev.Ranks)]


@pytest.fixture(scope="module")
def ended(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """By name: the same job by one process and by several; those with two numbers were killed in between."""
    home = tmp_path_factory.mktemp("ranks")
    worlds = {
        "full": ["0"],
        "full ddp": ["2!", "4"],
        "full fsdp2": ["2!", "4"],
        "qlora": ["0"],
        "qlora ddp": ["2/2"],
        "qlora fsdp2": ["2"],
        "staged": ["0"],
        "staged ddp": ["2"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALER_WIZARD_HOME", str(home))
        runs = {name: create_run(_spec(name, tiny_model, tiny_data)) for name in worlds}
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.support.forked_ranks"),
                *(f"{runs[name]}={world}" for name, attempts in worlds.items() for world in attempts),
            ],
            env=worker_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    logs = [path for run in runs.values() for path in (*run.glob("worker.log"), *run.glob("ranks/*.log"))]
    assert done.returncode == 0, [done.stderr[-1500:], *(path.read_text()[-1500:] for path in logs)]
    return {name: Ended(run_dir) for name, run_dir in runs.items()}


def _spec(name: str, model: Path, data: Path) -> JobSpec:
    task, _, strategy = name.partition(" ")
    tree = {
        "task": "full" if task == "staged" else task,
        "model": {"source": str(model)},
        "data": {
            "train": str(data / "train.jsonl"),
            "heldout": str(data / "heldout.jsonl"),
            "base_text": "",
            "max_length": 64,
        },
        "training": {
            "max_steps": STEPS,
            "batch_size": 2,
            "gradient_accumulation": 3,
            "learning_rate": 1e-3,
            "max_grad_norm": 0.5,
            "threads": 1,
        },
        "evaluation": {"sample_prompts": ["Say amber"], "max_new_tokens": 4, "every_steps": 3},
        "checkpoint": {"every_steps": 2},
        "distributed": {"strategy": strategy or "auto"},
        **({"adapter": {"rank": 4, "alpha": 8, "dropout": 0.0}} if task == "qlora" else {}),
        **({"stages": GROWTH} if task == "staged" else {}),
    }
    return msgspec.convert(tree, JobSpec)


@pytest.mark.parametrize("name", ["full ddp", "full fsdp2", "qlora ddp", "qlora fsdp2", "staged ddp"])
def test_the_losses_of_several_processes_are_those_of_one(ended: dict[str, Ended], name: str) -> None:
    alone, together = ended[name.split()[0]].steps, ended[name].steps
    assert list(together) == list(alone) == list(range(1, STEPS + 1))
    for step, event in alone.items():
        assert together[step].loss == pytest.approx(event.loss, abs=TOLERANCE)
        assert together[step].grad_norm == pytest.approx(event.grad_norm, rel=1e-4)
        assert together[step].tokens == event.tokens
        assert together[step].trained_tokens == event.trained_tokens
    assert max(event.grad_norm for event in alone.values()) > 0.5, "clipping was at work"
    assert len({event.tokens for event in alone.values()}) > 1, "steps differ in their tokens"


@pytest.mark.parametrize("name", ["full ddp", "full fsdp2", "qlora ddp", "qlora fsdp2"])
def test_what_the_leader_measures_alone_is_what_one_process_measures(ended: dict[str, Ended], name: str) -> None:
    alone, together = ended[name.split()[0]], ended[name]
    wanted = [(event.step, event.loss) for event in alone.of(ev.Eval)]
    found = {event.step: event.loss for event in together.of(ev.Eval)}
    assert [step for step, _ in wanted] == list(found) == [3, STEPS]
    for step, loss in wanted:
        assert found[step] == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_run_goes_on_with_another_number_of_processes(ended: dict[str, Ended], strategy: str) -> None:
    run = ended[f"full {strategy}"]
    assert run.worlds == [(2, strategy), (4, strategy)]
    start = run.of(ev.Start)[-1]
    assert 2 <= start.resumed_step < STEPS
    assert run.of(ev.End)[-1].outcome == "finished"


def test_ranks_that_ran_out_of_memory_compute_the_same_in_pieces(ended: dict[str, Ended]) -> None:
    """The losses are compared above; the checkpoint hands the number of pieces on."""
    found = latest(ended["qlora ddp"].run_dir)
    assert found.path is not None
    assert msgspec.json.decode((found.path / PROGRESS).read_bytes(), type=Progress).pieces == 2


def test_shards_of_a_checkpoint_are_sealed_like_every_file(ended: dict[str, Ended]) -> None:
    found = latest(ended["full fsdp2"].run_dir, required=["sharded/.metadata"])
    assert found.path is not None
    assert found.step == STEPS
    shards = sorted((found.path / "sharded").glob("*.distcp"))
    assert len(shards) == 4, "one of each process"
    shards[-1].write_bytes(shards[-1].read_bytes()[:-1])
    assert latest(ended["full fsdp2"].run_dir, required=["sharded/.metadata"]).step < STEPS


@pytest.mark.parametrize("name", ["full ddp", "full fsdp2", "qlora ddp", "qlora fsdp2"])
def test_the_result_is_a_plain_folder_and_the_same(ended: dict[str, Ended], name: str) -> None:
    from safetensors.torch import load_file

    kind = "model/model.safetensors" if name.startswith("full") else "adapter/adapter_model.safetensors"
    alone = load_file(ended[name.split()[0]].run_dir / "output" / kind)
    together = load_file(ended[name].run_dir / "output" / kind)
    assert together.keys() == alone.keys()
    for tensor, value in alone.items():
        difference = (together[tensor].float() - value.float()).abs().max()
        assert float(difference) < 0.01 * max(float(value.float().abs().max()), 1.0), tensor
