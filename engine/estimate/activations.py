"""Memory that grows with tokens: what the forward pass keeps, the humps of one layer, logits and loss.

Owns the per-token formulas. All results are bytes. Source unless said otherwise: storage-by-storage traces of
transformers 5.23 on torch 2.13 (SDPA or flash), which reproduce published T4 peaks within 1.2 %.
Must not know state, allocators or machines.
"""

from __future__ import annotations

from engine.estimate.shapes import Shape, adapted_modules, shape_of
from engine.estimate.workload import Attention, Loss, Method, Workload

_INPUT_IS_HIDDEN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_HUMP_HIDDEN = {"k_proj": 6, "gate_proj": 8, "up_proj": 8}
"""Backward temporaries per adapted linear, split so that q,v gives 18h and all seven give 40h (both traced)."""


def boundary_bytes(work: Workload) -> float:
    """Checkpointing: 2h per layer and token; 4h after kbit preparation or in fp32, where the hidden state is fp32."""
    shape = shape_of(work.architecture)
    per_value = 4 if work.packed or work.compute_bytes == 4 else 2
    return float(per_value * shape.hidden * shape.layers * work.tokens)


def stored_layer_bytes(work: Workload) -> float:
    """One layer without checkpointing, all tokens of the micro-batch.

    Full: 16h + 8f + 4q + 4kv + 4a + 8. Adapter: 8h + 6f + 4q + 4kv + 4a + 8 + Σ over adapters (4·in + 4r), which gives
    16h + 6f + … for q,v and 28h + 10f + 8q + … for all seven. bf16 adapters share their inputs instead of casting them.
    """
    s = shape_of(work.architecture)
    key_value = s.query if work.masked else s.key_value
    common = 4 * s.query + 4 * key_value + 4 * s.heads + 8
    if work.method is Method.ADAPTER:
        per_token = 8 * s.hidden + 6 * s.feed_forward + common + _adapter_inputs(work, s)
    else:
        per_token = 16 * s.hidden + 8 * s.feed_forward + common
    return float((per_token * _precision_factor(work) + _routing(s) + _scores(work, s)) * work.tokens)


def layer_hump_bytes(work: Workload) -> float:
    """The layer in work: recomputed activations and backward temporaries, counted once.

    Full: 14h + 12f + 4q + 4kv. Adapter: 18h + 12f + 4q + 4kv, plus 6h (k), 8h (gate), 8h (up), 4q (o), 2f (down)
    and 4r each.
    """
    s = shape_of(work.architecture)
    key_value = s.query if work.masked else s.key_value
    per_token = (18 if work.method is Method.ADAPTER else 14) * s.hidden + 12 * s.feed_forward
    per_token += 4 * s.query + 4 * key_value
    if work.method is Method.ADAPTER:
        modules = adapted_modules(work.architecture, work.targets)
        per_token += s.hidden * sum(_HUMP_HIDDEN.get(name, 0) for name in modules) + 4 * work.rank * len(modules)
        per_token += 4 * s.query * ("o_proj" in modules) + 2 * s.feed_forward * ("down_proj" in modules)
    return float((per_token * _precision_factor(work) + 2 * _routing(s) + _scores(work, s)) * work.tokens)


def logit_hump_bytes(work: Workload) -> float:
    """14·V·T for bf16 models, 16·V·T with the fp32 head of kbit preparation or in fp32, and 6h·T around the last norm.

    With a fused or chunked loss only one chunk of 1,024 tokens is ever alive.
    """
    s = shape_of(work.architecture)
    per_logit = 16 if work.packed or work.compute_bytes == 4 else 14
    tokens = min(work.tokens, 1024) if work.loss is not Loss.FULL else work.tokens
    hump = float(per_logit * s.vocabulary * tokens + 6 * s.hidden * work.tokens)
    if work.teacher is not None:
        hump += 8.0 * work.teacher.vocab_size * tokens
    return hump


def _adapter_inputs(work: Workload, s: Shape) -> float:
    modules = adapted_modules(work.architecture, work.targets)
    if work.adapter_bytes != work.compute_bytes:
        hidden = sum(name in _INPUT_IS_HIDDEN for name in modules)
        wide = s.query * ("o_proj" in modules) + s.feed_forward * ("down_proj" in modules)
        return 4.0 * (s.hidden * hidden + wide) + 4 * work.rank * len(modules)
    shared = any(name in modules for name in ("q_proj", "k_proj", "v_proj"))
    shared_ffn = any(name in modules for name in ("gate_proj", "up_proj"))
    inputs = s.hidden * (shared + shared_ffn) + s.feed_forward * ("down_proj" in modules)
    return 2.0 * inputs + 2 * work.rank * len(modules)


def _precision_factor(work: Workload) -> float:
    """fp32 compute doubles what bf16 would keep."""
    return 2.0 if work.compute_bytes == 4 else 1.0


def _routing(s: Shape) -> float:
    """Mixtures copy each token once per expert it visits, in and out: 4h per visit (own derivation, untraced)."""
    return 4.0 * s.hidden * s.routed


def _scores(work: Workload, s: Shape) -> float:
    """A mask is turned to bf16 in every layer: 2·s per token; eager attention keeps scores: 5.9·a·s per token."""
    masked = 2.0 * work.sequence if work.masked else 0.0
    return masked + (5.9 * s.heads * work.sequence if work.attention is Attention.EAGER else 0.0)
