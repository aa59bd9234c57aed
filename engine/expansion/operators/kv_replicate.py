"""Key/value replication: each key/value head repeated for a part of its query group (GQA towards MHA).

Query heads keep computing what they did, because the head they read is a copy of the one they read before; exact.
The copies serve different query heads, so their gradients differ: no twins, unless a group had one query head.
The KV cache grows with them. Source: the inverse of Ainslie et al., "GQA", 2023 (arXiv 2305.13245), which averages
heads.
"""

from __future__ import annotations

from engine.errors import EngineError
from engine.expansion.axes import Dim
from engine.expansion.growth import AxisGrowth, AxisRequest
from engine.expansion.operators.copies import into_map, out_map
from engine.expansion.operators.heads import key_value_slots
from engine.expansion.operators.registry import Operator


def grow(request: AxisRequest) -> AxisGrowth:
    """Each head `new / old` times. Raises EngineError `expansion.multiple` when that is no whole number."""
    if request.new % request.old:
        raise EngineError(
            "expansion.multiple",
            f"Replication needs a whole multiple: {request.old} key/value heads cannot become {request.new}.",
            next_step=f"Choose {request.old * (request.new // request.old + 1)}, or the operator pad.",
        )
    slots = key_value_slots(request)
    return AxisGrowth(request.dim, out_map(slots), into_map(slots), out_map(slots), "replicate")


REPLICATE = Operator(
    name="replicate",
    title="key/value replication",
    axes=(Dim.KEY_VALUE.value,),
    exact="always",
    loses="",
    source="inverse of GQA's averaging, Ainslie et al. 2023 (arXiv 2305.13245)",
    grow=grow,
)
