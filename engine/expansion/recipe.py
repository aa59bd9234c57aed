"""One output tensor as an instruction: its sources, a map per axis, a scale, and what fills the free places.

Owns the instruction set between the plan and the surgery. Must not know families (who made the recipe), files, or how
it is carried out. Element (i, j) of a matrix with row run R and column run C is

    zero    if either run is ZERO
    free    else if either is FREE       seeded normal values of `fresh_std`, or the constant `fresh_value`
    value   else                         scale * R.scale * C.scale * W[R.start + i, C.start + j] + shift (+ noise)

with the mean over the old axis in place of W where a run is MEAN.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.expansion.maps import AxisMap, new_spans


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor that a recipe reads."""

    name: str
    made: bool = False
    """Taken from the layers made before the surgery (LESA, aligned averages), not from the source model."""
    weight: float = 1.0
    """Blends add their sources with these weights; runs that name a source ignore them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one tensor of the larger model is made."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it: "BF16", "F32"."""
    sources: tuple[Source, ...]
    """Empty for a tensor that is all constant or all free."""
    maps: tuple[AxisMap, ...]
    """One per axis; identities for a plain copy."""
    scale: float = 1.0
    shift: float = 0.0
    constant: float | None = None
    """Every element has this value: the closing operation of an identity block."""
    fresh_std: float = 0.0
    fresh_value: float | None = None
    """The neutral value of a gain (1, or 0 where the norm multiplies by 1 + w); None draws from `fresh_std`."""
    noise: float = 0.0
    """Added to every copied element, as `Run.noise`, where the axis that was copied has files of its own (experts)."""
    noise_key: int = 0
    new: bool = False
    """The whole tensor is new (it belongs to an added layer or expert)."""
    operators: tuple[str, ...] = ()
    """Names of the operators that changed it, for the certificate."""

    @property
    def is_plain_copy(self) -> bool:
        """Whether the output's bytes are the source's bytes (given equal dtypes)."""
        return (
            len(self.sources) == 1
            and self.constant is None
            and self.scale == 1.0
            and self.shift == 0.0
            and self.noise == 0.0
            and not self.operators_change_values
        )

    @property
    def operators_change_values(self) -> bool:
        """Whether a map moves, scales, repeats or fills anything."""
        for extent, axis in zip(self.shape, self.maps, strict=True):
            if len(axis) != 1 or axis[0].count != extent:
                return True
            run = axis[0]
            if run.fill != "copy" or run.start or run.scale != 1.0 or run.noise or run.source:
                return True
        return False

    @property
    def new_spans(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Half-open ranges of new entries per axis; an element is new when one of its entries is."""
        if self.new:
            return (((0, self.shape[0]),), *(() for _ in self.shape[1:])) if self.shape else ()
        return tuple(new_spans(axis) for axis in self.maps)
