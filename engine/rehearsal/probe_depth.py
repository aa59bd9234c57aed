"""From models of a few layers to the whole: bytes and seconds of a step are straight lines in the number of layers.

Owns that arithmetic. Must not know devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.jobs.probes import Shape

_LINES = ("allocated_bytes", "reserved_bytes", "process_bytes")


def carried_on(
    tried: Sequence[Sequence[Shape]], depths: Sequence[int], layers: int, context_bytes: float
) -> tuple[Shape, ...]:
    """The shapes of the whole model; `tried` has one list per depth, none of them for a model tried whole.

    With one depth less than the whole, context is taken out and the rest scaled, which counts embeddings too often.
    """
    if not depths or depths[-1] == layers:
        return tuple(tried[-1])
    if len(depths) == 1:
        return tuple(_scaled(shape, layers / depths[0], context_bytes) for shape in tried[0])
    pairs = zip(tried[0], tried[-1], strict=False)
    return tuple(_on_the_line(one, other, depths, layers) for one, other in pairs)


def _on_the_line(one: Shape, other: Shape, depths: Sequence[int], layers: int) -> Shape:
    reach = (layers - depths[0]) / (depths[-1] - depths[0])

    def at(a: float, b: float) -> float:
        return a + (b - a) * reach if a > 0 and b > 0 else 0.0

    def rate(a: float, b: float) -> float:
        """Seconds per token are the line."""
        seconds = at(1 / a, 1 / b) if a > 0 and b > 0 else 0.0
        return 1 / seconds if seconds > 0 else 0.0

    likely = rate(one.tokens_per_second, other.tokens_per_second)
    spread = (
        (one.tokens_per_second_low + other.tokens_per_second_low) / (one.tokens_per_second + other.tokens_per_second),
        (one.tokens_per_second_high + other.tokens_per_second_high) / (one.tokens_per_second + other.tokens_per_second),
    )
    return msgspec.structs.replace(
        other,
        **{name: at(getattr(one, name), getattr(other, name)) for name in _LINES},
        tokens_per_second=likely,
        tokens_per_second_low=likely * spread[0],
        tokens_per_second_high=likely * spread[1],
        tokens_per_cpu_second=rate(one.tokens_per_cpu_second, other.tokens_per_cpu_second),
    )


def _scaled(shape: Shape, times: float, context_bytes: float) -> Shape:
    process = context_bytes + (shape.process_bytes - context_bytes) * times if shape.process_bytes else 0.0
    return msgspec.structs.replace(
        shape,
        allocated_bytes=shape.allocated_bytes * times,
        reserved_bytes=shape.reserved_bytes * times,
        process_bytes=process,
        tokens_per_second=shape.tokens_per_second / times,
        tokens_per_second_low=shape.tokens_per_second_low / times,
        tokens_per_second_high=shape.tokens_per_second_high / times,
        tokens_per_cpu_second=shape.tokens_per_cpu_second / times,
    )
