"""Which stack a row ran on, and in which class of the summary it counts.

Owns the reading of `framework`, `stack`, `source` and the years in them. Must not know models or methods.
"""

from __future__ import annotations

import re
from dataclasses import replace

from engine.estimate.estimate import Range
from engine.estimate.stacks import (
    FSDP_QLORA,
    HF,
    HF_2023,
    LITGPT,
    LITGPT_2023,
    LLAMA_FACTORY,
    MS_SWIFT,
    OURS,
    PEFT_BENCH,
    QWEN_2023,
    QWEN_2023_DEEPSPEED,
    QWEN_2023_ZERO3,
    TORCHTUNE,
    TORCHTUNE_COMPILED,
    UNSLOTH,
    UNSLOTH_EARLY,
    Stack,
)
from engine.units import MIB
from tests.score.rows import Row

MODERN, MODERN_EAGER, OTHER = "modern", "modern eager", "2023 and foreign"

_MODERN_STACKS = (OURS.id, HF.id, PEFT_BENCH.id)
_T4_CONTEXT = Range(138 * MIB, 141 * MIB, 160 * MIB)
"""A T4 with kernels loaded on demand: 140.9 MiB in every published run."""


_FOUR_BIT_STATES = 2 * (0.5 + 4 / 128) - 2 * (1 + 4 / 256)
"""torchao's 4-bit states (blocks of 128) against 8-bit ones (blocks of 256), bytes per parameter."""


_VARIED_EAGER = 0.45
"""Scores of all pairs dominate, one large block of each kind: lengths that vary leave less behind."""


def stack_of(row: Row) -> Stack:
    """The constants for this row; `context_bytes` are those of its card where the stack leaves them open."""
    stack = _stack(row)
    if beyond_window(row) and stack.id == MS_SWIFT.id:
        stack = replace(stack, varied_slack=_VARIED_EAGER)
    if re.search(r"4-?bit|int4", row.optimizer):
        stack = replace(stack, state_bytes_per_parameter=stack.state_bytes_per_parameter + _FOUR_BIT_STATES)
    if stack.context_bytes is None and re.search(r"\bt4\b", row.gpu.lower()):
        return replace(stack, context_bytes=_T4_CONTEXT)
    return stack


def beyond_window(row: Row) -> bool:
    """Mistral's models on sequences longer than their window of 4,096: in 2023 such runs fell back to eager."""
    sliding = re.search(r"zephyr|mistral|openbuddy|mixtral", row.model.lower())
    return sliding is not None and (row.sequence or 0) > 4096


def class_of(row: Row, stack: Stack) -> str:
    """ "modern", "modern eager" or "2023 and foreign"."""
    if stack.id not in _MODERN_STACKS:
        return OTHER
    return MODERN_EAGER if "eager" in row.attention and "sdpa" not in row.attention else MODERN


def _stack(row: Row) -> Stack:
    where = f"{row.framework} {row.source.lower()}"
    if "scaler-wizard" in where:
        return HF if "stock" in row.notes else OURS
    if "unsloth" in row.framework:
        return UNSLOTH
    if "unsloth" in row.attention:
        return UNSLOTH_EARLY
    if "swift" in where:
        return MS_SWIFT
    if "torchtune" in where:
        return TORCHTUNE_COMPILED if row.compiled.startswith("yes") else TORCHTUNE
    if "litgpt" in where or "lit-gpt" in where:
        old = re.search(r"2023|torch 2\.[01]\b|torch 2\.1\.|bitsandbytes 0\.41", row.stack)
        return LITGPT_2023 if old else LITGPT
    if "llama-factory" in where or "llamafactory" in where or "llama factory" in where:
        return LLAMA_FACTORY
    if "fsdp_qlora" in where or "fsdp+qlora" in where.replace(" ", ""):
        return FSDP_QLORA
    if "qwenlm" in where or "qwen-1" in row.framework or "remote-code qwen" in row.framework:
        return _qwen(row)
    if "torchao" in where:
        return TORCHTUNE_COMPILED if row.compiled.startswith("yes") else TORCHTUNE
    if re.search(r"method.?comparison|metamath", where + row.notes + row.stack):
        return PEFT_BENCH
    return HF if _modern(row) else HF_2023


def _qwen(row: Row) -> Stack:
    words = f"{row.optimizer} {row.parallel} {row.notes}"
    if re.search(r"zero-?\s?3", words) or (row.method.startswith("full") and "deepspeed" in words):
        return QWEN_2023_ZERO3
    if "deepspeed" in words or "gptq" in row.quant:
        return QWEN_2023_DEEPSPEED
    return QWEN_2023


def _modern(row: Row) -> bool:
    """transformers 4.45 or later. Without any version a row counts as modern when its script compares with today's."""
    version = re.search(r"transformers[ ~=v]*(\d+)\.(\d+)", row.stack)
    if version:
        return (int(version[1]), int(version[2])) >= (4, 45)
    if re.search(r"20(2[0-3])|torch (1\.|2\.[0-3])|cuda 11", row.stack):
        return False
    return row.frontier or bool(re.search(r"20(2[5-9])|torch 2\.([6-9]|1\d)", f"{row.stack} {row.notes}"))
