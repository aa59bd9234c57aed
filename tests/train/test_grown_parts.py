"""The optimizer of grown parameters, which of them are new, and what frozen layers cost: on tiny models, in process."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from engine.advise.growth_plan import plan_growth, shape_of
from engine.expansion.certificate import read_certificate
from engine.jobs.spec import ExpansionSection, JobSpec, Schedule, Task, TrainingSection
from engine.models.headers import read_headers
from engine.schedule.rates import rate_curve, unfreeze_step
from engine.surgery.expand import ExpandRequest, expand
from engine.train.carried_moments import grow_moments, read_moments, write_moments
from engine.train.environment import Device
from engine.train.grown_model import GrownModel, load_grown
from engine.train.grown_optimizer import GrownAdamW, parameter_groups
from engine.train.model_output import write_model
from engine.train.parts import Kind, Part, parts_of

CPU = Device("cpu", "this processor", torch.float32)
SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def saved(folder: Path, model_type: str, **settings: Any) -> Path:
    """A random model of a family as a plain folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SMALL, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def grown(source: Path, out: Path, **sizes: Any) -> Path:
    plan = plan_growth(ExpansionSection(**sizes), shape_of(source)).choice.plan
    expand(ExpandRequest(source, out, plan, proof=False), lambda _: None)
    return out


def loaded(folder: Path, task: Task, **training: Any) -> GrownModel:
    spec = JobSpec(task=task, training=TrainingSection(**training))
    return load_grown(spec, folder, CPU, read_certificate(folder))


def loss_of(model: Any) -> torch.Tensor:
    tokens = torch.arange(3, 51).reshape(2, 24) % 96
    loss: torch.Tensor = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    return loss


# ── the optimizer ─────────────────────────────────────────────────────────────────────────────────────────────────
def mixed_part() -> Part:
    rows, columns = torch.zeros(6, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    rows[4:] = True
    columns[3:] = True
    return Part(Kind.MIXED, (rows, columns))


def optimizer_for(parameter: nn.Parameter, part: Part, training: TrainingSection) -> GrownAdamW:
    groups = parameter_groups([("w", parameter)], {"w": part}, {"w"}, training, first=Kind.NEW)
    return GrownAdamW(groups, {id(parameter): part}, training.learning_rate)


def test_with_one_rate_a_widened_matrix_steps_as_torch_steps_it() -> None:
    torch.manual_seed(1)
    start = torch.randn(6, 4)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    training = TrainingSection(learning_rate=1e-2, weight_decay=0.1)
    optimizer = optimizer_for(ours, mixed_part(), training)
    reference = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1)
    for _ in range(20):
        gradient = torch.randn(6, 4)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_entries_that_joined_late_step_as_if_their_training_had_just_begun() -> None:
    """A shared step count would make their first step three times too long."""
    parameter = nn.Parameter(torch.zeros(6, 4))
    optimizer = optimizer_for(parameter, mixed_part(), TrainingSection(learning_rate=1e-2, weight_decay=0.0))
    optimizer.old_waits = True
    for _ in range(50):
        parameter.grad = torch.ones(6, 4)
        optimizer.step()
    old = ~mixed_part().new_entries(parameter)
    assert torch.equal(parameter[old], torch.zeros(12)), "waiting means not moving at all"
    optimizer.old_waits = False
    parameter.grad = torch.ones(6, 4)
    optimizer.step()
    torch.testing.assert_close(parameter[old], torch.full((12,), -1e-2))


def test_the_state_of_a_widened_matrix_survives_a_checkpoint() -> None:
    torch.manual_seed(2)
    training = TrainingSection(learning_rate=1e-2)
    straight, resumed = nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(6, 4))
    first = optimizer_for(straight, mixed_part(), training)
    gradients = [torch.randn(6, 4) for _ in range(4)]
    for gradient in gradients[:2]:
        straight.grad = gradient.clone()
        first.step()
    resumed.data = straight.data.clone()
    second = optimizer_for(resumed, mixed_part(), training)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for gradient in gradients[2:]:
        straight.grad, resumed.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    assert torch.equal(straight, resumed)


