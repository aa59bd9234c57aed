"""What a program needs to know of a job beyond widths: types, what learns, what is adapted, masks.

Owns the translation from a workload. Must not know operators.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.estimate.shapes import adapted_modules
from engine.estimate.workload import Attention, Method, Workload

FP32 = 4.0
HALF = 2.0


@dataclass(frozen=True, slots=True)
class Style:
    """What a program needs to know of a job beyond widths."""

    compute: float
    """Bytes per value of weights and activations."""
    hidden: float
    """Bytes per value of the residual stream."""
    autocast: bool
    packed: bool
    learns: bool
    """The layer's own weights learn."""
    adapted: frozenset[str]
    adapter: float
    rank: int
    dora: bool
    dropout: bool
    norm_weight: float
    """Bytes per value of norm gains: fp32 after kbit preparation."""
    norm_learns: bool
    """Norms learn as fp32 copies; what they hand on is narrowed to the input's type."""
    masked: bool
    """A mask reaches attention: packed rows, a window shorter than the sequence, Falcon always."""
    eager: bool
    sequence: int
    repeats: bool = False
    """Keys and values are copied to every query head although no mask asks for it."""
    packed_input: int = 0
    """Bytes per value that a packed product keeps of its input."""


def style_of(work: Workload, *, learns: bool, windowed: bool = False) -> Style:
    """The style of `work` for layers whose weights learn or do not, within a sliding window that matters or not."""
    kbit = work.stack.kbit_prepared and work.packed
    adapter = work.method is Method.ADAPTER
    autocast = work.stack.autocast and work.compute_bytes == 2
    widened = widens(work)
    return Style(
        compute=float(work.compute_bytes),
        hidden=FP32 if kbit or widened else float(work.compute_bytes),
        autocast=autocast,
        packed=work.packed,
        learns=learns,
        adapted=frozenset(adapted_modules(work.architecture, work.targets)) if adapter else frozenset(),
        adapter=float(work.adapter_bytes),
        rank=work.rank,
        dora=work.dora,
        dropout=work.dropout,
        norm_weight=FP32 if kbit else float(work.compute_bytes),
        norm_learns=adapter and work.train_norms and work.stack.fp32_copies,
        masked=work.masked or windowed or work.architecture.family == "falcon",
        eager=work.attention is Attention.EAGER or work.architecture.family == "gemma2",
        sequence=work.sequence,
        repeats=work.stack.repeats_keys and work.attention is not Attention.FLASH,
        packed_input=work.stack.packed_input_bytes,
    )


def widens(work: Workload) -> bool:
    """Whether the residual stream becomes fp32 behind the embedding: layer norms under autocast return fp32, and 4-bit
    layers return the type they are given."""
    half = work.stack.autocast and work.compute_bytes == 2
    a = work.architecture
    narrowed = work.train_norms and work.stack.fp32_copies and work.method is Method.ADAPTER
    return work.packed and half and a.norm == "layernorm" and a.family not in OWN_LAYER_NORM and not narrowed


OWN_LAYER_NORM = ("cohere",)
"""Families whose layer norm is written out, and returns the type it is given."""
