"""How the residual stream is rescaled, and what that does to each kind of tensor.

Owns the policy and the factors per role. Must not know names or files.

A norm over the wider stream sees other statistics: with x' = t [copies of x; 0] (for LayerNorm the mean in place of 0)

    mean square(x') = t^2 copies d/d' mean square(x) = (t / s)^2 mean square(x),     s = sqrt(d' / (copies d))
    norm(x')        = s norm(x)      if the epsilon is multiplied by (t / s)^2

so gains after it are divided by s. Two choices of t matter: t = s leaves the epsilon and scales the matrices, t = 1
leaves every matrix as it is, bit for bit, and scales gains and epsilon only. The second is the rule. Nets whose QK-norm
uses the same epsilon would feel its change:

    float32                          t = s
    16 bits, QK-norm per head        t = 1: the epsilon is off by s^2 for the QK-norm alone, whose mean square is 10^6
                                     times larger in trained nets; scaling matrices instead would round them
    16 bits, over the projection     t = 1, query and key scaled like the epsilon's root (OLMo: a small raw stream)

Source: own derivation; the case t = 1, RMSNorm, without epsilon is Gesmundo & Maile (arXiv 2308.06103).
"""

from __future__ import annotations

from math import sqrt

from engine.expansion.axes import Role
from engine.expansion.growth import AxisGrowth, StreamScales
from engine.expansion.layout import Traits

HALF_TYPES = ("BF16", "F16")
GAINS = (Role.PRE_GAIN, Role.POST_GAIN, Role.FINAL_GAIN, Role.FINAL_BIAS, Role.QK_GAIN_FULL)
"""Small vectors that are kept in float32 where a half-precision type cannot hold their rescaled values."""


def has_post_norm(traits: Traits) -> bool:
    """Whether a branch's output is normalised before it is added."""
    return traits.placement in ("post", "sandwich")


def stream_scales(old: int, new: int, hidden: AxisGrowth, traits: Traits, dtype: str) -> StreamScales:
    """The scales for a stream of `old` coordinates grown to `new`; `dtype` is the stored type of the matrices."""
    if old == new and hidden.copies == 1:
        return StreamScales()
    stretch = sqrt(new / (hidden.copies * old))
    multiplier = sqrt(new / old) if traits.embedding_times_root else 1.0
    half = dtype in HALF_TYPES
    if traits.fixed_epsilon or (traits.qk_norm_shares_epsilon and not half):
        return StreamScales(stretch, stretch, stretch, multiplier, hidden.copies)
    if half and traits.embedding_times_root and has_post_norm(traits):
        # Gemma 2 and 3: the embedding's multiplier supplies t = s and post-norms undo u = 1, so nothing is rounded;
        # the epsilon is then off for the post-norms alone, by less than one part in 10^6 of their mean square.
        return StreamScales(stretch, multiplier, 1.0, multiplier, hidden.copies)
    query_key = 1 / stretch if traits.qk_norm == "full" and traits.qk_norm_shares_epsilon else 1.0
    return StreamScales(stretch, 1.0, 1.0, multiplier, hidden.copies, query_key)


def role_factor(role: Role, scales: StreamScales, traits: Traits) -> float:
    """What old values of a tensor of this role are multiplied by (on top of its axis maps)."""
    match role:
        case Role.EMBEDDING:
            return scales.stream / scales.multiplier
        case Role.POSITIONS:
            return scales.stream
        case Role.WRITE | Role.WRITE_BIAS:
            return scales.branch if has_post_norm(traits) else scales.stream
        case Role.PRE_GAIN:
            return 1 / scales.stretch
        case Role.POST_GAIN:
            return scales.stream / scales.stretch
        case Role.RAW_READ:
            return 1 / scales.stream
        case Role.QK_MATRIX_FULL:
            return scales.query_key
        case Role.READ | Role.ROUTER | Role.HEAD if traits.gainless:
            return 1 / scales.stretch
        case Role.FINAL_GAIN if traits.tied:
            return scales.multiplier / (scales.copies * scales.stretch * scales.stream)
        case Role.FINAL_GAIN:
            return 1 / scales.stretch
        case Role.FINAL_BIAS if traits.tied:
            return scales.multiplier / (scales.copies * scales.stream)
        case _:
            return 1.0


def is_power_of_two(factor: float) -> bool:
    """Whether multiplying by `factor` loses no bit (barring overflow)."""
    from math import frexp

    return frexp(abs(factor))[0] == 0.5
