"""Which sizes a larger model can have: what the family, its config class and the attention's grouping demand.

Owns those rules and the search for the nearest sizes that satisfy them. Must not know operators or what was asked for
in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from engine.expansion.axes import Dim, Dims
from engine.expansion.layout import Layout

FIELDS: Mapping[str, str] = {
    "hidden": "hidden",
    "ffn": "ffn",
    "heads": "heads",
    "kv_heads": "kv_heads",
    "layers": "depth",
    "experts": "experts",
}
"""What can be asked for -> the key of `Layout.unsupported`."""
NEAREST_STEPS = 64
LARGEST_UNITS = 1 << 20


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that decides whether a shape can be."""

    layout: Layout
    replicates: bool = False
    """Key/value heads are replicated: their groups become smaller."""

    def problem(self, after: Dims) -> str:
        """Why the shape cannot be, as a sentence; "" when it can."""
        return next((text for text in self._problems(after) if text), "")

    def _problems(self, after: Dims) -> Iterator[str]:
        before = self.layout.dims
        for field in FIELDS:
            old, new = getattr(before, field), getattr(after, field)
            if new < old:
                yield f"{_words(field)} would shrink from {old:,} to {new:,}; expansion takes nothing away."
            if new > LARGEST_UNITS:
                yield f"{_words(field)} of {new:,} is beyond every model."
        yield self._attention(after)
        yield self._validators(after)
        if after.experts and after.experts_per_token > after.experts:
            yield f"A token cannot pass {after.experts_per_token} of {after.experts} experts."

    def _attention(self, after: Dims) -> str:
        before, traits = self.layout.dims, self.layout.traits
        if not after.heads or not after.kv_heads:
            return ""
        if traits.key_value_follows and after.kv_heads != after.heads:
            return "Every query head of this family has a key and a value of its own, so both numbers are equal."
        if after.heads % after.kv_heads:
            return f"{after.heads} query heads cannot be divided evenly among {after.kv_heads} key/value heads."
        if self.replicates and after.kv_heads % before.kv_heads:
            return f"Replication makes a whole multiple of the {before.kv_heads} key/value heads."
        old, new = before.heads // before.kv_heads, after.heads // after.kv_heads
        replicas = after.kv_heads // before.kv_heads if self.replicates else 1
        if new * replicas < old:
            return (
                f"Each of the {after.kv_heads} key/value heads would serve {new} query heads where it served {old}; "
                "query heads would lose the key they read."
            )
        return ""

    def _validators(self, after: Dims) -> str:
        traits = self.layout.traits
        if after.heads and not traits.head_dim_key and after.hidden != after.heads * after.head_dim:
            return (
                f"The head size of this family is always hidden / heads, and it must stay {after.head_dim} (rotary "
                f"positions depend on it): hidden {after.hidden:,} needs {after.hidden / after.head_dim:g} heads."
            )
        if traits.heads_divide_hidden and after.heads and after.hidden % after.heads:
            return f"transformers refuses hidden {after.hidden:,} with {after.heads} heads: it is no multiple."
        return ""

    def nearest(self, wanted: Dims, field: str) -> tuple[int, ...]:
        """The nearest possible values of one size below and above what was asked, the others kept."""
        value = getattr(wanted, field)
        step = max(wanted.head_dim, 1) if field == "hidden" else 1
        found = [self._first(wanted, field, range(value, value + NEAREST_STEPS * step))]
        found.insert(0, self._first(wanted, field, range(value, max(value - NEAREST_STEPS * step, 0), -1)))
        return tuple(dict.fromkeys(option for option in found if option))

    def _first(self, wanted: Dims, field: str, values: range) -> int:
        return next((value for value in values if not self.problem(with_size(wanted, field, value))), 0)


def with_size(dims: Dims, field: str, value: int) -> Dims:
    """The shape with one field changed."""
    return replace(dims, **{field: value})


def _words(field: str) -> str:
    return {"ffn": "The feed-forward width", "kv_heads": "The number of key/value heads", "hidden": "Hidden"}.get(
        field, f"The number of {field}"
    )


def unsupported_axis(layout: Layout, after: Dims) -> tuple[str, str]:
    """(axis, reason) of the first growth that the family has no rule for; ("", "") when there is none."""
    before = layout.dims
    for field, axis in FIELDS.items():
        reason = layout.unsupported.get(axis) or layout.unsupported.get(field)
        widths = ("ffn", "expert_ffn", "shared_ffn") if field == "ffn" else (field,)
        if reason and any(getattr(before, name) != getattr(after, name) for name in widths):
            return field, reason
    return "", ""


def expert_width_field(dims: Dims) -> str:
    """The size that `--ffn` means: an expert's width in a mixture, the feed-forward width in a dense model."""
    return Dim.EXPERT_FFN.value if dims.experts else Dim.FFN.value
