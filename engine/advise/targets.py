"""Shapes an approach ends with: deeper, wider, or the next larger pretrained model.

Owns the arithmetic of planned shapes (for estimates, not for surgery). Must not know memory, machines or answers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from engine.errors import EngineError
from engine.models.architecture import Architecture


@lru_cache(maxsize=64)
def deeper(architecture: Architecture, growth: float) -> Architecture:
    """The base with `growth` times its layers, new blocks inserted between the old ones; at least one more layer."""
    added = max(round(architecture.layers * (growth - 1)), 1)
    block = (architecture.parameters - architecture.embedding_parameters) // max(architecture.layers, 1)
    moe = architecture.moe
    if moe is not None:
        share = moe.moe_layers / max(architecture.layers, 1)
        moe = replace(moe, moe_layers=round((architecture.layers + added) * share))
    return _grown(architecture, architecture.parameters + added * block, layers=architecture.layers + added, moe=moe)


@lru_cache(maxsize=64)
def wider(architecture: Architecture, target_parameters: int) -> Architecture:
    """The base with wider hidden and feed-forward layers and more heads, close to `target_parameters`.

    Widths are multiples of head_dim, feed-forward multiples of 64: any ratio can be exact on a pre-norm model.
    """
    best = architecture
    step = max(architecture.head_dim, 1)
    group = max(architecture.attention_heads // max(architecture.key_value_heads, 1), 1)
    for extra in range(0, 4096):
        heads = architecture.attention_heads + extra * group
        ratio = heads / architecture.attention_heads
        hidden = max(round(architecture.hidden_size * ratio / step) * step, architecture.hidden_size)
        feed_forward = round(architecture.intermediate_size * ratio / 64) * 64
        candidate = _widened(architecture, hidden, feed_forward, heads)
        if abs(candidate.parameters - target_parameters) <= abs(best.parameters - target_parameters):
            best = candidate
        if candidate.parameters >= target_parameters:
            break
    return best


@lru_cache(maxsize=64)
def larger(architecture: Architecture) -> Architecture:
    """The next larger known model to download; a widened shape stands in when none is known, and says so."""
    from engine.models.analyze import analyze
    from engine.models.model_profiles import larger_models

    profiles = larger_models(architecture)
    wanted = 1.7 * architecture.parameters
    chosen = next((profile for profile in profiles if profile.parameters >= wanted), profiles[0] if profiles else None)
    if chosen is not None:
        try:
            return analyze(chosen.id)
        except EngineError:
            pass
    stand_in = wider(architecture, round(2.1 * architecture.parameters))
    note = "No larger model of this family is known here; a shape of about twice the size stands in."
    return replace(stand_in, name="a model of about twice the size", notes=(note,))


def _widened(architecture: Architecture, hidden: int, feed_forward: int, heads: int) -> Architecture:
    group = max(architecture.attention_heads // max(architecture.key_value_heads, 1), 1)
    moe = architecture.moe
    if moe is not None:
        ratio = hidden / architecture.hidden_size
        moe = replace(
            moe,
            expert_intermediate_size=round(moe.expert_intermediate_size * ratio),
            shared_intermediate_size=round(moe.shared_intermediate_size * ratio),
        )
    shape = replace(
        architecture,
        hidden_size=hidden,
        intermediate_size=max(feed_forward, architecture.intermediate_size),
        attention_heads=heads,
        key_value_heads=max(heads // group, architecture.key_value_heads),
        moe=moe,
    )
    norms = 2 * architecture.layers * hidden + hidden
    return _grown(shape, shape.linear_parameters + shape.embedding_parameters + norms)


def _grown(architecture: Architecture, parameters: int, **changes: object) -> Architecture:
    return replace(
        architecture,
        parameters=parameters,
        parameters_source="config",
        weight_bytes=2 * parameters,
        **changes,  # type: ignore[arg-type]
    )
