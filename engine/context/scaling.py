"""Rotary embeddings and what a scaling method makes of them: one divisor per pair, one factor on cos and sin.

Owns these two types and the frequencies they stand for. Must not know methods, configs or torch.

A head rotates its first `dim` dimensions in `dim / 2` pairs. Pair i turns by θ_i = theta^(-2i/dim) radians per token
(RoFormer, arXiv 2104.09864); a scaled model turns it by θ_i / λ_i, with λ_i the pair's divisor. cos and sin are
multiplied by m, so that attention logits are multiplied by m² (YaRN, arXiv 2309.00071, calls 1/sqrt(t) what is m here).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Scaling:
    """What a method makes of one rotary embedding; tuples have one entry per pair."""

    divisors: tuple[float, ...]
    """λ: the pair's frequency is divided by it. 1 leaves a pair alone."""
    attention_factor: float = 1.0
    """m, on cos and sin."""
    short_divisors: tuple[float, ...] = ()
    """λ while no position reaches the original length; empty where one set serves every length."""

    @property
    def switches(self) -> bool:
        """Whether short and long sequences are rotated differently."""
        return bool(self.short_divisors) and self.short_divisors != self.divisors


@dataclass(frozen=True, slots=True)
class Rotary:
    """One rotary embedding of a model, as its config has it before anything is changed."""

    dim: int
    """Rotated dimensions per head; even."""
    theta: float
    length: int
    """L: tokens of the present window; of the one before its present scaling where a method replaces that."""
    layer_type: str = ""
    """ "" where all layers share one; else the key under `rope_parameters` ("full_attention")."""
    present: Scaling | None = None
    """The scaling that the config already asks for; None for type "default"."""
    present_kind: str = "default"
    present_settings: tuple[tuple[str, Any], ...] = ()
    """What the config writes for `present_kind`: factor, betas, the length before it; without theta."""
    carried: tuple[tuple[str, Any], ...] = ()
    """Entries that say how the embedding is laid out, whatever its scaling: the rotated share, M-RoPE sections."""

    @property
    def pairs(self) -> int:
        return self.dim // 2

    @property
    def frequencies(self) -> tuple[float, ...]:
        """θ_i of every pair, radians per token, without any scaling."""
        return tuple(float(self.theta ** (-2 * pair / self.dim)) for pair in range(self.pairs))

    def wavelength(self, pair: int) -> float:
        """Tokens of one full turn of `pair`, without any scaling."""
        return 2 * math.pi * float(self.theta ** (2 * pair / self.dim))

    def rotations(self, pair: int) -> float:
        """Full turns of `pair` within the window."""
        return self.length / self.wavelength(pair)


def unscaled(rotary: Rotary) -> Scaling:
    """Ones everywhere."""
    return Scaling((1.0,) * rotary.pairs)


def inverse_frequencies(rotary: Rotary, divisors: tuple[float, ...]) -> tuple[float, ...]:
    """θ_i / λ_i of every pair, radians per token: what a model's `inv_freq` must hold."""
    return tuple(theta / divisor for theta, divisor in zip(rotary.frequencies, divisors, strict=True))
