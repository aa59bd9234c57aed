"""What tensor names and shapes tell about a family that is not in the table.

Owns the naming habits of transformers' decoders. Must not be used for known families: their table beats guesses.
"""

from __future__ import annotations

import re
from dataclasses import replace

from engine.models.families import Block
from engine.models.headers import Headers
from engine.models.shape import Shape

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.0\.(.+)$")
_ATTENTION = re.compile(r"(self_attn|self_attention|attention|attn)\.")
_MLP = re.compile(r"(mlp|feed_forward|ffn)\.")
_HEADS = ("lm_head.weight", "embed_out.weight")


def observe(shape: Shape, headers: Headers) -> Shape:
    """`shape` of an unknown family, corrected by what its first layer holds."""
    layer = {match[1]: t.shape for t in headers.tensors if (match := _LAYER.search(t.name))}
    if not any(_ATTENTION.search(name) for name in layer):
        return shape
    tied = shape.tied and not any(t.name.endswith(_HEADS) for t in headers.tensors)
    notes = tuple(note for note in shape.notes if "is unknown" not in note)
    told = next((note.partition(" is unknown")[0] for note in shape.notes if "is unknown" in note), "The family")
    note = (
        f"{told} is unknown: its norms, biases and feed-forward kind are read from the names of the stored tensors; "
        "the order of the norms within a layer is a guess."
    )
    return replace(shape, block=_block(shape, layer), tied=tied, notes=(note, *notes))


def _block(shape: Shape, layer: dict[str, tuple[int, ...]]) -> Block:
    norms = {name for name in layer if "norm" in name.lower() or re.search(r"(^|\.)ln_", name)}
    outer = {name.rpartition(".")[0] for name in norms if not _ATTENTION.search(name)}
    biases = {name for name in layer if name.endswith(".bias") and name not in norms}
    projections = {name for name in biases if _ATTENTION.search(name)}
    output = {name for name in projections if re.search(r"(o_proj|out_proj|dense|c_proj|wo)\.bias$", name)}
    gated = any(re.search(r"(gate_proj|gate_up_proj|w3|gate)\.weight$", name) and _MLP.search(name) for name in layer)
    return replace(
        shape.block,
        norm="layernorm" if any(name.endswith(".bias") for name in norms) else shape.block.norm,
        placement=_placement(outer),
        norms_per_layer=len(outer),
        qk_norm=_query_norm(shape, layer),
        query_key_value_bias=bool(projections - output),
        output_bias=bool(output),
        mlp_bias=any(_MLP.search(name) for name in biases),
        mlp_kind="gated" if gated else "plain",
    )


def _placement(outer: set[str]) -> str:
    if len(outer) >= 4:
        return "sandwich"
    if len(outer) == 1:
        return "parallel"
    return "post" if "post_feedforward_layernorm" in outer and "input_layernorm" not in outer else "pre"


def _query_norm(shape: Shape, layer: dict[str, tuple[int, ...]]) -> str:
    """ "head" or "full" by the length of the query norm's gain."""
    sizes = [
        size for name, size in layer.items() if re.search(r"\.(q_norm|q_layernorm|query_layernorm)\.weight$", name)
    ]
    if not sizes:
        return "none"
    return "head" if sizes[0] and sizes[0][-1] == shape.head_dim else "full"
