"""A seeded grid of jobs on which the formula is held to the dry run, and one comparison of the two.

Owns which jobs are tried. Models have few layers, so that a whole grid is followed layer by layer in minutes; every
other size is that of real models.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.estimate.memory import peak_of
from engine.estimate.rehearsal import rehearsal_of
from engine.estimate.stacks import HF, OURS
from engine.estimate.workload import ALL_LINEAR, Attention, Method, OptimizerKind, Packing4Bit, Purpose, Workload
from engine.models.analyze import analyze_model
from engine.models.architecture import Architecture
from engine.models.source import ModelKind, ModelRef
from engine.units import MIB

FIRST_FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text",
    "phi3", "smollm3", "olmo2", "granite", "stablelm", "gpt_neox", "falcon",
)  # fmt: skip
LATER_FAMILIES = ("olmo3", "glm4", "cohere", "starcoder2", "phi")
"""Drawn apart, so that the jobs of the first are those they always were."""
FAMILIES = FIRST_FAMILIES + LATER_FAMILIES
METHODS = ("lora", "nf4", "nf4 double", "full", "full 8-bit", "full foreach", "new blocks")
VOCABULARIES = (1_003, 32_003, 128_259)
SEQUENCES = (128, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
LAYERS = {"gemma3_text": (6, 6, 12), "smollm3": (4, 8)}
"""Families with a pattern of layers: five windowed and one full, three with rotary positions and one without."""
HEADS_FILL_HIDDEN = (
    *("qwen2", "olmo2", "granite", "stablelm", "gpt_neox", "falcon", "phi3"),
    *("olmo3", "cohere", "starcoder2", "phi"),
)
"""Families whose hidden size is heads x head size."""
FUSED_PROJECTIONS = ("phi3", "gpt_neox", "falcon", "phi")
"""Families without `q_proj`, `v_proj` or `o_proj`."""
WIDE_HEADS = ("gemma", "gemma2", "gemma3_text")
TARGETS = (ALL_LINEAR, ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj"))


@dataclass(frozen=True, slots=True)
class Trial:
    """One job: a model's config and how it is trained."""

    family: str
    method: str
    config: dict[str, Any]
    settings: dict[str, Any]

    @property
    def work(self) -> Workload:
        """The job as the formula sees it, without cuBLAS workspaces."""
        return Workload(architecture_of(self.config), workspace_bytes=0, **self.settings)

    @property
    def words(self) -> str:
        """The job in one line."""
        s, c = self.settings, self.config
        parts = [
            f"{self.family} {c['num_hidden_layers']} x {c['hidden_size']}",
            self.method,
            f"{s['batch']} x {s['sequence']}",
            f"V {c['vocab_size']}",
            "checkpoints" if s["checkpointing"] else "no checkpoints",
            "fp32" if s["compute_bytes"] == 4 else "bf16",
            s["stack"].id,
        ]
        parts += ["masked"] if s["masked"] else []
        parts += ["evaluate"] if s.get("purpose") is Purpose.EVALUATE else []
        parts += [f"{name} {value}" for name, value in s.items() if name in EXTRAS]
        return ", ".join(parts)

    @property
    def option(self) -> str:
        """Which of the rarer options it has; "" for none."""
        return next((name for name in EXTRAS if name in self.settings), "")


EXTRAS = ("dora", "dropout", "adapter_bytes", "train_embeddings", "attention")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the two tiers said, in bytes."""

    trial: Trial
    formula: float
    followed: float
    phase: str
    stretch: str
    formula_kinds: dict[str, float] = field(default_factory=dict)
    followed_kinds: dict[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Signed: above 0 where the formula says more."""
        return self.formula / self.followed - 1


def architecture_of(config: dict[str, Any]) -> Architecture:
    """The analyzed shape of a config."""
    return analyze_model(ModelRef(ModelKind.HUB, "trial", None, config, "trial/trial"))


def grid(seed: int, rounds: int = 15) -> list[Trial]:
    """Every family `rounds` times (later ones once with each method), the methods in turn, everything else drawn."""
    first = _turns(random.Random(seed), FIRST_FAMILIES, rounds)
    return [*first, *_turns(random.Random(seed + 1), LATER_FAMILIES, len(METHODS))]


def _turns(rng: random.Random, families: tuple[str, ...], rounds: int) -> list[Trial]:
    return [
        draw(rng, family, METHODS[(number + place) % len(METHODS)])
        for number in range(rounds)
        for place, family in enumerate(families)
    ]


def rarer_grid(seed: int) -> list[Trial]:
    """Options beyond the plain recipes, six jobs each: DoRA, bf16 adapters, dropout, embeddings that learn, eager."""
    rng = random.Random(seed)
    changes: list[dict[str, Any]] = [
        {"dora": True},
        {"adapter_bytes": 2},
        {"dropout": True},
        {"train_embeddings": True},
        {"attention": Attention.EAGER},
    ]
    families = ("llama", "qwen2", "mistral", "gemma", "phi3", "granite")
    trials = []
    for change in changes:
        for place, family in enumerate(families):
            trial = draw(rng, family, ("lora", "nf4", "nf4 double")[place % 3])
            settings = {**trial.settings, **change, "sequence": min(trial.settings["sequence"], 4096)}
            settings.pop("purpose", None)
            trials.append(Trial(family, trial.method, trial.config, settings))
    return trials


