"""Where added layers go, so that per-layer patterns survive.

Owns placement arithmetic for all depth operators. Must not know what an added layer holds.

A net whose layers differ in a pattern of period p (sliding, sliding, full ...) grows by whole periods: a *unit* is p
consecutive layers, and copies of a unit follow it. Layers left over (added mod p) go to the end, each a relative of
the layer the pattern wants there, so that layer j still has the kind of layer j mod p: other runtimes derive the kind
from the index. Uneven tails of the source (26 layers with a period of 6) stay last.

    L = 6, p = 2, 5 added, interleaved     0 1  0'1' 2 3  4 5  4'5' | 4'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.errors import EngineError
from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.layout import Traits
from engine.expansion.operators.registry import LayerRequest

PLACEMENTS = ("interleaved", "start", "end", "upper")

MakeLayer = Callable[[int, int, float], LayerSource]
"""(base, next layer of its kind, share of that one) -> the layer between the two."""


@dataclass(frozen=True, slots=True)
class Units:
    """A source's layers as whole periods and a tail."""

    period: int
    count: int
    tail: int
    """Layers after the last whole period."""

    @classmethod
    def of(cls, request: LayerRequest) -> Units:
        """Whole periods, or single layers where the net is too short to show that its pattern repeats."""
        period = request.traits.layer_period if request.old >= 2 * request.traits.layer_period else 1
        return cls(period, *divmod(request.old, period))

    def layers(self, unit: int) -> range:
        """Source layers of a unit."""
        return range(unit * self.period, (unit + 1) * self.period)


def check(request: LayerRequest) -> str:
    """The placement to use. Raises EngineError `expansion.layers` for fewer layers, `expansion.placement`."""
    if request.placement and request.placement not in PLACEMENTS:
        raise EngineError(
            "expansion.placement",
            f"There is no placement called '{request.placement[:40]}'.",
            cause=f"There are {', '.join(PLACEMENTS)}.",
            next_step="Choose one of these.",
        )
    if request.old < 1 or request.new < request.old:
        raise refused(
            request,
            "Expansion adds layers, it takes none away.",
            f"Ask for {request.old} layers or more.",
        )
    return request.placement


def refused(request: LayerRequest, cause: str, next_step: str) -> EngineError:
    """The error of an operator that cannot make these layers; the caller raises it."""
    return EngineError(
        "expansion.layers",
        f"{request.old} layers cannot become {request.new} this way.",
        cause=cause,
        next_step=next_step,
    )


def spread(amount: int, places: int) -> tuple[int, ...]:
    """`amount` things over `places`, as evenly as whole numbers allow, the last place never the emptier one."""
    return tuple((place + 1) * amount // places - place * amount // places for place in range(places))


def old_layers(layers: Sequence[int] | range) -> list[LayerSource]:
    """Layers as they were."""
    return [LayerSource(layer) for layer in layers]


def after_units(request: LayerRequest, make: Callable[[int], LayerSource]) -> tuple[LayerSource, ...]:
    """Added layers as relatives of the unit they follow: interleaved unless the request places them otherwise."""
    placement = check(request)
    units = Units.of(request)
    whole, rest = divmod(request.new - request.old, units.period)
    before, behind = _unit_counts(whole, units.count, placement)
    result = [make(layer) for unit in before for layer in units.layers(unit)]
    for unit, copies in enumerate(behind):
        result += old_layers(units.layers(unit))
        result += [make(layer) for copy in copies for layer in units.layers(copy)]
    result += old_layers(range(units.count * units.period, request.old))
    return (*result, *_rest(request, units, rest, make))


def _unit_counts(whole: int, units: int, placement: str) -> tuple[list[int], list[list[int]]]:
    """Units to repeat before the first one, and after each one."""
    behind: list[list[int]] = [[] for _ in range(units)]
    if placement == "start":
        return [copy % units for copy in range(whole)], behind
    if placement == "end":
        behind[-1] = [(copy - whole) % units for copy in range(whole)]
        return [], behind
    first = units // 2 if placement == "upper" else 0
    for place, copies in enumerate(spread(whole, units - first)):
        behind[first + place] = [first + place] * copies
    return [], behind


def between_units(request: LayerRequest, make: MakeLayer, default: str = "interleaved") -> tuple[LayerSource, ...]:
    """Added layers between a unit and the next one; c of them in one gap divide it evenly.

    Layers left over by a period have no next one and are silent copies. Raises EngineError `expansion.layers` where
    no layer has a neighbour of its kind.
    """
    placement = check(request) or default
    units = Units.of(request)
    whole, rest = divmod(request.new - request.old, units.period)
    if whole and units.count < 2:
        raise refused(
            request,
            "A layer between two needs two neighbours of its kind, and this model has only one of each.",
            "Use identity, which needs one.",
        )
    counts = _gap_counts(whole, units.count - 1, placement)
    result: list[LayerSource] = []
    for unit in range(units.count):
        result += old_layers(units.layers(unit))
        added = counts[unit] if unit < len(counts) else 0
        for step in range(1, added + 1):
            share = step / (added + 1)
            result += [make(layer, layer + units.period, share) for layer in units.layers(unit)]
    result += old_layers(range(units.count * units.period, request.old))
    return (*result, *_rest(request, units, rest, silent_copy))


def _gap_counts(whole: int, gaps: int, placement: str) -> tuple[int, ...]:
    first, last = 0, gaps
    if placement == "upper":
        first = max(0, (gaps + 1) // 2 - 1)
    elif placement == "end":
        first = max(0, gaps - whole)
    elif placement == "start":
        last = min(gaps, whole)
    if first == last:
        return (0,) * gaps
    return (*(0,) * first, *spread(whole, last - first), *(0,) * (gaps - last))


def silent_copy(base: int) -> LayerSource:
    """A copy whose branches write nothing at first."""
    return LayerSource(base, LayerKind.IDENTITY)


def _rest(
    request: LayerRequest, units: Units, rest: int, make: Callable[[int], LayerSource]
) -> tuple[LayerSource, ...]:
    """The last `rest` layers, each of the last source layer of the kind that its index wants."""
    result = []
    for index in range(request.new - rest, request.new):
        back = (request.old - 1 - index) % units.period
        result.append(make(request.old - 1 - back))
    return tuple(result)


def keeps_pattern(layers: Sequence[LayerSource], period: int) -> bool:
    """Whether every layer has the kind that its index wants."""
    return all(layer.base % period == index % period for index, layer in enumerate(layers))


def pattern_note(layers: Sequence[LayerSource], traits: Traits) -> str:
    """What a per-layer pattern loses, as a sentence; "" when it goes on as before."""
    if keeps_pattern(layers, traits.layer_period):
        return ""
    return (
        f"The layers' pattern of period {traits.layer_period} does not go on evenly. The config lists every layer's "
        "kind, and runtimes that read it compute the same; those that derive the kind from the index (llama.cpp) do "
        "not. Adding whole periods with identity keeps it."
    )
