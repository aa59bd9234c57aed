"""A job that mixes adapters: one adapter that peft loads, its worth beside the base's, whatever kills it on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.data.load import prepare
from engine.jobs import events as ev
from engine.jobs.card import Card
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run
from tests.support.forked_workers import ForkedWorkers
from tests.train.conftest import Finished, SpecMaker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mixed")]


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters with different ranks on the tiny model, as peft saves them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = []
    for number, rank in enumerate((4, 3)):
        torch.manual_seed(number)
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        made.append(tmp_path_factory.mktemp("adapters") / f"adapter{number}")
        model.save_pretrained(str(made[-1]))
    return made[0], made[1]


Mix = Callable[..., JobSpec]


@pytest.fixture
def mix(make_spec: SpecMaker, adapters: tuple[Path, Path]) -> Mix:
    """A spec that mixes the two, 0.5 and -0.25."""

    def make(**sections: dict[str, Any]) -> JobSpec:
        tree = msgspec.to_builtins(make_spec())
        rows = [{"path": str(folder), "weight": weight} for folder, weight in zip(adapters, (0.5, -0.25), strict=True)]
        tree |= {"task": "mix", "adapters": rows}
        for name, changes in sections.items():
            tree[name] = {**tree[name], **changes}
        return msgspec.convert(tree, JobSpec)

    return make


def card_of(done: Finished) -> Card:
    return msgspec.json.decode((done.run_dir / "card.json").read_bytes(), type=Card)


def test_a_mix_is_measured_beside_its_base_and_merged(mix: Mix, workers: ForkedWorkers, tiny_model: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from engine.evaluation.rows import score_rows
    from engine.train.environment import Device
    from engine.train.model import ready

    spec = mix(output={"merge": True}, evaluation={"sample_prompts": ["Say dune"]})
    run_dir = create_run(spec)
    done = Finished(run_dir, workers.run(run_dir))
    assert done.end.outcome == "finished", done.log
    card = card_of(done)
    assert card.mix is not None
    assert card.mix.weights == (0.5, -0.25)
    assert card.mix.adapters == ("adapter0", "adapter1")
    assert card.mix.relative_error < 1e-6
    assert card.mix.identity_error is not None
    assert card.mix.identity_error < 1e-5
    assert (card.mix.score_before, card.mix.score) == (card.before.task_loss, card.after.task_loss)
    assert card.before.task_loss != card.after.task_loss
    assert card.samples[0].prompt == "Say dune"
    assert card.merged is not None
    assert card.merged.relative_difference < 0.01, "bfloat16 rounds the merged weights"

    data, device = prepare(spec.data, tiny_model), Device("cpu", "test", torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(done.run_dir / card.adapter.path))
    loss = score_rows(ready(model, base, data.tokenizer, device), data.heldout).loss
    assert card.after.task_loss == pytest.approx(loss, abs=1e-4)


def test_a_mix_that_is_killed_goes_on_to_the_same_end(mix: Mix, workers: ForkedWorkers) -> None:
    spec = mix(mix={"sweep": 12})
    unbroken = create_run(spec)
    whole = Finished(unbroken, workers.run(unbroken))
    assert whole.end.outcome == "finished", whole.log
    run_dir = create_run(spec)
    for phase in ("mixing", "measuring after"):
        _kill_in(workers, run_dir, phase)
        assert not (run_dir / "card.json").exists()
    done = Finished(run_dir, workers.run(run_dir))
    assert done.end.outcome == "finished", done.log
    first, second = card_of(whole), card_of(done)
    assert first.mix is not None
    assert second.mix is not None
    assert second.mix.weights == first.mix.weights
    assert second.mix.swept == first.mix.swept >= 12
    assert second.after.task_loss == first.after.task_loss
    assert (second.mix.check_before, second.mix.check_score) == (first.mix.check_before, first.mix.check_score)
    assert second.mix.check_before is not None, "on rows that the weights were not chosen by"
    weights = [run / "output/adapter/adapter_model.safetensors" for run in (whole.run_dir, run_dir)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert [path.name for path in (run_dir / "output").iterdir()] == ["adapter"]


PAUSE_IN = """
import signal
from engine.jobs import events, journal
write = journal.JournalWriter.write
def write_and_wait(self, event, **how):
    write(self, event, **how)
    if isinstance(event, events.Phase) and event.name == "{phase}":
        signal.pause()
journal.JournalWriter.write = write_and_wait
"""
"""Some phases are over sooner than a busy machine looks."""


def _kill_in(workers: ForkedWorkers, run_dir: Path, phase: str) -> None:
    """Start the worker and kill it with -9 in its first moments of a phase, which it does not leave before."""
    workers.kill_when(
        run_dir, lambda event: isinstance(event, ev.Phase) and event.name == phase, PAUSE_IN.format(phase=phase)
    )
