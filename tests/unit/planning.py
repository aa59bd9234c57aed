"""Machines and shapes that the estimate and advice tests share."""

from __future__ import annotations

from dataclasses import replace

from engine.hardware.machine import Cpu, Disk, Gpu, Machine, Ram, Source
from engine.models.architecture import Architecture, Moe, Rope
from engine.units import GIB


def shape(
    name: str = "llama-3b-like",
    *,
    layers: int = 28,
    hidden: int = 3072,
    ffn: int = 8192,
    heads: int = 24,
    kv_heads: int = 8,
    head_dim: int = 128,
    vocab: int = 128_256,
    tied: bool = True,
    context: int = 131_072,
    parameters: int = 0,
    moe: Moe | None = None,
) -> Architecture:
    """A Llama-type shape; parameters by arithmetic unless given."""
    draft = Architecture(
        name=name,
        architecture="LlamaForCausalLM",
        family="llama",
        known=True,
        parameters=parameters or 1,
        parameters_source="config",
        layers=layers,
        hidden_size=hidden,
        intermediate_size=ffn,
        attention_heads=heads,
        key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        tied_embeddings=tied,
        context_length=context,
        norm="rmsnorm",
        norm_placement="pre",
        qk_norm="none",
        attention_bias=False,
        mlp_bias=False,
        mlp_kind="gated",
        rope=Rope("default", 500_000.0, context),
        moe=moe,
        source="profile",
    )
    if parameters:
        return draft
    return replace(draft, parameters=draft.linear_parameters + draft.embedding_parameters + (2 * layers + 1) * hidden)


DEMO = shape(
    "demo", layers=8, hidden=192, ffn=512, heads=6, kv_heads=2, head_dim=32, vocab=2048, tied=False, context=256
)
LLAMA_3B = shape()
MIXTURE = shape(
    "mixtral-like",
    layers=32,
    hidden=4096,
    ffn=14_336,
    heads=32,
    vocab=32_000,
    tied=False,
    moe=Moe(8, 2, 14_336, moe_layers=32),
)


def card(name: str = "RTX 4090", gib: float = 24, free_gib: float | None = None, index: int = 0) -> Gpu:
    """One NVIDIA card of the Ampere or Ada generation."""
    free = gib * 0.95 if free_gib is None else free_gib
    return Gpu(index, name, "nvidia", int(gib * GIB), int(free * GIB), Source.USER, compute_capability=(8, 9))


def machine(*gpus: Gpu, ram_gib: float = 64, cores: int = 16, disk_gib: float = 2000) -> Machine:
    """A machine with these cards; none means CPU only."""
    disk = Disk("runs", "/", int(disk_gib * GIB), int(disk_gib * 2 * GIB))
    label = f"{len(gpus)}x {gpus[0].name}" if gpus else f"no GPU, {cores} cores"
    ram = Ram(int(ram_gib * GIB), int(ram_gib * 0.9 * GIB), Source.SYSTEM)
    return Machine(gpus, Cpu("test", cores), ram, (disk,), label=label)


LAPTOP = machine(ram_gib=16, cores=2)
