"""A real lab: two arms with one budget, one of them from random weights in a grown shape; and what "random" means."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engine.jobs.store import load_run_spec
from engine.lab.folder import REPORT_PAGE, folder_of
from engine.lab.lab_file import load_lab
from engine.lab.report import Report
from engine.train.random_model import start_as_identity, write_random_model
from tests.support.cli import cli

LAB = """\
name = "tiny"
title = "Tiny"
seeds = [1]
points = 2

[budget]
kind = "flops"
amount = 1.5e9

[spec]
task = "full"
model.source = "{model}"
data = {{ train = "{data}/train.jsonl", heldout = "{data}/heldout.jsonl", base_text = "", max_length = 64 }}
training = {{ batch_size = 2, learning_rate = 1e-2, threads = 1 }}
evaluation = {{ exact_match_rows = 0, max_new_tokens = 4 }}

[[goals]]
name = "learn"
figure = "task_loss"

[[arms]]
name = "lora"
spec.task = "lora"
spec.adapter.rank = 4

[[arms]]
name = "random, deeper"
start = "random"
initialisation = "identity"
spec.expansion = {{ layers = 3, operators = ["layers=identity"] }}
"""


@pytest.mark.slow
def test_two_arms_spend_the_same_and_end_in_one_report(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(LAB.format(model=tiny_model, data=tiny_data))
    done = cli("lab", str(path), "--json", seconds=600)
    assert done.code == 0, done.text
    report = msgspec.json.decode(done.out, type=Report)
    assert report.complete
    lora, random = report.runs
    step = {arm.name: arm.flops / arm.steps for arm in report.arms}
    assert abs(lora.after["flops"] - 1.5e9) <= step["lora"] / 2
    assert abs(random.after["flops"] - 1.5e9) <= step["random, deeper"] / 2
    assert lora.steps > random.steps > 2
    assert random.curve[-1].loss < random.curve[0].loss
    assert random.parameters > lora.parameters - lora.trainable_parameters, "it has the grown shape"
    folder = folder_of(load_lab(path))
    assert "<svg" in (folder.path / REPORT_PAGE).read_text()
    spec = load_run_spec(folder.runs()[("random, deeper", 1)])
    assert json.loads((Path(spec.model.source) / "config.json").read_text())["num_hidden_layers"] == 3
    again = cli("lab", str(path), "--report")
    assert "Not decided: one seed gives no interval" in again.out


@pytest.mark.slow
def test_equal_seeds_give_equal_weights_and_other_seeds_others(tiny_model: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    for name, seed, way in (("a", 1, "library"), ("b", 1, "library"), ("c", 2, "library"), ("d", 1, "identity")):
        write_random_model(config, tiny_model, tmp_path / name, seed, way)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abcd"}
    assert weights["a"] == weights["b"]
    assert weights["a"] != weights["c"]
    assert weights["a"] != weights["d"]
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tiny_model / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_layers_that_start_as_the_identity_leave_the_stream_alone_and_can_learn(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    start_as_identity(model)
    ids = torch.arange(1, 9)[None]  # (1, T)
    out = model(input_ids=ids, labels=ids, output_hidden_states=True)
    embedded = model.get_input_embeddings()(ids)
    assert embedded.std().item() == pytest.approx(1.0, abs=0.2)
    assert torch.equal(out.hidden_states[1], embedded)
    out.loss.backward()
    writers = [name for name, p in model.named_parameters() if name.endswith(("o_proj.weight", "down_proj.weight"))]
    assert len(writers) == 4
    moving = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert set(writers) <= moving
