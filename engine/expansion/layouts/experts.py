"""Mixtures of experts as rules: router, experts on disk, experts every token passes, and their sizes.

Owns what mixture families share. Must not know which family has which part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.expansion.axes import Axis, Dim, Fused, Role, Side
from engine.expansion.layout import Rule
from engine.expansion.layouts.pieces import CONFIG_KEYS, EXPERT, HIDDEN_IN, HIDDEN_OUT, LAYER, MlpStyle, layer_list, mlp
from engine.models.config import ConfigReader

WIDTH = Axis(Dim.EXPERT_FFN)
WIDTH_IN = Axis(Dim.EXPERT_FFN, Side.IN)
EXPERT_IN = Axis(Dim.EXPERT, Side.IN)
"""Of the matrices whose outputs are added over the experts: what copies of an expert write may differ."""
GATE_UP = Fused((WIDTH, WIDTH))
QWEN_NAMES = ("gate_proj", "up_proj", "down_proj")
MIXTRAL_NAMES = ("w1", "w3", "w2")


@dataclass(frozen=True, slots=True)
class Mixture:
    """The mixture layers of one checkpoint."""

    rules: tuple[Rule, ...]
    experts: int
    per_token: int
    width: int
    """Of one expert."""
    config_keys: Mapping[str, tuple[str, ...]]
    """Of `experts`, `experts_per_token`, `expert_ffn` and, where there is one, `shared_ffn`."""
    shared_width: int = 0
    """Of an expert that every token passes and whose width is a config key of its own."""
    dense_width: int = 0
    """Of the feed-forward network of layers that are no mixtures; 0 where all are."""
    renormalised: bool = True
    stacked: bool = False
    unsupported: Mapping[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """The fields of `Dims` that describe it."""
        return {
            "ffn": self.dense_width,
            "experts": self.experts,
            "experts_per_token": self.per_token,
            "expert_ffn": self.width,
            "shared_ffn": self.shared_width,
        }

    @property
    def traits(self) -> dict[str, Any]:
        """The fields of `Traits` that describe it."""
        return {
            "experts": "renormalised" if self.renormalised else "plain",
            "experts_on_disk": "stacked" if self.stacked else "each",
        }

    @property
    def keys(self) -> dict[str, tuple[str, ...]]:
        """All config keys of a model with it."""
        keys = {**CONFIG_KEYS, **self.config_keys}
        if not self.dense_width:
            del keys["ffn"]
        return keys


def router(name: str, *, raw: bool = False, bias: str = "") -> tuple[Rule, ...]:
    """The matrix that scores experts, and the vector that is added to the scores."""
    scores = Rule(f"{LAYER}{name}.weight", Role.RAW_READ if raw else Role.ROUTER, (EXPERT, HIDDEN_IN))
    return (scores, Rule(f"{LAYER}{bias}", Role.INNER, (EXPERT,))) if bias else (scores,)


def each_expert(
    prefix: str, names: tuple[str, str, str] = QWEN_NAMES, *, raw: bool = False, closes: bool = True
) -> tuple[Rule, ...]:
    """Experts with a file entry each; `names` are gate, up and down."""
    read = Role.RAW_READ if raw else Role.READ
    start = f"{LAYER}{prefix}.{{e}}."
    return (
        *(Rule(f"{start}{name}.weight", read, (WIDTH, HIDDEN_IN)) for name in names[:2]),
        Rule(f"{start}{names[2]}.weight", Role.WRITE, (HIDDEN_OUT, WIDTH_IN), closes=closes),
    )


def stacked_experts(gate_up: str, down: str) -> tuple[Rule, ...]:
    """Experts as two tensors, (experts, 2 x width, hidden) and (experts, hidden, width)."""
    return (
        Rule(f"{LAYER}{gate_up}", Role.READ, (EXPERT, GATE_UP, HIDDEN_IN)),
        Rule(f"{LAYER}{down}", Role.WRITE, (EXPERT_IN, HIDDEN_OUT, WIDTH_IN), closes=True),
    )


def shared_expert(prefix: str, *, multiple: int = 0, closes: bool = True) -> tuple[Rule, ...]:
    """An expert that every token passes.

    Its width is `multiple` times an expert's, one part after the other, or has a config key of its own (0).
    """
    if not multiple:
        return mlp(MlpStyle(prefix=f"{LAYER}{prefix}.", width=Dim.SHARED_FFN, closes=closes))
    rows: Axis | Fused = WIDTH if multiple == 1 else Fused((WIDTH,) * multiple)
    columns: Axis | Fused = WIDTH_IN if multiple == 1 else Fused((WIDTH_IN,) * multiple)
    start = f"{LAYER}{prefix}."
    return (
        *(Rule(f"{start}{name}.weight", Role.READ, (rows, HIDDEN_IN)) for name in QWEN_NAMES[:2]),
        Rule(f"{start}down_proj.weight", Role.WRITE, (HIDDEN_OUT, columns), closes=closes),
    )


def feed_kinds(reader: ConfigReader, layers: int, leading: int) -> tuple[str, ...]:
    """`mlp_layer_types`: given, or so many dense layers and then mixtures."""
    derived = tuple("dense" if i < leading else "sparse" for i in range(layers))
    return layer_list(reader, "mlp_layer_types", layers) or derived


GROUPED_ROUTING = "its router picks groups of experts by their place, and added experts would move them"
SCORES_NOT_SHARES = "its router's scores are not shares of a whole, so that copies of an expert would add up"


def routing_limits(reader: ConfigReader, *, sigmoid: bool, renormalised: bool) -> dict[str, str]:
    if reader.integer("n_group", default=1) > 1:
        return {"experts": GROUPED_ROUTING}
    return {"experts": SCORES_NOT_SHARES} if sigmoid and not renormalised else {}
