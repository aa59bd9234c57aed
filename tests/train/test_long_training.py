"""Jobs with [context], by the real worker: killed and resumed without a trace, and results that carry the window."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from engine.context.certificate import read_certificate
from engine.jobs import events as ev
from engine.jobs.card import Card
from engine.jobs.journal import JournalTail
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run
from engine.train.merge import merge_run
from tests.train.conftest import Finished, RunWorker, SpecMaker
from tests.train.spawn import worker_command, worker_environment
from tests.train.test_resume_is_exact import adapter_bytes, losses

pytestmark = pytest.mark.slow
WINDOW, TARGET = 128, 512
KILLED_AT = 5
PATIENCE_SECONDS = 600


def long_spec(make_spec: SpecMaker, long_text: Path, task: str = "lora", **sections: dict[str, Any]) -> JobSpec:
    """YaRN from 128 to 512 on texts; nothing measured that costs time."""
    tree: dict[str, dict[str, Any]] = {
        "data": {"train": str(long_text), "heldout": "", "heldout_fraction": 0.1, "max_length": TARGET},
        "context": {"length": TARGET, "method": "yarn"},
        "training": {"max_steps": 8, "batch_size": 1, "learning_rate": 3e-3},
        "evaluation": {"lengths": [64], "needle_prompts": 0, "exact_match_rows": 0},
        "checkpoint": {"every_steps": 3},
    }
    for name, changes in sections.items():
        tree.setdefault(name, {}).update(changes)
    return make_spec(task, **tree)


def kill_after(run_dir: Path, steps: int) -> None:
    """Start the worker and kill it with -9 when so many steps are written down."""
    tail = JournalTail(run_dir)
    process = subprocess.Popen(
        worker_command(run_dir), env=worker_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seen = 0
    while process.poll() is None and seen < steps:
        seen += sum(isinstance(event, ev.Step) for event in tail.read_new())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert seen >= steps


def test_a_killed_and_resumed_job_is_the_job_it_would_have_been(
    make_spec: SpecMaker, run_worker: RunWorker, long_text: Path
) -> None:
    """Everything at once: a 4-bit base, mixed windows, steps by tokens, norms and embeddings, losses in pieces."""
    spec = long_spec(
        make_spec,
        long_text,
        "qlora",
        context={"window": "mixed", "train_embeddings": True},
        training={
            "tokens_per_step": 700,
            "gradient_checkpointing": True,
            "offload_activations": True,
            "loss_chunk_tokens": 64,
        },
        output={"merge": True},
    )
    unbroken = run_worker(spec, timeout_seconds=PATIENCE_SECONDS)
    assert unbroken.end.outcome == "finished", unbroken.log[-3000:]
    broken = create_run(spec)
    kill_after(broken, KILLED_AT)
    resumed = run_worker(broken, timeout_seconds=PATIENCE_SECONDS)
    assert resumed.end.outcome == "finished", resumed.log[-3000:]
    assert len(resumed.of(ev.Start)) == 2
    assert losses(broken) == losses(unbroken.run_dir)
    assert adapter_bytes(resumed) == adapter_bytes(unbroken)
    check_outputs(unbroken)


def check_outputs(done: Finished) -> None:
    """Everything a run leaves says which window it is for, and none of it is short without a word."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter, merged = done.run_dir / "output/adapter", done.run_dir / "output/merged"
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(done.run_dir / "context/model")
    assert (adapter / "config.json").read_bytes() == (merged / "config.json").read_bytes()
    assert "longer window" in (adapter / "README.md").read_text()

    base = AutoModelForCausalLM.from_pretrained(named, dtype=torch.float32)
    assert base.config.max_position_embeddings == TARGET
    expected = PeftModel.from_pretrained(base, str(adapter)).eval()
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    assert whole.config.rope_parameters["rope_type"] == "yarn"
    assert torch.equal(whole.model.rotary_emb.inv_freq, base.model.rotary_emb.inv_freq)
    ids = torch.arange(300)[None] % 380
    with torch.no_grad():
        first, second = expected(input_ids=ids).logits, whole(input_ids=ids).logits
    assert float((first - second).abs().mean()) < 0.05 * float(first.std()), "as far apart as bfloat16 rounds"

    certificate = read_certificate(merged)
    assert certificate is not None
    assert certificate.training is not None
    assert (certificate.links, certificate.training.steps) == ("merged", 8)
    card = msgspec.json.decode((done.run_dir / "card.json").read_bytes(), type=Card)
    assert card.merged is not None
    assert card.lengths_before is not None
    assert card.lengths_after is not None
    assert (card.lengths_before.window, card.lengths_after.window) == (WINDOW, TARGET)
    assert card.lengths_after.short is not None
    assert card.before is not None
    assert card.lengths_after.perplexity[0].perplexity < card.lengths_before.perplexity[0].perplexity
    assert {reader.program for reader in card.readers} >= {"transformers 5", "vLLM", "llama.cpp"}


def test_the_gate_ends_a_job_that_loses_short_text_and_keeps_the_last_good_adapter(
    make_spec: SpecMaker, run_worker: RunWorker, long_text: Path, tmp_path: Path
) -> None:
    """Training on one word over and over, with a rate that is far too high, makes other text worse soon."""
    rows = tmp_path / "one-word.jsonl"
    rows.write_text("".join(json.dumps({"text": "dune " * (100 + 6 * number)}) + "\n" for number in range(12)))
    spec = long_spec(
        make_spec,
        long_text,
        data={"train": str(rows)},
        training={"max_steps": 40, "learning_rate": 0.05, "warmup_ratio": 0.3},
        context={"max_short_loss": 0.1, "window": "pose"},
        evaluation={"every_steps": 1, "lengths": []},
        checkpoint={"every_steps": 100},
    )
    done = run_worker(spec, timeout_seconds=PATIENCE_SECONDS)
    assert done.end.outcome == "stopped", done.log[-3000:]
    assert all(step.tokens <= WINDOW for step in done.of(ev.Step))
    assert any(f"Rows longer than {WINDOW} tokens" in event.message for event in done.of(ev.Warn))
    assert "Short text is +" in done.end.what
    good = done.end.step
    assert f"The result is that of step {good}" in done.end.what
    last = max(event.step for event in done.of(ev.Step))
    assert 1 <= good == last - 1, "the first evaluation over the bound ends it"
    kept = (done.run_dir / "good/adapter_model.safetensors").read_bytes()
    assert adapter_bytes(done) == kept
    assert not (done.run_dir / "card.json").exists()

    merged = json.loads((done.run_dir / merge_run(done.run_dir).path / "config.json").read_text())
    assert merged["max_position_embeddings"] == TARGET
    assert merged["rope_parameters"]["rope_type"] == "yarn"


def test_extending_alone_is_a_job_with_a_card(make_spec: SpecMaker, run_worker: RunWorker) -> None:
    spec = make_spec(
        "extend", context={"length": 256, "method": "ntk"}, evaluation={"needle_prompts": 0, "lengths": [64, 256]}
    )
    done = run_worker(spec, timeout_seconds=PATIENCE_SECONDS)
    assert done.end.outcome == "finished", done.log[-3000:]
    model = done.run_dir / "output/model"
    assert json.loads((model / "config.json").read_text())["max_position_embeddings"] == 256
    card = msgspec.json.decode((done.run_dir / "card.json").read_bytes(), type=Card)
    assert card.task == "extend"
    assert card.adapter.kind == "model"
    assert card.lengths_after is not None
    assert card.lengths_after.window == 256
    assert card.before is None
    assert run_worker(done.run_dir).end.outcome == "finished", "a second attempt finds everything done"