def draw(rng: random.Random, family: str, method: str) -> Trial:
    """One job of a family and method; the rest by chance."""
    config = _config(rng, family)
    long = rng.random() < 0.2
    settings: dict[str, Any] = {
        "batch": 1 if long else rng.choice((1, 2, 4)),
        "sequence": rng.choice(SEQUENCES[5:] if long else SEQUENCES[:5]),
        "checkpointing": rng.random() < 0.6,
        "masked": rng.random() < 0.3,
        "trained_share": rng.choice((1.0, 0.5)),
        "compute_bytes": rng.choice((2, 2, 2, 4)),
        "stack": HF if rng.random() < (0.4 if method in METHODS[:3] else 0.5) else OURS,
    }
    settings.update(_method(rng, family, method, config["num_hidden_layers"]))
    if rng.random() < 0.08:
        settings["purpose"] = Purpose.EVALUATE
    return Trial(family, method, config, settings)


def _config(rng: random.Random, family: str) -> dict[str, Any]:
    head = 256 if family in WIDE_HEADS else 128 if family == "qwen3" else rng.choice((64, 128))
    heads = rng.choice((8, 16, 24, 32))
    groups = [count for count in (1, 2, 4, 8) if heads % count == 0]
    shared = rng.choice(groups) if rng.random() < 0.8 else heads
    filled = family in HEADS_FILL_HIDDEN or (head < 256 and rng.random() < 0.6)
    hidden = head * heads if filled else rng.choice([size for size in (1024, 2048, 3072) if size % heads == 0])
    config: dict[str, Any] = {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": rng.choice((2, 3, 4)) * hidden + 256,
        "num_hidden_layers": rng.choice(LAYERS.get(family, (2, 4))),
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "vocab_size": rng.choice(VOCABULARIES),
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": family == "gemma" or rng.random() < 0.5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family not in HEADS_FILL_HIDDEN:
        config["head_dim"] = head
    if family == "gpt_neox":
        del config["num_key_value_heads"]
    if family == "falcon":
        # Falcon-7B's block with a single key head falls back to unfused attention, which the formula does not follow.
        several = max(shared, 2)
        config.update(
            new_decoder_architecture=True,
            num_key_value_heads=several,
            num_kv_heads=several,
            ffn_hidden_size=config["intermediate_size"],
        )
    return config


def _method(rng: random.Random, family: str, method: str, layers: int) -> dict[str, Any]:
    if method == "new blocks":
        return {"method": Method.NEW_BLOCKS, "trained_layers": layers // 2}
    if method.startswith("full"):
        kind = OptimizerKind.ADAMW_8BIT if method == "full 8-bit" else OptimizerKind.ADAMW
        return {"method": Method.FULL, "optimizer": kind, "foreach": method == "full foreach"}
    packing = {"lora": Packing4Bit.NONE, "nf4": Packing4Bit.NF4, "nf4 double": Packing4Bit.NF4_DOUBLE}[method]
    targets = ALL_LINEAR if family in FUSED_PROJECTIONS else rng.choice(TARGETS)
    return {"method": Method.ADAPTER, "packing": packing, "rank": rng.choice((4, 16, 64, 256)), "targets": targets}


def compare(trial: Trial) -> Outcome:
    """The formula's peak and the dry run's, every layer followed."""
    from engine.rehearsal.dry_run import dry_run

    work = trial.work
    followed = dry_run(rehearsal_of(work, trial.config), full_depth=True)
    peak = peak_of(work)
    return Outcome(
        trial=trial,
        formula=peak.allocated,
        followed=followed.total,
        phase=peak.phase,
        stretch=followed.stretch,
        formula_kinds={
            "weights": peak.weights,
            "adapter": peak.adapter,
            "gradients": peak.gradients,
            "optimizer": peak.optimizer,
            "activations": peak.activations,
            "logits and loss": peak.logits,
            "temporary buffers": peak.temporary,
        },
        followed_kinds=dict(followed.kinds),
    )


def table(outcomes: list[Outcome], group: Callable[[Outcome], str]) -> str:
    """Mean and worst error per group."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(group(outcome), []).append(outcome)
    lines = [f"{'':16}{'jobs':>6}{'mean':>9}{'worst':>9}"]
    for name, found in sorted(groups.items()):
        errors = [one.error for one in found]
        worst = max(errors, key=abs)
        lines.append(f"{name:16}{len(found):6}{sum(map(abs, errors)) / len(errors):9.2%}{worst:+9.2%}")
    return "\n".join(lines)


def explained(outcome: Outcome) -> str:
    """One comparison, by kind in MiB."""
    kinds = {
        kind: f"{size / MIB:,.1f}/{outcome.followed_kinds.get(kind, 0.0) / MIB:,.1f}"
        for kind, size in outcome.formula_kinds.items()
    }
    inside = ", ".join(f"{kind} {text}" for kind, text in kinds.items() if text != "0.0/0.0")
    return (
        f"{outcome.error:+.2%} {outcome.trial.words}\n"
        f"        formula/followed, peak in {outcome.phase}/{outcome.stretch}: {inside}"
    )
