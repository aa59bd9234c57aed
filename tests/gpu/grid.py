"""The configurations that `make gpu-check` measures: families, methods, lengths and switches that change memory.

Owns the list, the most telling first, since a time limit cuts its end. Must not know how anything is run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from engine.estimate.rehearsal import Rehearsal, rehearsal_of
from engine.estimate.stacks import HF
from engine.estimate.workload import Attention, Method, OptimizerKind, Packing4Bit, Purpose, Workload
from engine.models.analyze import analyze_model
from engine.models.architecture import Architecture
from engine.models.model_profiles import find_model_profile
from engine.models.source import ModelKind, ModelRef

WORKSPACE_BYTES = 2 * (32 << 20)
"""The worker asks for `CUBLAS_WORKSPACE_CONFIG=:4096:8`, 32 MiB on any card, in the forward and in autograd's
thread."""


@dataclass(frozen=True, slots=True)
class Model:
    """A shape: a known model's, or a cut of it."""

    name: str
    config: dict[str, Any]
    architecture: Architecture


@dataclass(frozen=True, slots=True)
class Configuration:
    """One thing to measure."""

    title: str
    model: Model
    work: Workload

    @property
    def rehearsal(self) -> Rehearsal:
        """For the dry run and for the real one."""
        return rehearsal_of(self.work, self.model.config)

    @property
    def paged(self) -> bool:
        """Optimizer states in unified memory, which torch does not count."""
        return self.work.optimizer is OptimizerKind.PAGED_ADAMW_8BIT

    @property
    def method(self) -> str:
        """How the summary groups it."""
        work = self.work
        if work.purpose is not Purpose.TRAIN:
            return "evaluation"
        if work.method is Method.ADAPTER:
            return "QLoRA" if work.packed else "LoRA"
        return work.method.value


def model(name: str, layers: int = 0, more_layers: int = 0) -> Model:
    """A model of the catalogue, cut to `layers`, or grown by `more_layers`."""
    profile = find_model_profile(name)
    assert profile is not None, name
    config = dict(profile.config)
    whole = int(config["num_hidden_layers"])
    title = name
    if layers:
        config["num_hidden_layers"], title = layers, f"{layers} of {whole} layers of {name}"
    if more_layers:
        config["num_hidden_layers"], title = whole + more_layers, f"{name} + {more_layers} blocks"
    return Model(title, config, analyze_model(ModelRef(ModelKind.PROFILE, name, None, config=config)))


def _of(title: str, shape: Model, **settings: Any) -> Configuration:
    base = {"workspace_bytes": WORKSPACE_BYTES, "capability": 9}
    return Configuration(title, shape, Workload(shape.architecture, **{**base, **settings}))