def test_only_new_parameters_warm_up_again() -> None:
    curve = rate_curve(TrainingSection(warmup_ratio=0.0, new_warmup_ratio=0.2), 100)
    old, new = curve.factor, curve.new_factor
    assert old(0) == 1.0
    assert [new(0), new(10)] == [0.0, 0.5]
    assert new(20) == pytest.approx(1.0)
    assert old(99) < 0.01
    assert new(99) < 0.01


def test_old_entries_join_with_a_warm_up_of_their_own_under_the_common_decay() -> None:
    old = rate_curve(TrainingSection(schedule=Schedule.LINEAR, warmup_ratio=0.1), 100, old_from=40).factor
    assert [old(0), old(39), old(40)] == [0.0, 0.0, 0.0]
    assert 0 < old(43) < old(46) == pytest.approx(1 - 36 / 90)


@pytest.mark.parametrize(("after", "step"), [(0.5, 50), (30.0, 30), (0.0, 100), (500.0, 100)])
def test_unfreezing_is_a_share_or_a_number_of_steps(after: float, step: int) -> None:
    assert unfreeze_step(TrainingSection(unfreeze_after=after), 100) == step


# ── what is new ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_experts_fused_in_memory_are_told_apart_by_what_the_files_say(tmp_path: Path) -> None:
    settings = {"num_local_experts": 4, "num_experts_per_tok": 2}
    folder = grown(saved(tmp_path / "base", "mixtral", **settings), tmp_path / "wide", ffn=96, hidden=48, heads=6)
    certificate = read_certificate(folder)
    assert certificate is not None
    parts = parts_of(folder, certificate)
    fused = next(name for name in parts if name.endswith("experts.gate_up_proj"))
    part = parts[fused]
    assert part.kind is Kind.MIXED
    from engine.proof.skeleton import empty_model

    shape = empty_model(folder, torch.bfloat16).get_parameter(fused).shape
    flags = part.new_entries(torch.zeros(shape))
    entry = certificate.tensors[next(name for name in certificate.tensors if name.endswith("experts.0.w1.weight"))]
    one = torch.zeros(entry.shape, dtype=torch.bool)
    for axis, spans in enumerate(entry.new_spans):
        for begin, end in spans:
            one.narrow(axis, begin, end - begin).fill_(True)
    assert flags.sum().item() == 4 * 2 * one.sum().item()
    assert part.dense is None, "a union over axes says it all"


@pytest.mark.slow
def test_a_tied_head_is_one_parameter_that_was_widened(tmp_path: Path) -> None:
    folder = grown(saved(tmp_path / "base", "llama", tie_word_embeddings=True), tmp_path / "wide", hidden=48, heads=6)
    parts = parts_of(folder, read_certificate(folder))
    assert "lm_head.weight" not in parts
    assert parts["model.embed_tokens.weight"].kind is Kind.MIXED


# ── frozen layers and first steps ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_frozen_layers_below_the_first_new_one_are_not_run_again_in_the_backward_pass(tmp_path: Path) -> None:
    folder = grown(saved(tmp_path / "base", "llama", num_hidden_layers=4), tmp_path / "deep", layers=6)
    certificate = read_certificate(folder)
    assert certificate is not None
    first_new = min(int(n.split(".")[2]) for n, e in certificate.tensors.items() if e.new and ".layers." in n)
    assert first_new > 0
    model = loaded(folder, Task.NEW_BLOCKS, gradient_checkpointing=True).model
    assert attention_calls(model) == [1] * first_new + [2] * (6 - first_new)
    model.enable_input_require_grads()  # what transformers does by itself
    assert attention_calls(model) == [2] * 6


def attention_calls(model: Any) -> list[int]:
    """How often each layer's attention runs in one forward and backward pass."""
    layers = model.model.layers
    calls = [0] * len(layers)

    def counts(index: int) -> Any:
        return lambda *_: calls.__setitem__(index, calls[index] + 1)

    hooks = [layer.self_attn.register_forward_hook(counts(index)) for index, layer in enumerate(layers)]
    model.train()
    loss_of(model).backward()
    for hook in hooks:
        hook.remove()
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "olmo2", "glm4"])
def test_the_first_step_of_new_blocks_does_not_spike_on_post_norm_nets(family: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"gemma2": {"query_pre_attn_scalar": 8}, "glm4": {"partial_rotary_factor": 0.5}}
    folder = grown(saved(tmp_path / "base", family, **settings.get(family, {})), tmp_path / "deep", layers=4)
    model = loaded(folder, Task.NEW_BLOCKS)
    optimizer = torch.optim.AdamW([parameter for _, parameter in model.learning()], lr=2e-4)
    model.model.train()
    before = loss_of(model.model)
    before.backward()
    optimizer.step()
    after = loss_of(model.model)
    assert after.item() == pytest.approx(before.item(), rel=0.03)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 4


