"""Tiling: the whole axis repeated a whole number of times, what consumes it divided by that number (HyperCloning).

    hidden d -> n d   W' = W repeated n x n / n; the stream is n copies, every norm sees the statistics it knew
    ffn, heads        units repeated, consumers divided

Exact for whole multiples. Without noise the copies stay equal for ever in a deterministic run: they receive equal
gradients. "tile" therefore adds noise to one copy and takes it from its twin, so that the sum is unchanged (10 dB, as
in the paper); "tile-plain" is the paper's default without it, and says so. With a tied head the copies share their
embedding rows. Source: Samragh et al., "HyperCloning", 2024 (arXiv 2409.12903).
"""

from __future__ import annotations

from engine.errors import EngineError
from engine.expansion.axes import Dim, Dims
from engine.expansion.growth import AxisGrowth, AxisRequest
from engine.expansion.maps import AxisMap, Fill, Run
from engine.expansion.operators.copies import Shares, equal_share, into_map, out_map
from engine.expansion.operators.heads import key_value_slots, query_slots
from engine.expansion.operators.registry import ATTENTION, WIDTHS, Operator

NOISE = 10 ** (-10 / 20)
"""Noise over weights at a signal-to-noise ratio of 10 dB."""


def whole_copies(
    old: int, copies: int, *, share: Shares | None = None, noise: float = 0.0
) -> tuple[AxisMap, AxisMap, AxisMap]:
    """Out, into and along for `copies` repetitions of a whole axis, block after block."""
    share = share or equal_share
    out = tuple(Run(Fill.COPY, old, new=copy > 0) for copy in range(copies))
    into = []
    for copy in range(copies):
        paired = 0 if copy == copies - 1 and copies % 2 else (1 if copy % 2 == 0 else -1)
        into.append(
            Run(
                Fill.COPY,
                old,
                scale=share(copy, copies),
                noise=paired * noise / copies,
                noise_key=copy // 2 + 1 if noise and paired else 0,
                new=copy > 0,
            )
        )
    return out, tuple(into), out


def _grow(request: AxisRequest, name: str, noise: float) -> AxisGrowth:
    if request.new % request.old:
        raise EngineError(
            "expansion.multiple",
            f"Tiling needs a whole multiple: {request.dim.value} {request.old} cannot become {request.new}.",
            cause="Every unit is repeated equally often.",
            next_step=f"Choose {request.old * (request.new // request.old + 1)}, or pad, exact at any ratio.",
        )
    copies = request.new // request.old
    if request.dim is Dim.KEY_VALUE:
        slots = key_value_slots(request)
        return AxisGrowth(request.dim, out_map(slots), into_map(slots), out_map(slots), name)
    if request.dim is Dim.QUERY:
        slots = query_slots(request, fill_with_copies=True)
        return AxisGrowth(request.dim, out_map(slots), into_map(slots, noise=noise), out_map(slots), name)
    out, into, along = whole_copies(request.old, copies, noise=noise)
    return AxisGrowth(request.dim, out, into, along, name, copies=copies if request.dim is Dim.HIDDEN else 1)


def grow(request: AxisRequest) -> AxisGrowth:
    """Tiling with paired noise."""
    return _grow(request, "tile", NOISE)


def grow_plain(request: AxisRequest) -> AxisGrowth:
    """Tiling without noise."""
    return _grow(request, "tile-plain", 0.0)


def _whole(axis: str, before: Dims, after: Dims) -> bool:
    old, new = before.of(Dim(axis)), after.of(Dim(axis))
    return old > 0 and new % old == 0


TILE = Operator(
    name="tile",
    title="tiling with noise",
    axes=(*WIDTHS, *ATTENTION),
    exact="for whole multiples",
    loses="Nothing for whole multiples; others are refused.",
    source="Samragh et al. 2024, HyperCloning (arXiv 2409.12903)",
    grow=grow,
    is_exact=_whole,
)
TILE_PLAIN = Operator(
    name="tile-plain",
    title="tiling without noise",
    axes=(*WIDTHS, *ATTENTION),
    exact="for whole multiples",
    loses="Copies are twins: without dropout they receive equal gradients for ever and add no capacity.",
    source="Samragh et al. 2024, HyperCloning, default setting (arXiv 2409.12903)",
    grow=grow_plain,
    is_exact=_whole,
)
