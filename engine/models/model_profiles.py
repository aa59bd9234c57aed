"""Shapes of well-known models from `profiles/models.toml`, so that plans can be made before any download.

Owns the file's form, look-up by any of a model's names, and which models of a series are larger. Must not know
estimates.
"""

from __future__ import annotations

import difflib
from functools import cache
from typing import Any

import msgspec

from engine.models.architecture import Architecture
from engine.profiles import load_profile


class ModelProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of `models.toml`."""

    id: str
    """Short name, "llama-3.2-3b"."""
    hub_id: str
    series: str
    """Models that can stand in for each other at another size share it: "llama-3", "qwen2.5"."""
    license: str
    parameters: int
    """Exact count of the language model."""
    published_parameters: int
    """What the publisher states, rounded as they round it."""
    source: str
    checked: str
    """Date the entry was checked, ISO."""
    checked_against: str
    """Second source the shape was compared with."""
    config: dict[str, Any]
    """The keys of the model's own config.json that its shape depends on."""
    aliases: tuple[str, ...] = ()
    gated: bool = False
    """Whether the hub asks to accept a licence before the download."""
    successor: bool = True
    """False for a model that `larger_models` should not offer, because a newer one of its size is in the series."""


class _ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[ModelProfile, ...]


@cache
def load_model_profiles() -> tuple[ModelProfile, ...]:
    """All entries, in the file's order. Raises EngineError `toml.*`."""
    return load_profile("models.toml", _ModelFile).model


@cache
def _by_name() -> dict[str, ModelProfile]:
    names: dict[str, ModelProfile] = {}
    for profile in load_model_profiles():
        for name in (profile.id, profile.hub_id, *profile.aliases):
            names.setdefault(name.lower(), profile)
        names.setdefault(profile.hub_id.rpartition("/")[2].lower(), profile)
    return names


def find_model_profile(name: str) -> ModelProfile | None:
    """The entry whose id, hub id or alias is `name`, whatever its case."""
    return _by_name().get(name.strip().lower())


def near_model_names(name: str, count: int = 3) -> tuple[str, ...]:
    """Known names that look like `name`, best first; empty when none does."""
    wanted = name.strip().lower()
    names = _by_name()
    tail = wanted.rpartition("/")[2]
    near = difflib.get_close_matches(wanted, list(names), count, cutoff=0.75)
    near += difflib.get_close_matches(tail, [key.rpartition("/")[2] for key in names], count, cutoff=0.75)
    hub = "/" in wanted
    found = [profile.hub_id if hub else profile.id for key in near for profile in _named(key)]
    return tuple(dict.fromkeys(found))[:count]


def _named(key: str) -> list[ModelProfile]:
    names = _by_name()
    return [names[key]] if key in names else [p for name, p in names.items() if name.rpartition("/")[2] == key][:1]


def larger_models(architecture: Architecture) -> tuple[ModelProfile, ...]:
    """Larger models to use instead of this one, smallest first: of its own series if it is a known model, else of the
    series of its family whose sizes surround it. At least 1.3 times as large; empty when there is none."""
    profiles = load_model_profiles()
    own = find_model_profile(architecture.source) or find_model_profile(architecture.name)
    if own is None:
        own = next((profile for profile in profiles if _same_shape(profile, architecture)), None)
    if own is not None:
        candidates = [p for p in profiles if p.series == own.series]
    else:
        candidates = [p for p in profiles if p.config.get("model_type") == architecture.family]
    larger = [p for p in candidates if p.successor and p.parameters > 1.3 * architecture.parameters]
    return tuple(sorted(larger, key=lambda profile: profile.parameters))


def _same_shape(profile: ModelProfile, architecture: Architecture) -> bool:
    """A fine-tune of a known model has its layers and widths, whatever its name and vocabulary."""
    config = profile.config
    return (
        config.get("model_type") in (architecture.family, f"{architecture.family}_text")
        and config.get("num_hidden_layers") == architecture.layers
        and config.get("hidden_size") == architecture.hidden_size
        and config.get("intermediate_size", architecture.intermediate_size) == architecture.intermediate_size
    )
