"""Shapes an approach ends with: deeper, wider, or the next larger pretrained model.

Owns which shape stands for which approach. Must not know memory, machines or answers. Grown shapes are those that the
expansion's planner finds, so that the matrix and `scaler-wizard expand` speak of the same model.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from engine.errors import EngineError
from engine.expansion import search
from engine.expansion.axes import Dims
from engine.expansion.grown import config_of, grown_architecture
from engine.expansion.layouts import layout_for
from engine.expansion.shape_rules import Rules
from engine.expansion.sizes import config_inventory
from engine.models.architecture import Architecture


@lru_cache(maxsize=64)
def deeper(architecture: Architecture, growth: float) -> Architecture:
    """The base with about `growth` times its layers in whole periods of their pattern; at least one period more."""
    space = space_of(architecture)
    step = search.layer_step(space)
    added = max(round(architecture.layers * (growth - 1) / step), 1) * step
    return _grown(architecture, space, replace(space.before, layers=architecture.layers + added))


@lru_cache(maxsize=64)
def deeper_to(architecture: Architecture, target_parameters: int) -> Architecture:
    """The base with more layers, close to `target_parameters`."""
    space = space_of(architecture)
    return _grown(architecture, space, search.deeper(space, target_parameters))


@lru_cache(maxsize=64)
def wider(architecture: Architecture, target_parameters: int) -> Architecture:
    """The base with wider hidden and feed-forward layers and more heads, close to `target_parameters`.

    Where its family cannot widen the stream, the feed-forward networks grow alone, else the layers.
    """
    space = space_of(architecture)
    found = (
        search.wider(space, target_parameters)
        or search.wider_feed_forward(space, target_parameters)
        or search.deeper(space, target_parameters)
    )
    return _grown(architecture, space, found)


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


@lru_cache(maxsize=64)
def space_of(architecture: Architecture) -> search.Space:
    """What a model of which only the shape is known may become; families without a layout are taken for a Llama.

    Parameters that the layout does not explain (a vision tower, an unknown part) stay as they are.
    """
    config = config_of(architecture)
    try:
        layout = layout_for(config, architecture.name)
    except EngineError:
        config = _like_a_llama(architecture)
        layout = layout_for(config, architecture.name)
    inventory = config_inventory(layout, config)
    return search.Space(inventory, Rules(layout), architecture.parameters - inventory.parameters(layout.dims))


def _like_a_llama(architecture: Architecture) -> dict[str, object]:
    """A config of that family with the sizes that are known, and one unit of what is not."""
    heads = max(architecture.attention_heads, 1)
    sizes = {
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": architecture.key_value_heads if heads % max(architecture.key_value_heads, 1) == 0 else 1,
        "head_dim": architecture.head_dim or architecture.hidden_size // heads,
        "vocab_size": architecture.vocab_size,
    }
    plain = {key: max(size, 1) for key, size in sizes.items()}
    return {"model_type": "llama", "tie_word_embeddings": architecture.tied_embeddings, **plain}


def _grown(architecture: Architecture, space: search.Space, found: Dims | None) -> Architecture:
    if found is None:
        return architecture
    return grown_architecture(architecture, found, space.parameters(found))
