"""The operators, one small module each, behind one registry.

Owns the registry: name -> what it grows, whether it is exact, what it does not preserve, and its source.
Must not know tensors; an operator answers with axis maps or with a list of layers.
"""

from __future__ import annotations

from engine.errors import EngineError
from engine.expansion.operators.bert2bert import AKI, FPI
from engine.expansion.operators.depth_blend import BLEND, BLEND_SILENT
from engine.expansion.operators.depth_deus import DEUS
from engine.expansion.operators.depth_fresh import FRESH
from engine.expansion.operators.depth_identity import IDENTITY
from engine.expansion.operators.depth_interpolate import INTERPOLATE
from engine.expansion.operators.depth_lesa import LESA, LESA_SILENT
from engine.expansion.operators.depth_solar import SOLAR
from engine.expansion.operators.depth_stack import STACK
from engine.expansion.operators.experts_duplicate import DUPLICATE
from engine.expansion.operators.experts_upcycle import DROP_UPCYCLE, UPCYCLE
from engine.expansion.operators.kv_replicate import REPLICATE
from engine.expansion.operators.lemon import LEMON
from engine.expansion.operators.net2wider import NET2WIDER
from engine.expansion.operators.pad import PAD
from engine.expansion.operators.registry import LAYERS, LayerRequest, Operator
from engine.expansion.operators.tile import TILE, TILE_PLAIN

__all__ = ["DEFAULTS", "LAYERS", "OPERATORS", "LayerRequest", "Operator", "operator_named"]

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        *(PAD, TILE, TILE_PLAIN, LEMON, NET2WIDER, FPI, AKI, REPLICATE),
        *(IDENTITY, FRESH, SOLAR, STACK, INTERPOLATE, BLEND, BLEND_SILENT, DEUS, LESA, LESA_SILENT),
        *(DUPLICATE, UPCYCLE, DROP_UPCYCLE),
    )
}

DEFAULTS = {
    "hidden": "pad",
    "ffn": "pad",
    "expert_ffn": "pad",
    "shared_ffn": "pad",
    "heads": "pad",
    "kv_heads": "pad",
    "layers": "identity",
    "experts": "duplicate",
}
"""What grows an axis when nothing is said."""


def operator_named(name: str) -> Operator:
    """The operator. Raises EngineError `expansion.operator` with those that exist."""
    if name not in OPERATORS:
        raise EngineError(
            "expansion.operator",
            f"There is no operator called '{name[:40]}'.",
            cause=f"There are {', '.join(sorted(OPERATORS))}.",
            next_step="Choose one of these; --help says what each does.",
        )
    return OPERATORS[name]
