"""Trains the demo model from random weights: key-value pairs in growing windows, then every skill.

Owns the architecture, the optimiser and the checkpoint of an interrupted training. It must not know what the chats
say (`text_generator.py`) or how the result is scored (`evaluate_model.py`). The order of the stages is the point:
plain language-model training on text with keys in it only learns to name one of the keys that are present.

    python assets/demo/train_model.py --checkpoint-folder /some/scratch/folder

Run again with the same folder to go on after an interruption; batches depend on the step number only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from train_tokenizer import CONTEXT_TOKENS, MODEL_FOLDER, VOCABULARY_COUNT
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from windows import KINDS, STAGES, ChatEncoder, make_batch

WARMUP_STEPS = 30
MIXED_FROM = list(STAGES).index("mixed")


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Everything that decides the result, except the speed of the machine."""

    seed: int = 1
    stage_steps: tuple[int, ...] = (150, 100, 100, 650, 1800)
    """Steps of each of the stages in `windows.STAGES`."""
    matrix_learning_rate: float = 5e-3
    """Peak for the projections of the layers (Muon, scaled to the update size of AdamW)."""
    other_learning_rate: float = 3e-3
    """Peak for embeddings, output head and norms (AdamW)."""

    @property
    def total_steps(self) -> int:
        return sum(self.stage_steps)

    def stage(self, step: int) -> str:
        ends = itertools.accumulate(self.stage_steps)
        return next(name for name, end in zip(STAGES, ends, strict=True) if step < end)

    def rate_share(self, step: int) -> float:
        """Share of the peak learning rates: linear warm-up, then constant; cosine to 2 % once everything is mixed."""
        mixed_steps = sum(self.stage_steps[MIXED_FROM:])
        done = max(0, step - (self.total_steps - mixed_steps)) / mixed_steps
        return min(1.0, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def demo_config() -> LlamaConfig:
    """8 layers of 192, 6 heads over 2 key-value heads; every projection divides into 4-bit blocks of 64."""
    return LlamaConfig(
        vocab_size=VOCABULARY_COUNT,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def initialise(model: LlamaForCausalLM) -> None:
    """Every layer starts as the identity on embeddings of unit size.

    The library's default (0.02 everywhere) suits wide models; at this width the first layers' random outputs would
    be several times larger than the embeddings and drown them (loss on key-value pairs at step 100: 2.7 against 3.5).
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                parameter.normal_(0.0, 1.0)
            elif "o_proj" in name or "down_proj" in name:
                parameter.zero_()
            elif "layers" in name and parameter.dim() == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)


class BatchedMuon(torch.optim.Optimizer):
    """Muon (momentum, then the nearest orthogonal matrix as the update) over all matrices of one shape at once.

    Source: K. Jordan et al., Muon, 2024; update scaled by 0.2 sqrt(longer side) to the size of AdamW's. torch's own
    class works matrix by matrix, which at this size spends longer on calls than on arithmetic.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        for parameter in parameters:
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                gradients = [parameter.grad for parameter in parameters]
                buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                looked_ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])
                updates = orthogonal(torch.stack(looked_ahead))
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest orthogonal matrices; (N, R, C) in and out."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16().contiguous()
    for _ in range(5):
        gram = torch.bmm(x, x.mT)
        x = 3.4445 * x + torch.bmm(-4.7750 * gram + 2.0315 * torch.bmm(gram, gram), x)
    return (x.mT if tall else x).float()


