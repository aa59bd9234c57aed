"""From a source and a plan to the file of made layers.

Owns the order of work and the file's contents. Must not know how layers are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.errors import EngineError
from engine.expansion.layout import Layout
from engine.expansion.operators import LAYERS
from engine.expansion.operators.depth_deus import NAME as DEUS
from engine.expansion.operators.depth_lesa import NAMES as LESA
from engine.expansion.plan import ExpansionPlan
from engine.learned import deus, lesa
from engine.learned.kinds import Kind, MadeLayer, kinds, made_layers
from engine.learned.progress import Report, silent
from engine.learned.tensors import TensorFile
from engine.models.headers import Headers


def make(headers: Headers, layout: Layout, plan: ExpansionPlan, out: Path, report: Report = silent) -> int:
    """Writes `out` with every tensor of every made layer; returns how many layers that are.

    Raises EngineError `learned.*` for what cannot be computed, `weights.nan`, `safetensors.damaged`.
    """
    made = made_layers(plan)
    found = kinds(headers, layout, made)
    name = plan.operators.get(LAYERS, "")
    with TensorFile(out, _entries(found, made)) as target:
        if name in LESA:
            work = lesa.Lesa(made, _step(made), plan.seed)
            lesa.make_layers(work, found, target, report)
        elif name == DEUS:
            deus.make_layers(made, found, layout, target, report)
        else:
            raise EngineError(
                "learned.operator",
                f"The operator '{name[:40]}' computes no layers.",
                cause="The plan lists layers to be computed beforehand, which only LESA and aligned averages have.",
                next_step="Plan the expansion again.",
            )
    return len(made)


def _step(made: Sequence[MadeLayer]) -> int:
    """How far neighbours of one kind are: the period of a net whose layers differ in a pattern."""
    return made[0].other - made[0].base if made else 1


def _entries(found: Sequence[Kind], made: Sequence[MadeLayer]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [
        (layer.name(kind.layers[layer.base]), kind.layers[layer.base].dtype, kind.layers[layer.base].shape)
        for layer in made
        for kind in found
        if layer.base in kind.layers
    ]
