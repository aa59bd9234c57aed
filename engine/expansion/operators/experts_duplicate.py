"""Expert duplication: m copies of every expert and of its router row, m times as many chosen per token.

    E -> m E, top k -> top m k        copies have equal scores, so a token chooses all copies of the k it chose before
    softmax over m E                  every copy's weight is 1/m of the expert's, before or after renormalising
    down of copies 1, 2, 3, 4 ...     W + n_1, W - n_1, W + n_2, W - n_2 ...    their sum is m W

Exact when the number of chosen experts is multiplied like the experts; with k as it was, each token would see fewer
different experts. Copies without noise would be twins for ever: they are chosen together, with equal weights, and get
equal gradients. The noise on what they write (10 dB below the weights) sums to zero over the copies; with an odd m the
last copy has none. Source: derived; the noise in pairs is HyperCloning's (arXiv 2409.12903), duplicated experts are
those of "Expert upcycling" (arXiv 2604.19835), whose top k stays.
"""

from __future__ import annotations

from engine.errors import EngineError
from engine.expansion.axes import Dim, Dims
from engine.expansion.growth import AxisGrowth, AxisRequest
from engine.expansion.maps import Fill, Run
from engine.expansion.operators.registry import Operator
from engine.expansion.operators.tile import NOISE


def grow(request: AxisRequest) -> AxisGrowth:
    """All experts, then all again. Raises EngineError `expansion.multiple` for other numbers, and for a dense model."""
    if not request.old:
        raise EngineError(
            "expansion.multiple",
            "There are no experts yet that could be copied.",
            cause="The model is dense.",
            next_step="Use upcycle, which makes experts of its feed-forward networks.",
        )
    copies, rest = divmod(request.new, request.old)
    if rest:
        raise EngineError(
            "expansion.multiple",
            f"{request.old} experts cannot become {request.new}.",
            cause="Every expert is repeated equally often, so that the router's weights stay in proportion.",
            next_step=f"Choose {request.old * (copies + 1)}.",
        )
    read = tuple(Run(Fill.COPY, request.old, new=copy > 0) for copy in range(copies))
    written = tuple(
        Run(
            Fill.COPY,
            request.old,
            noise=_sign(copy, copies) * NOISE,
            noise_key=copy // 2 + 1 if _sign(copy, copies) else 0,
            new=copy > 0,
        )
        for copy in range(copies)
    )
    return AxisGrowth(Dim.EXPERT, out=read, into=written, along=read, operator="duplicate")


def _sign(copy: int, copies: int) -> int:
    """+1, -1, +1, -1 ...; 0 for a last copy without a partner."""
    if copy == copies - 1 and copies % 2:
        return 0
    return 1 if copy % 2 == 0 else -1


def _multiplied(axis: str, before: Dims, after: Dims) -> bool:
    """experts'/experts = chosen'/chosen, a whole number."""
    if before.experts == 0 or after.experts % before.experts:
        return False
    return after.experts_per_token == before.experts_per_token * (after.experts // before.experts)


DUPLICATE = Operator(
    name="duplicate",
    title="duplicated experts",
    axes=(Dim.EXPERT.value,),
    exact="when as many times more experts are chosen per token",
    loses="With fewer chosen per token than copies made, a token sees fewer different experts than before.",
    source="derived; copies as in Expert upcycling (arXiv 2604.19835), noise in pairs as in arXiv 2409.12903",
    grow=grow,
    is_exact=_multiplied,
)