def configurations() -> tuple[Configuration, ...]:
    """All of them."""
    small, half, one = model("smollm2-135m"), model("qwen2.5-0.5b"), model("llama-3.2-1b")
    three, eight, qwen = model("llama-3.2-3b"), model("llama-3.1-8b"), model("qwen2.5-1.5b")
    nf4, double, full = Packing4Bit.NF4, Packing4Bit.NF4_DOUBLE, Method.FULL
    grown = model("llama-3.2-1b", more_layers=4)
    blocks = {"method": Method.NEW_BLOCKS, "trained_layers": 4}
    query_value = ("q_proj", "v_proj")
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    return (
        _of("LoRA all r16", one, sequence=2048),
        _of("QLoRA all r16", one, packing=double, sequence=2048),
        _of("full bf16, fused", one, method=full, sequence=1024),
        _of("QLoRA all r16", eight, packing=double, sequence=2048),
        _of("LoRA all r16, no checkpointing", one, sequence=2048, checkpointing=False),
        _of("full bf16, fused", half, method=full, sequence=1024),
        _of("LoRA all r16, packed rows", one, sequence=4096, trained_share=0.1, masked=True),
        _of("evaluation", one, purpose=Purpose.EVALUATE, sequence=2048, batch=2),
        _of("QLoRA all r32, batch 2", qwen, packing=nf4, sequence=2048, batch=2, rank=32),
        _of("full bf16, foreach", half, method=full, sequence=1024, foreach=True),
        _of("full bf16, 8-bit AdamW", half, method=full, sequence=1024, optimizer=OptimizerKind.ADAMW_8BIT),
        _of("full bf16, paged 8-bit AdamW", half, method=full, sequence=1024, optimizer=OptimizerKind.PAGED_ADAMW_8BIT),
        _of("full mixed precision", half, method=full, sequence=1024, optimizer=OptimizerKind.ADAMW_MIXED),
        _of("four new blocks", grown, sequence=4096, trained_share=0.1, **blocks),
        _of("LoRA all r16, eager attention", one, sequence=1024, attention=Attention.EAGER, trained_share=0.1),
        _of("QLoRA all r16", three, packing=double, sequence=2048),
        _of("LoRA all r16", model("qwen3-30b-a3b", layers=2), sequence=2048),
        _of("LoRA attention r16", model("qwen3-30b-a3b", layers=4), sequence=2048, targets=attention),
        _of("LoRA all r16, one in twenty trained", one, sequence=16384, trained_share=0.05),
        _of("LoRA q,v r16, batch 4", one, sequence=512, batch=4, targets=query_value),
        _of("LoRA all r256", one, sequence=1024, rank=256, trained_share=0.1),
        _of("LoRA all r64, bf16 adapter", one, sequence=2048, rank=64, adapter_bytes=2, trained_share=0.1),
        _of("DoRA all r16", one, sequence=1024, dora=True, trained_share=0.1),
        _of("QLoRA q,v r16, no double quantisation", one, packing=nf4, sequence=4096, targets=query_value),
        _of("LoRA all r16", model("mistral-7b-v0.3", layers=8), sequence=4096, trained_share=0.1),
        _of("LoRA all r16", model("gemma-3-1b"), sequence=2048),
        _of("LoRA all r16", model("qwen3-4b", layers=8), sequence=4096, trained_share=0.1),
        _of("LoRA all r16, packed rows, no checkpointing", one, sequence=1024, masked=True, checkpointing=False,
            trained_share=0.1),
        _of("LoRA all r16, eager, no checkpointing", one, sequence=512, attention=Attention.EAGER, checkpointing=False),
        _of("QLoRA all r16, batch 4, no checkpointing", model("tinyllama-1.1b"), packing=double, sequence=1024, batch=4,
            checkpointing=False),
        _of("QLoRA all r16, a tenth trained", eight, packing=double, sequence=8192, trained_share=0.1),
        _of("LoRA all r16", eight, sequence=2048),
        _hf("QLoRA q,k,v,o r32, stock Trainer", qwen, packing=nf4, sequence=1024, batch=2, rank=32,
            targets=attention),
        _hf("LoRA q,k,v,o r32, stock Trainer", qwen, sequence=1024, batch=2, rank=32,
            targets=attention),
        _of("LoRA all r16", small, sequence=1024),
        _of("full bf16, fused, batch 4", small, method=full, sequence=512, batch=4),
        _of("LoRA q,v r16, no checkpointing, batch 2", model("smollm2-360m"), sequence=2048, batch=2,
            checkpointing=False, targets=query_value),
        _of("full bf16, SGD, no checkpointing", half, method=full, sequence=512, batch=2, checkpointing=False,
            optimizer=OptimizerKind.SGD),
        _of("full bf16, half trained", model("qwen3-0.6b"), method=full, sequence=4096, trained_share=0.5),
        _of("four new blocks, no checkpointing", grown, sequence=1024, checkpointing=False, **blocks),
        _of("full bf16, 8-bit AdamW", one, method=full, sequence=1024, optimizer=OptimizerKind.ADAMW_8BIT),
        _of("full bf16, two micro-batches", one, method=full, sequence=1024, accumulation=2),
        _of("LoRA all r16, half trained", three, sequence=4096, trained_share=0.5),
        _of("LoRA all r16, capped scores", model("gemma-2-2b", layers=6), attention=Attention.EAGER, sequence=1024,
            trained_share=0.1),
        _of("LoRA all r16", model("phi-3-mini", layers=8), sequence=2048, trained_share=0.1),
        _of("LoRA all r16", one, sequence=8192),
        _of("LoRA all r16, no checkpointing", qwen, sequence=1024, checkpointing=False),
        _of("evaluation in 4 bits", one, packing=double, purpose=Purpose.EVALUATE, sequence=4096),
        _of("full bf16, no checkpointing", model("pythia-410m"), method=full, sequence=1024, checkpointing=False),
    )  # fmt: skip


def _hf(title: str, shape: Model, **settings: Any) -> Configuration:
    """As a script of transformers and peft does it, in bf16 and with the allocator's ordinary segments."""
    made = _of(title, shape, **settings)
    return replace(made, work=replace(made.work, stack=HF, expandable_segments=False))


def edge_configurations() -> tuple[Configuration, ...]:
    """Those whose longest sequence is searched under caps."""
    one = model("llama-3.2-1b")
    return (
        _of("QLoRA all r16", model("llama-3.1-8b"), packing=Packing4Bit.NF4_DOUBLE),
        _of("LoRA all r16", one),
        _of("full bf16, fused", one, method=Method.FULL),
    )
