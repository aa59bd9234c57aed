"""Axis maps made of copies: every new unit names an old one, outgoing weights are shared out among the copies.

Owns the arithmetic that tiling, LEMON, Net2Wider and bert2BERT have in common. Must not know which of them asks.

Unit j of the new axis computes what unit g(j) computed; whoever consumes the axis divides the weight of a unit among
its copies, with shares that sum to 1:  sum over j with g(j) = i of share_j = 1.  Exact for every function that treats
units alike (activations, attention heads); a norm across the axis additionally needs equal numbers of copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.expansion.maps import AxisMap, Fill, Run, merged

Shares = Callable[[int, int], float]
"""(copy, copies) -> share of the outgoing weight."""


def equal_share(copy: int, copies: int) -> float:
    """1 / copies."""
    return 1 / copies


def unequal_share(copy: int, copies: int) -> float:
    """LEMON's unequal split: shares in the ratio 1 : 2 : 3 ..., so that copies receive different gradients."""
    return 2 * (copy + 1) / (copies * (copies + 1))


def out_map(old_units: Sequence[int], *, source_of_copies: int = 0) -> AxisMap:
    """The producing side: new unit j is old unit `old_units[j]`; a negative one is free."""
    seen: set[int] = set()
    runs = []
    for unit in old_units:
        if unit < 0:
            runs.append(Run(Fill.FREE, 1, new=True))
            continue
        again = unit in seen
        seen.add(unit)
        runs.append(Run(Fill.COPY, 1, unit, source=source_of_copies if again else 0, new=again))
    return merged(runs)


def into_map(old_units: Sequence[int], share: Shares = equal_share, *, noise: float = 0.0) -> AxisMap:
    """The consuming side. `noise` (relative to the weights) is added to one copy of a unit and taken from the next."""
    copies = _counted(old_units)
    seen: dict[int, int] = {}
    runs = []
    for unit in old_units:
        if unit < 0:
            runs.append(Run(Fill.ZERO, 1, new=True))
            continue
        copy, total = seen.get(unit, 0), copies[unit]
        seen[unit] = copy + 1
        runs.append(
            Run(
                Fill.COPY,
                1,
                unit,
                scale=share(copy, total),
                noise=_paired(copy, total) * noise / total,
                noise_key=copy // 2 + 1 if noise and _paired(copy, total) else 0,
                new=copy > 0,
            )
        )
    return merged(runs)


def _counted(units: Sequence[int]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for unit in units:
        counts[unit] = counts.get(unit, 0) + 1
    return counts


def _paired(copy: int, copies: int) -> int:
    """+1, -1, +1, -1 ...; 0 for a last copy without a partner, which is no twin of any other then."""
    if copy == copies - 1 and copies % 2:
        return 0
    return 1 if copy % 2 == 0 else -1
