"""Whose code trains, and of which year: the few facts by which training stacks differ in memory.

Owns those facts, each with its source. Must not know models, machines or published rows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stack:
    """One way of running a training step."""

    id: str
    title: str
    source: str
    autocast: bool = False
    """Forward under torch.autocast (transformers' Trainer with bf16 or fp16)."""
    kbit_prepared: bool = False
    """4-bit runs pass peft's `prepare_model_for_kbit_training`: whatever is not 4-bit becomes fp32, and so does the
    hidden state between layers."""
    selective_head: bool = False
    """Logits only for positions that carry loss."""
    shifted_copy: bool = False
    """The loss copies logits to drop the last position (transformers before late 2024)."""
    fp32_logits: bool = True
    """Logits are turned to fp32 before the loss."""
    repeats_keys: bool = False
    """Keys and values are repeated to all heads in every layer (before native grouped attention)."""
    loss_chunk_tokens: int = 1024
    """Tokens per chunk of a chunked loss."""


OURS = Stack(
    id="scaler-wizard",
    title="this program's worker",
    source="engine/train, dry run",
    autocast=True,
    selective_head=True,
)
HF = Stack(
    id="hf",
    title="transformers 4.45 or later with peft",
    source="traced on transformers 5.23 / torch 2.13, checked on published T4 runs",
    kbit_prepared=True,
)
