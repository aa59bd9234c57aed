"""NTK-by-parts and YaRN: fast pairs are left alone, slow ones interpolated, with a ramp between.

The ramp is linear in the pair's index between two correction dimensions, as transformers computes it; the paper's is
linear in the number of rotations.
"""

from __future__ import annotations

import math
from typing import Any

from engine.context.faults import bad_option
from engine.context.method import Method, Options
from engine.context.scaling import Rotary, Scaling


def correction_range(rotary: Rotary, options: Options) -> tuple[float, float]:
    """The pairs between which the ramp runs: those that turn beta_fast and beta_slow times within L.

    d/2 · log_b(L / (2π·β)), rounded outwards unless `truncate` is off, within 0 and d - 1 (YaRN's reference code and
    transformers' bound by d - 1, although there are only d/2 pairs).
    """
    if not options.beta_fast > options.beta_slow > 0:
        raise bad_option("beta_fast", options.beta_fast, f"above beta_slow ({options.beta_slow:g}), and both above 0")

    def pair_of(rotations: float) -> float:
        turns = rotary.length / (rotations * 2 * math.pi)
        return rotary.dim * math.log(turns) / (2 * math.log(rotary.theta))

    low, high = pair_of(options.beta_fast), pair_of(options.beta_slow)
    if options.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary.dim - 1)
    return low, high + 0.001 if low == high else high


def by_parts_divisors(rotary: Rotary, factor: float, options: Options) -> tuple[float, ...]:
    """λ_i = 1 / (γ + (1 - γ)/s) with γ = 1 - clip((i - low)/(high - low), 0, 1) (arXiv 2309.00071, section 3.2)."""
    low, high = correction_range(rotary, options)
    keep = [1 - min(max((pair - low) / (high - low), 0.0), 1.0) for pair in range(rotary.pairs)]
    return tuple(1 / (share + (1 - share) / factor) for share in keep)


def yarn_attention_factor(factor: float) -> float:
    """m = 0.1·ln(s) + 1 (arXiv 2309.00071, equation 22)."""
    return 0.1 * math.log(factor) + 1


def scale_by_parts(rotary: Rotary, ratio: float, options: Options) -> Scaling:
    """NTK-by-parts: λ as `by_parts_divisors`, m = 1 unless one is given."""
    return Scaling(by_parts_divisors(rotary, ratio, options), options.attention_factor or 1.0)


def scale_yarn(rotary: Rotary, ratio: float, options: Options) -> Scaling:
    """YaRN: NTK-by-parts and m = 0.1·ln(s) + 1 on cos and sin, unless another is given."""
    return Scaling(by_parts_divisors(rotary, ratio, options), options.attention_factor or yarn_attention_factor(ratio))


def settings(rotary: Rotary, ratio: float, options: Options, scaling: Scaling) -> dict[str, Any]:
    """`attention_factor` only where it is not YaRN's own: older vLLM passes it over or takes it as a multiplier."""
    written: dict[str, Any] = {"rope_type": "yarn", "rope_theta": rotary.theta, "factor": float(ratio)}
    written |= {"beta_fast": float(options.beta_fast), "beta_slow": float(options.beta_slow)}
    if not math.isclose(scaling.attention_factor, yarn_attention_factor(ratio), rel_tol=1e-12):
        written["attention_factor"] = float(scaling.attention_factor)
    if not options.truncate:
        written["truncate"] = False
    return written


BY_PARTS = Method(
    id="by-parts",
    title="NTK-by-parts",
    summary="leaves pairs that turn often alone, interpolates those that hardly turn, blends between",
    source="arXiv 2309.00071, section 3.2",
    scale=scale_by_parts,
    settings=settings,
    kind="yarn",
)
YARN = Method(
    id="yarn",
    title="YaRN",
    summary="NTK-by-parts, and attention made sharper as the window grows",
    source="arXiv 2309.00071",
    scale=scale_yarn,
    settings=settings,
    kind="yarn",
    extends=("yarn",),
)
