"""What other programs will make of a larger model: quantisers' block sizes, llama.cpp's derivations, caches.

Owns the notes. Must not refuse anything: transformers loads all of these models.
"""

from __future__ import annotations

from engine.expansion.axes import Dims
from engine.expansion.layout import Layout
from engine.expansion.operators import LAYERS
from engine.expansion.operators.depth_places import pattern_note
from engine.expansion.plan import ExpansionPlan

K_QUANT_BLOCK = 256
"""Row length that GGUF's k-quants need; other rows fall back to larger types. Source: llama.cpp, ggml-quants."""
NF4_BLOCK = 64
"""Values that share one scale in bitsandbytes' NF4."""
_WIDTHS = {"hidden": "hidden", "ffn": "FFN", "expert_ffn": "expert FFN", "shared_ffn": "shared FFN"}
_DERIVES_HEAD_SIZE = ("phi", "phi3")
"""llama.cpp's converter takes hidden / heads as their head size, whatever `head_dim` says."""


def portability_notes(layout: Layout, plan: ExpansionPlan) -> tuple[str, ...]:
    """Sentences about the larger model outside of transformers."""
    before, after = plan.before, plan.after
    notes = [*_alignment(before, after)]
    if plan.operators.get(LAYERS) and (note := pattern_note(plan.layer_sources, layout.traits)):
        notes.append(note)
    if needs_square(layout) and after.hidden != after.heads * after.head_dim:
        notes.append(
            f"llama.cpp's converter takes hidden / heads as the head size of {layout.family} models "
            f"({after.hidden // after.heads} instead of {after.head_dim}): no GGUF file of this shape. With "
            f"{after.hidden / after.head_dim:g} heads there is one."
            if after.hidden % after.head_dim == 0
            else f"llama.cpp's converter takes hidden / heads as the head size of {layout.family} models, so there is "
            "no GGUF file of this shape."
        )
    return tuple(notes)


def needs_square(layout: Layout) -> bool:
    """Whether a GGUF file needs hidden = heads x head size."""
    return layout.family in _DERIVES_HEAD_SIZE


def is_aligned(dims: Dims) -> bool:
    """Whether hidden and feed-forward widths are multiples of 256."""
    return all(getattr(dims, field) % K_QUANT_BLOCK == 0 for field in _WIDTHS)


def is_portable(layout: Layout, plan: ExpansionPlan) -> bool:
    """Whether nothing stands in the way of GGUF files beyond what did before."""
    return not portability_notes(layout, plan)


def _alignment(before: Dims, after: Dims) -> list[str]:
    """What a model loses that had whole blocks everywhere; one that never had them loses nothing."""
    notes = []
    coarse = _broken(before, after, K_QUANT_BLOCK) if is_aligned(before) else []
    fine = _broken(before, after, NF4_BLOCK)
    if fine:
        notes.append(
            f"{_list(fine)} {'is' if len(fine) == 1 else 'are'} no multiple of {NF4_BLOCK}: 4-bit blocks (NF4) then "
            "straddle rows, and tensor cores idle."
        )
    if coarse:
        notes.append(
            f"{_list(coarse)} {'is' if len(coarse) == 1 else 'are'} no multiple of {K_QUANT_BLOCK}: GGUF's k-quants "
            "fall back to larger types for these rows."
        )
    return notes


def _broken(before: Dims, after: Dims, block: int) -> list[str]:
    """Widths that were multiples of `block` and are none any more, in words."""
    return [
        f"{word} {getattr(after, field):,}"
        for field, word in _WIDTHS.items()
        if getattr(after, field) % block and getattr(before, field) % block == 0
    ]


def _list(words: list[str]) -> str:
    return " and ".join(words)
