"""What a family stores: its sizes, its traits, and one rule per tensor.

Owns the types that `engine.expansion.layouts` fills. Must not know what growth does to a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from engine.expansion.axes import Axis, Dim, Dims, Fused, Role


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of stored tensor."""

    pattern: str
    """The name with {i} for the layer and {e} for the expert: "model.layers.{i}.self_attn.q_proj.weight"."""
    role: Role
    axes: tuple[Axis | Fused, ...]
    closes: bool = False
    """Zeroing it makes the block an identity: the last affine operation of a branch, or its post-norm gain."""
    alias: bool = False
    """Another name of a tensor that another rule knows; a file has one of them."""
    counted: Dim | None = None
    """What {h} in the name counts where each head has a tensor of its own (StableLM's QK-norms): QUERY or KEY_VALUE."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What decides which growth is exact. A trait no code here knows must end in a refusal, not in a guess."""

    norm: str
    """ "rmsnorm", "rmsnorm+1" (multiplies by 1 + w), "layernorm", "layernorm+1"."""
    placement: str
    """ "pre", "post", "sandwich", "parallel"."""
    tied: bool
    qk_norm: str = "none"
    """ "none", "head" (one vector over the head size), "per-head" (a vector for each head), "full"."""
    qk_norm_shares_epsilon: bool = False
    """Whether the QK-norm uses the config's one epsilon, so that it cannot be rescaled for the stream alone."""
    fixed_epsilon: bool = False
    """The norms' epsilon is a constant of the code, which no config can change."""
    gainless: bool = False
    """Norms over the stream have no gain (OLMo 1): what reads them absorbs the stretch."""
    embedding_times_root: bool = False
    """The embedding is multiplied by sqrt(hidden) (Gemma)."""
    biases: tuple[str, ...] = ()
    """Of "qkv", "output", "mlp", "head"."""
    fused: tuple[str, ...] = ()
    """Of "qkv", "gate_up", "experts"."""
    head_dim_key: bool = True
    """An explicit `head_dim` is honoured, so that hidden may grow while heads stay."""
    key_value_follows: bool = False
    """Every query head has a key and a value of its own: kv_heads always equals heads and has no config key."""
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

    @property
    def centred(self) -> bool:
        """Whether norms subtract the mean, so that new stream coordinates must hold it."""
        return self.norm.startswith("layernorm")

    @property
    def plus_one(self) -> bool:
        """Whether norms multiply by 1 + their stored gain."""
        return self.norm.endswith("+1")


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
    optional_prefix: str = ""
    """Start of names that files saved from the class without an output head leave out ("transformer.")."""

    def find(self, name: str) -> Match | None:
        """The rule of a stored tensor and the numbers in its name; None when no rule knows it."""
        return _find(self.rules, name) or _find(_without(self.rules, self.optional_prefix), name)

    def is_ignored(self, name: str) -> bool:
        """Whether a stored tensor is a buffer that loaders make anew."""
        bare = tuple(pattern.removeprefix(self.optional_prefix) for pattern in self.ignored)
        return any(compiled.fullmatch(name) for compiled in _compiled((*self.ignored, *bare)))


@dataclass(frozen=True, slots=True)
class Match:
    """A stored tensor's rule, layer, expert and head."""

    rule: Rule
    layer: int | None
    expert: int | None
    head: int | None = None


@lru_cache(maxsize=256)
def _compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    numbers = r"\\{([ieh])\\}"
    return tuple(re.compile(re.sub(numbers, r"(?P<\1>\\d+)", re.escape(pattern))) for pattern in patterns)


def _find(rules: tuple[Rule, ...], name: str) -> Match | None:
    for rule, compiled in zip(rules, _compiled(tuple(rule.pattern for rule in rules)), strict=True):
        found = compiled.fullmatch(name)
        if found:
            groups = found.groupdict()
            layer, expert, head = (int(groups[key]) if groups.get(key) else None for key in ("i", "e", "h"))
            return Match(rule, layer, expert, head)
    return None


@lru_cache(maxsize=64)
def _without(rules: tuple[Rule, ...], prefix: str) -> tuple[Rule, ...]:
    """The rules whose names begin with `prefix`, without it."""
    named = (rule for rule in rules if prefix and rule.pattern.startswith(prefix))
    return tuple(replace(rule, pattern=rule.pattern.removeprefix(prefix)) for rule in named)
