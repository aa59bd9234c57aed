"""Several processes compute the steps of one: equal losses with copies and with shards, and after a resume on another
number of processes."""

from __future__ import annotations

import random
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
from engine.jobs.spec import JobSpec, SourceSection, StreamSection
from engine.jobs.spec_stop import StopSection
from engine.jobs.store import create_run
from engine.train.checkpointing import PROGRESS, Progress
from tests.train.conftest import write_jsonl
from tests.train.spawn import worker_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("ranks"),  # the runs are made once and compared many times
]

STEPS = 6
TOLERANCE = 1e-5
BAD_ROW = 61
"""Text that no model expects, in the middle of text that is learned in a few steps: step `LEAP` meets it."""
LEAP = 7
STREAMED_STEPS = 8
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
        "staged ddp": ["2!/2", "2"],
        "streamed": ["0"],
        "streamed ddp": ["2"],
        "streamed fsdp2": ["2"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALER_WIZARD_HOME", str(home))
        write_jsonl(home / "text.jsonl", _text_that_leaps())
        runs = {name: create_run(_spec(name, tiny_model, tiny_data, home)) for name in worlds}
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


def _text_that_leaps() -> list[dict[str, str]]:
    """Rows of a few tokens, all alike but for one as long as a step."""
    draw = random.Random(3)
    rows = [{"text": "amber " * 10} for _ in range(300)]
    rows[BAD_ROW] = {"text": "".join(chr(draw.randint(0x4E00, 0x9FA5)) for _ in range(50))}
    return rows


def _spec(name: str, model: Path, data: Path, home: Path) -> JobSpec:
    task, _, strategy = name.partition(" ")
    rows = 3 if task == "staged" else 2  # so that the number of pieces makes a difference to each rank's share
    tree = {
        "task": {"staged": "full", "streamed": "lora"}.get(task, task),
        "model": {"source": str(model)},
        "data": {
            "train": str(data / "train.jsonl"),
            "heldout": str(data / "heldout.jsonl"),
            "base_text": "",
            "max_length": 64,
        },
        "training": {
            "max_steps": STEPS,
            "batch_size": rows,
            "gradient_accumulation": 6 // rows,
            "learning_rate": 1e-3,
            "max_grad_norm": 0.5,
            "threads": 1,
        },
        "evaluation": {"sample_prompts": ["Say amber"], "max_new_tokens": 4, "every_steps": 3},
        "checkpoint": {"every_steps": 2},
        "distributed": {"strategy": strategy or "auto"},
        **({"adapter": {"rank": 4, "alpha": 8, "dropout": 0.0}} if task in ("qlora", "streamed") else {}),
        **({"stages": GROWTH} if task == "staged" else {}),
    }
    spec = msgspec.convert(tree, JobSpec)
    return _streamed(spec, home) if task == "streamed" else spec


def _streamed(spec: JobSpec, home: Path) -> JobSpec:
    """The text that leaps, learned in a few steps."""
    return msgspec.structs.replace(
        spec,
        data=msgspec.structs.replace(spec.data, train="demo", heldout="", max_length=32),
        sources=(SourceSection(name="text", path=str(home / "text.jsonl")),),
        stream=StreamSection(
            cache=str(home / "cache"), deduplicate="off", shuffle_documents=0, heldout_share=0.0
        ),
        training=msgspec.structs.replace(
            spec.training, max_steps=STREAMED_STEPS, batch_size=2, gradient_accumulation=2, learning_rate=1e-2,
            schedule="constant", warmup_ratio=0.0,
        ),
        stop=StopSection(spike_factor=1.5, spike_window=4),
    )  # fmt: skip


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


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_after_a_leap_of_the_loss_the_steps_of_several_processes_are_those_of_one(
    ended: dict[str, Ended], strategy: str
) -> None:
    alone, together = ended["streamed"], ended[f"streamed {strategy}"]
    found = [[(one.trouble, one.step, one.back_to_step) for one in run.of(ev.Recovery)] for run in (alone, together)]
    assert found == [[("loss spike", LEAP, LEAP - 1)]] * 2
    assert list(together.steps) == list(alone.steps) == list(range(1, STREAMED_STEPS + 1))
    for step, event in alone.steps.items():
        assert together.steps[step].loss == pytest.approx(event.loss, abs=TOLERANCE)
        assert together.steps[step].learning_rate == event.learning_rate == (0.01 if step < LEAP else 0.005)
        assert together.steps[step].tokens == event.tokens


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


def test_pieces_of_an_earlier_stage_are_those_of_every_rank_in_a_later_one(ended: dict[str, Ended]) -> None:
    """Killed after its first stage and gone on with by a runner that knows of no pieces."""
    run = ended["staged ddp"]
    assert [world for world, _ in run.worlds] == [2, 2]
    assert run.of(ev.Start)[-1].resumed_step >= 2
    found = latest(run.run_dir)
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