class Training:
    """Model, optimiser and step number, with exact save and load."""

    def __init__(self, plan: TrainingPlan) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        config = demo_config()
        config._attn_implementation = "eager"  # faster than the fused CPU kernel at this size once compiled
        self.model = LlamaForCausalLM(config)
        initialise(self.model)
        self.step = 0
        self.seconds = 0.0
        names = self._names()
        matrices = [p for name, p in names.items() if p.dim() == 2 and "layers" in name]
        others = [p for name, p in names.items() if p.dim() != 2 or "layers" not in name]
        muon = BatchedMuon(matrices, plan.matrix_learning_rate)
        adamw = torch.optim.AdamW(others, plan.other_learning_rate, betas=(0.9, 0.97), weight_decay=0.0, fused=True)
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (muon, adamw)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]

    def optimizer_state(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        """The tensors one parameter's optimiser keeps for it."""
        return next(o.state[parameter] for o in self.optimizers if parameter in o.state)

    def set_learning_rates(self) -> None:
        share = self.plan.rate_share(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share

    def _names(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.model.named_parameters())

    def save(self, folder: Path) -> None:
        """Weights and optimiser state in one safetensors file, counters beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._names().items():
            tensors[f"weight.{name}"] = parameter.detach()
            for key, value in self.optimizer_state(parameter).items():
                tensors[f"{key}.{name}"] = value
        save_file(tensors, folder / "training.tmp", metadata={"step": str(self.step)})
        (folder / "training.tmp").replace(folder / "training.safetensors")
        self._write_counters(folder)

    def _write_counters(self, folder: Path) -> None:
        counters = {"step": self.step, "seconds": self.seconds, "plan": asdict(self.plan)}
        (folder / "training.json").write_text(json.dumps(counters, indent=2) + "\n")

    def load(self, folder: Path) -> None:
        counters = json.loads((folder / "training.json").read_text())
        self.step, self.seconds = counters["step"], counters["seconds"]
        tensors = load_file(folder / "training.safetensors")
        with torch.no_grad():
            for name, parameter in self._names().items():
                parameter.copy_(tensors[f"weight.{name}"])
                is_matrix = f"momentum_buffer.{name}" in tensors
                keys = ("momentum_buffer",) if is_matrix else ("step", "exp_avg", "exp_avg_sq")
                optimizer = self.optimizers[0 if is_matrix else 1]
                optimizer.state[parameter] = {key: tensors[f"{key}.{name}"].clone() for key in keys}

    def export(self, folder: Path) -> None:
        """The plain bf16 model folder that every tool loads, and the counters that its card quotes."""
        copy = LlamaForCausalLM(demo_config()).to(torch.bfloat16)
        copy.load_state_dict({name: value.to(torch.bfloat16) for name, value in self.model.state_dict().items()})
        copy.generation_config = GenerationConfig(
            bos_token_id=1, eos_token_id=2, pad_token_id=0, do_sample=False, max_new_tokens=64
        )
        copy.save_pretrained(folder)
        self._write_counters(folder)


def run_training(training: Training, folder: Path, save_every: int, until_step: int) -> None:
    """Steps until `until_step`, printing every 50 and saving a checkpoint every `save_every`."""
    plan, encoder = training.plan, ChatEncoder(MODEL_FOLDER)
    model = training.model

    def token_losses(ids: Tensor) -> Tensor:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # (B, T, V)
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return losses.view(ids.shape[0], -1)  # (B, T)

    compiled = torch.compile(token_losses, dynamic=False)
    model.train()
    started = time.monotonic() - training.seconds
    while training.step < until_step:
        batch = make_batch(encoder, plan.seed, plan.stage(training.step), training.step)
        weights = torch.from_numpy(batch.weights)
        training.set_learning_rates()
        with torch.autocast("cpu", torch.bfloat16):
            forward = compiled if batch.weights.shape[1] == CONTEXT_TOKENS else token_losses
            losses = forward(torch.from_numpy(batch.ids))
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in training.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        training.step += 1
        training.seconds = time.monotonic() - started
        if training.step % 50 == 0:
            _print_progress(training, losses.detach(), weights, torch.from_numpy(batch.kinds))
        if training.step % save_every == 0 or training.step == until_step:
            training.save(folder)


def _print_progress(training: Training, losses: Tensor, weights: Tensor, kinds: Tensor) -> None:
    """One line: step, rate, and the mean loss of each skill's answer tokens in this batch."""
    parts = []
    for index, kind in enumerate(KINDS):
        chosen = (kinds == index) & (weights == 1.0)
        if chosen.any():
            parts.append(f"{kind} {losses[chosen].mean().item():.3f}")
    plan = training.plan
    print(
        f"step {training.step}/{plan.total_steps} {plan.stage(training.step - 1)} {training.seconds:.0f} s "
        f"rate {plan.rate_share(training.step - 1):.0%} | {' | '.join(parts)}",
        flush=True,
    )


def main() -> None:
    default = TrainingPlan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint-folder", type=Path, required=True, help="progress is kept here; reuse to resume")
    parser.add_argument("--model-folder", type=Path, default=MODEL_FOLDER, help="where the bf16 model is written")
    parser.add_argument("--drill-steps", type=int, default=default.stage_steps[-1], help="length of the last stage")
    parser.add_argument("--until-step", type=int, default=None, help="stop early, export what there is, resume later")
    parser.add_argument("--seed", type=int, default=default.seed)
    arguments = parser.parse_args()
    plan = TrainingPlan(arguments.seed, (*default.stage_steps[:-1], arguments.drill_steps))
    training = Training(plan)
    if (arguments.checkpoint_folder / "training.json").exists():
        training.load(arguments.checkpoint_folder)
    run_training(training, arguments.checkpoint_folder, 250, arguments.until_step or plan.total_steps)
    training.export(arguments.model_folder)
    print(f"{training.step} steps in {training.seconds:.0f} s, written to {arguments.model_folder}")


if __name__ == "__main__":
    main()
