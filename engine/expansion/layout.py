"""What a family stores: its sizes, its traits, and one rule per tensor.

Owns the types that `engine.expansion.layouts` fills. Must not know what growth does to a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from engine.expansion.axes import Axis, Dims, Fused, Role


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of stored tensor."""

    pattern: str
    """The name with {i} for the layer and {e} for the expert: "model.layers.{i}.self_attn.q_proj.weight"."""
    role: Role
    axes: tuple[Axis | Fused, ...]
    closes: bool = False
    """Zeroing it makes the block an identity: the last affine operation of a branch, or its post-norm gain."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What decides which growth is exact. A trait no code here knows must end in a refusal, not in a guess."""

    norm: str
    """ "rmsnorm", "rmsnorm+1" (multiplies by 1 + w), "layernorm"."""
    placement: str
    """ "pre", "post", "sandwich", "parallel"."""
    tied: bool
    qk_norm: str = "none"
    """ "none", "head" (one vector over the head size), "per-head" (a vector for each head), "full"."""
    qk_norm_shares_epsilon: bool = False
    """Whether the QK-norm uses the config's one epsilon, so that it cannot be rescaled for the stream alone."""
    embedding_times_root: bool = False
    """The embedding is multiplied by sqrt(hidden) (Gemma)."""
    biases: tuple[str, ...] = ()
    """Of "qkv", "output", "mlp", "head"."""
    fused: tuple[str, ...] = ()
    """Of "qkv", "gate_up", "experts"."""
    head_dim_key: bool = True
    """An explicit `head_dim` is honoured, so that hidden may grow while heads stay."""
    heads_divide_hidden: bool = False
    """transformers refuses a config where hidden is not a multiple of heads, whatever head_dim says."""
    partial_rotary: float = 1.0
    learned_positions: bool = False
    alibi: bool = False
    scaling: tuple[str, ...] = ()
    """Config keys that scale something and stay as they are ("logit_scale", "attention_multiplier")."""
    per_layer_keys: tuple[str, ...] = ()
    """Config lists with one entry per layer ("layer_types")."""
    layer_period: int = 1
    """Layers after which a per-layer pattern repeats; other runtimes derive the pattern from the index."""
    experts: str = "none"
    """ "none", "renormalised" (weights of the chosen experts sum to 1), "plain"."""
    experts_on_disk: str = "none"
    """ "none", "each" (a file entry per expert), "stacked" (one tensor for all)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A checkpoint as the planner and the recipes see it."""

    family: str
    dims: Dims
    traits: Traits
    rules: tuple[Rule, ...]
    config_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """`Dims` field -> config keys that hold it; the first is written when none is present."""
    epsilon_keys: tuple[str, ...] = ("rms_norm_eps",)
    epsilon: float = 1e-6
    """The value in effect: the config's, or the family's default for a config that leaves the key out."""
    per_layer: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The lists of `Traits.per_layer_keys` as they are in effect, also those that the family derives from a layer's
    index when the config leaves them out; after a change of depth they must be written."""
    unsupported: Mapping[str, str] = field(default_factory=dict)
    """Axis name ("hidden", "depth", ...) -> why this family cannot grow there."""
    ignored: tuple[str, ...] = ()
    """Patterns of stored buffers that are copied as they are, or dropped with a layer (rotary tables)."""

    def find(self, name: str) -> Match | None:
        """The rule of a stored tensor and the numbers in its name; None when no rule knows it."""
        for rule, compiled in zip(self.rules, _compiled(tuple(rule.pattern for rule in self.rules)), strict=True):
            found = compiled.fullmatch(name)
            if found:
                groups = found.groupdict()
                layer, expert = groups.get("i"), groups.get("e")
                return Match(rule, int(layer) if layer else None, int(expert) if expert else None)
        return None


@dataclass(frozen=True, slots=True)
class Match:
    """A stored tensor's rule, layer and expert."""

    rule: Rule
    layer: int | None
    expert: int | None


@lru_cache(maxsize=256)
def _compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(
        re.compile(re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{e\}", r"(?P<e>\d+)"))
        for pattern in patterns
    )
