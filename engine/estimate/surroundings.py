"""What is alive through a whole step beside state and layers: token numbers, rotary tables, masks, a teacher's answer.

Owns those few terms, in bytes. Must not know moments or totals.
"""

from __future__ import annotations

from engine.estimate.walks import logit_share
from engine.estimate.workload import Attention, Method, TeacherHeld, Workload

CACHED_LOGITS = 64
"""Top logits per token that a cached teacher left on disk."""


def cached_token_bytes(k: int) -> int:
    """On disk, of one trained position: k ids of 4 B and k log-probabilities of 2 B, and twelve sums over the rest in
    4 B each (`engine.distill.cache`)."""
    return 6 * k + 48


def windowed_layers(work: Workload) -> int:
    """Layers whose sliding window is no longer than the sequence: transformers gives them a mask of their own."""
    a = work.architecture
    return a.sliding_layers if a.sliding_window and work.sequence >= a.sliding_window else 0


def around(work: Workload) -> float:
    """Alive through a whole step: token numbers, cosines and sines, the mask; and the teacher's answer.

    24 B of token numbers; 2·hd values of rotary tables; s bytes per token of a boolean mask for each kind of mask, or
    s values where attention is eager. Without checkpoints the masks die with the forward pass.
    """
    a = work.architecture
    tables = 2.0 * a.head_dim * a.rope.partial_factor * work.compute_bytes if a.rope.kind != "none" else 0.0
    kept = masks(work) if work.checkpointing else 0.0
    frozen = work.method is not Method.FULL and not work.train_embeddings
    scaled = a.family in SCALED_EMBEDDINGS and work.checkpointing and frozen
    per_token = 24.0 + tables + kept + (float(a.hidden_size * work.compute_bytes) if scaled else 0.0)
    return (per_token + _taught(work)) * work.tokens


def _taught(work: Workload) -> float:
    """Per token, of learning from a teacher (`engine.distill.objective`): hidden states of both at the positions that
    carry loss, and of the chunk under way log-probabilities of both, their mixture and its gradients in fp32, 24·V; or
    of a cached teacher 12·V of the student's alone beside k ids and log-probabilities."""
    if work.teacher is None:
        return 0.0
    share, width = logit_share(work), float(work.compute_bytes)
    states = width * work.architecture.hidden_size * work.trained_share
    if work.teacher_held is TeacherHeld.CACHED:
        kept = (12.0 * (work.teacher_top_k or CACHED_LOGITS)) * share
        return states + kept + 12.0 * work.architecture.vocab_size * share
    return states + width * work.teacher.hidden_size * work.trained_share + 24.0 * work.teacher.vocab_size * share


DISTILLED_CHUNK_BYTES = 64 << 20
"""Of one fp32 tensor of logits: a loss with a teacher always comes in chunks of that size."""


def distilled_chunk_tokens(vocabulary: int) -> int:
    """Positions per chunk of such a loss."""
    return max(DISTILLED_CHUNK_BYTES // (4 * vocabulary), 1)


SCALED_EMBEDDINGS = ("gemma", "gemma2", "gemma3", "granite")
"""Families that multiply the embedding's output by a constant: with checkpoints both stay, the first as a leaf,
unless the embedding learns."""


def masks(work: Workload) -> float:
    """Bytes per token of the masks that the model builds once: one for full attention, one for windowed layers."""
    a = work.architecture
    eager = work.attention is Attention.EAGER or a.family == "gemma2"
    windowed = windowed_layers(work)
    kinds = (1 if windowed else 0) + (1 if a.layers > windowed and (work.masked or a.family == "falcon") else 0)
    if eager:
        return float(work.sequence * work.compute_bytes * (2 if windowed else 1))
    return float(work.sequence * kinds)
