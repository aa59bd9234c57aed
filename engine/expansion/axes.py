"""The axes along which a decoder can grow, and what a tensor's axes mean.

Owns the vocabulary every other module of the package speaks. Must not know families, files or numbers.

A weight is out x in. A matrix that *writes* adds its rows to the residual stream, one that *reads* consumes the stream
with its columns; growing the stream therefore touches rows of the first and columns of the second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Dim(StrEnum):
    """A countable dimension of a decoder. Units of QUERY and KEY_VALUE are heads; their axes are heads x head size."""

    HIDDEN = "hidden"
    FFN = "ffn"
    EXPERT_FFN = "expert_ffn"
    """Width of one expert."""
    SHARED_FFN = "shared_ffn"
    """Width of the expert every token passes."""
    QUERY = "heads"
    KEY_VALUE = "kv_heads"
    EXPERT = "experts"
    VOCAB = "vocab"
    FIXED = "fixed"
    """Never grows: a head's own coordinates, a convolution kernel."""


class Side(StrEnum):
    """What a tensor does with an axis."""

    OUT = "out"
    """Produces it: rows of a projection, columns of an embedding."""
    IN = "in"
    """Consumes it: columns of a projection, columns of the output head."""
    ALONG = "along"
    """Multiplies it element by element: a gain, a sink per head."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a stored tensor."""

    dim: Dim
    side: Side = Side.OUT
    per_head: bool = True
    """QUERY and KEY_VALUE only: head size entries per unit; False for one entry per head."""


@dataclass(frozen=True, slots=True)
class Fused:
    """An axis on which several are stored together."""

    parts: tuple[Axis, ...]
    order: str = "concat"
    """"concat": one part after the other (Phi-3's qkv_proj). "grouped": for each key/value group its query heads, its
    key, its value (GPT-NeoX, Falcon); parts are query, key, value. "interleaved": entry by entry (GPT-OSS gate, up)."""


class Role(StrEnum):
    """What a tensor is for; decides how a rescaled stream changes its values."""

    EMBEDDING = "embedding"
    POSITIONS = "positions"
    """Learned position table, added to the embedding."""
    READ = "read"
    """Consumes the normalised stream."""
    RAW_READ = "raw read"
    """Consumes the stream itself (OLMo 2: no norm before the projection)."""
    WRITE = "write"
    """Added to the stream, or normalised and then added where `Traits.post_norm` says so."""
    WRITE_BIAS = "write bias"
    HEAD = "head"
    """Untied output head."""
    PRE_GAIN = "pre gain"
    PRE_BIAS = "pre bias"
    POST_GAIN = "post gain"
    """Of a norm over a branch's output, before it is added to the stream."""
    FINAL_GAIN = "final gain"
    FINAL_BIAS = "final bias"
    QK_GAIN_FULL = "qk gain over the projection"
    """Of a norm over all heads at once (OLMo 2)."""
    QK_MATRIX_FULL = "qk matrix under a norm over the projection"
    """Query or key projection whose output a full-width norm normalises."""
    INNER = "inner"
    """No end on the stream, or an end that no rescaling touches: biases of q, k, v, gate; sinks."""
    HEAD_GAIN = "head gain"
    """Of a norm over each head's query or key."""
    ROUTER = "router"
    """Reads the normalised stream, one row per expert."""


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes that define a decoder's shape. Counts of units; 0 where the model has no such thing."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0

    def of(self, dim: Dim) -> int:
        """Units of `dim`."""
        return {
            Dim.HIDDEN: self.hidden,
            Dim.FFN: self.ffn,
            Dim.EXPERT_FFN: self.expert_ffn,
            Dim.SHARED_FFN: self.shared_ffn,
            Dim.QUERY: self.heads,
            Dim.KEY_VALUE: self.kv_heads,
            Dim.EXPERT: self.experts,
            Dim.VOCAB: self.vocab,
            Dim.FIXED: self.head_dim,
        }[dim]

    def with_units(self, dim: Dim, units: int) -> Dims:
        """A copy with `units` of `dim`."""
        if dim is Dim.QUERY:
            return replace(self, heads=units)
        if dim is Dim.KEY_VALUE:
            return replace(self, kv_heads=units)
        return replace(self, **{dim.value: units})
