"""What only an accelerator can show; `make gpu-check` runs these, and they say so when there is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.jobs.card_io import read_card
from engine.jobs.spec import (
    CheckpointSection,
    Dtype,
    EvaluationSection,
    JobSpec,
    ModelSection,
    Optimizer,
    TrainingSection,
)
from engine.jobs.spec_toml import dump_spec
from engine.jobs.state import RunPhase
from engine.jobs.store import Follower, find_run

ROOT = Path(__file__).resolve().parents[2]


def has_cuda() -> bool:
    """Asked in a process of its own: initialising CUDA here would be inherited by nothing but this one."""
    code = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


pytestmark = [pytest.mark.gpu]


@pytest.fixture(autouse=True, scope="module")
def _cuda() -> None:
    if not has_cuda():
        pytest.skip("no CUDA device here: these checks need one")


def scaler(*words: str) -> Any:
    """A subcommand's JSON."""
    result = subprocess.run(
        [sys.executable, "-m", "scaler_tui", *words, "--json"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


def demo_spec(optimizer: Optimizer = Optimizer.ADAMW) -> JobSpec:
    """A short QLoRA of the demo with the planned prediction in it."""
    planned = msgspec.convert(scaler("plan", "demo", "--approach", "qlora"), JobSpec)
    return msgspec.structs.replace(
        planned,
        training=TrainingSection(max_steps=60, batch_size=8, learning_rate=3e-3, optimizer=optimizer, dtype=Dtype.AUTO),
        evaluation=EvaluationSection(every_steps=20, sample_prompts=("demo",)),
        checkpoint=CheckpointSection(every_steps=20),
    )


def run_to_end(spec: JobSpec, folder: Path) -> Path:
    """Start detached, wait for the end, return the run directory."""
    path = folder / "spec.toml"
    path.write_text(dump_spec(spec))
    run_dir = find_run(scaler("start", str(path))["id"])
    follower = Follower(run_dir)
    deadline = time.monotonic() + 300
    while (state := follower.poll()).state.is_live:
        assert time.monotonic() < deadline, state
        time.sleep(0.2)
    assert state.state is RunPhase.FINISHED, (state.what, state.cause)
    return run_dir


def test_doctor_names_the_card_with_free_and_total_memory() -> None:
    report = scaler("doctor")
    (gpu, *_) = report["gpus"]
    assert 0 < gpu["free_vram_bytes"] <= gpu["vram_bytes"]
    assert gpu["source"] in ("nvml", "nvidia-smi")


@pytest.mark.parametrize("optimizer", [Optimizer.ADAMW, Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT])
def test_qlora_learns_on_the_card_with_every_optimizer(optimizer: Optimizer, tmp_path: Path) -> None:
    card = read_card(run_to_end(demo_spec(optimizer), tmp_path))
    assert "cuda" in card.device.lower() or "nvidia" in card.device.lower()
    assert card.after.task_loss < card.before.task_loss / 2


def test_measured_memory_lies_in_the_predicted_range(tmp_path: Path) -> None:
    card = read_card(run_to_end(demo_spec(), tmp_path))
    (memory,) = [line for line in card.predicted if line.name == "memory"]
    assert memory.low <= memory.measured <= memory.high


def test_a_killed_worker_resumes_on_the_card(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(dump_spec(demo_spec()))
    run_dir = find_run(scaler("start", str(path))["id"])
    follower = Follower(run_dir)
    deadline = time.monotonic() + 300
    while (state := follower.poll()).step < 25:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(state.worker_pid, signal.SIGKILL)
    while follower.poll().state.is_live:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    scaler("resume", run_dir.name)
    while (state := follower.poll()).state is not RunPhase.FINISHED:
        assert time.monotonic() < deadline, state
        time.sleep(0.2)
    assert state.attempt == 2


def random_model(folder: Path) -> Path:
    """A Llama of 0.3 billion random 16-bit weights with the demo's tokenizer."""
    code = (
        "import sys, shutil, torch, transformers; from engine.resources import demo_dir; from pathlib import Path\n"
        "config = transformers.LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=16,"
        " num_attention_heads=16, num_key_value_heads=4, vocab_size=2048, max_position_embeddings=2048)\n"
        "torch.manual_seed(0)\n"
        "model = transformers.LlamaForCausalLM(config).to(torch.bfloat16); model.save_pretrained(sys.argv[1])\n"
        "for path in (demo_dir() / 'model').iterdir():\n"
        "    if 'token' in path.name or 'template' in path.name: shutil.copy(path, sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=ROOT)
    return folder


def test_a_probe_promises_the_run_that_follows_it(tmp_path: Path) -> None:
    planned = demo_spec()
    spec = msgspec.structs.replace(
        planned,
        model=ModelSection(source=str(random_model(tmp_path / "model"))),
        data=msgspec.structs.replace(planned.data, max_length=1024),
        training=msgspec.structs.replace(planned.training, batch_size=4, max_steps=60, gradient_checkpointing=True),
        evaluation=EvaluationSection(exact_match_rows=8),
    )
    path = tmp_path / "spec.toml"
    path.write_text(dump_spec(spec))
    probed = scaler("estimate", str(path), "--probe")
    assert probed["origin"] == "probe"
    lines = {line.name: line for line in read_card(run_to_end(spec, tmp_path)).predicted}
    print({name: (line.likely, line.measured, line.origin) for name, line in lines.items()})
    assert lines["memory"].likely == pytest.approx(lines["memory"].measured, rel=0.05)
    assert lines["speed"].likely == pytest.approx(lines["speed"].measured, rel=0.10)