# ── what is written ───────────────────────────────────────────────────────────────────────────────────────────────
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.slow
def test_a_trained_mixture_is_written_as_its_files_are_and_read_back_equal(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = saved(tmp_path / "base", "mixtral", **MIXTURE)
    model = loaded(folder, Task.FULL)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    write_model(tmp_path / "out", folder, model, shard_bytes=50_000, full_precision=True)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    before = dict(model.model.named_parameters())
    assert {name for name, _ in again.named_parameters()} == set(before)
    assert all(torch.equal(parameter, before[name]) for name, parameter in again.named_parameters())


@pytest.mark.slow
def test_moments_of_fused_experts_survive_being_written_and_grow_with_the_model(tmp_path: Path) -> None:
    folder = saved(tmp_path / "base", "mixtral", **MIXTURE)
    model = loaded(folder, Task.FULL)
    optimizer = stepped(model)
    write_moments(tmp_path / "moments", folder, model, optimizer)
    states = read_moments(tmp_path / "moments", model, folder)
    for name, parameter in model.learning():
        for kind in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(states[name][kind], optimizer.state[parameter][kind]), name
        assert states[name]["step"] == 1

    wide = grown(folder, tmp_path / "wide", ffn=96)
    certificate = read_certificate(wide)
    assert certificate is not None
    grow_moments(tmp_path / "moments", tmp_path / "more", folder, certificate)
    larger = loaded(wide, Task.FULL)
    after = read_moments(tmp_path / "more", larger, wide)
    name = next(name for name in after if name.endswith("experts.down_proj"))
    new = larger.parts[name].new_entries(after[name]["exp_avg"])
    assert not after[name]["exp_avg"][new].any()
    assert torch.equal(after[name]["exp_avg"][~new], states[name]["exp_avg"].flatten())
    assert after[name]["new_step"] == 0


def stepped(model: GrownModel) -> GrownAdamW:
    """An optimizer after one real step."""
    named = list(model.learning())
    groups = parameter_groups(named, model.parts, {name for name, _ in named}, TrainingSection(), first=Kind.OLD)
    optimizer = GrownAdamW(groups, {}, 1e-3)
    model.model.train()
    loss_of(model.model).backward()
    for _, parameter in named:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["new_blocks", "qlora_grown"])
def test_what_learns_is_float32_beside_frozen_weights_in_16_or_4_bits(kind: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "base", "llama", hidden_size=64)
    folder = grown(source, tmp_path / "deep", layers=3)
    spec = JobSpec(task=Task(kind))
    half = Device("cpu", "this processor", torch.bfloat16)
    model = load_grown(spec, folder, half, read_certificate(folder))
    learning = dict(model.learning())
    assert {parameter.dtype for parameter in learning.values()} == {torch.float32}
    frozen = {name: p for name, p in model.model.named_parameters() if name not in learning}
    packed = {name for name, parameter in frozen.items() if type(parameter).__name__ == "Params4bit"}
    assert all(parameter.dtype == torch.bfloat16 for name, parameter in frozen.items() if name not in packed)
    old_linears = {name for name in frozen if "_proj" in name}
    assert packed == (old_linears if kind == "qlora_grown" else set())
    stored = {tensor.name: tensor for tensor in read_headers(folder).tensors}
    for name, parameter in learning.items():
        assert torch.equal(parameter, read(stored[name].file, name)), "no digit is lost on the way in"
    model.model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model.model)
    loss.backward()
    assert all(parameter.grad is None for parameter in frozen.values())
    closing = next(parameter for name, parameter in learning.items() if "down_proj" in name)
    assert closing.grad is not None
    assert closing.grad.isfinite().all()
    assert closing.grad.any()


def read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        value: torch.Tensor = file.get_tensor(name)
    return value
