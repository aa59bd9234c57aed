"""Plans as JSON: what was written is what is read, and damage is refused with what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.expansion.axes import Dims
from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.plan import ExpansionPlan
from engine.expansion.plan_io import decode_plan, encode_plan, plan_from_tree, plan_tree

SMALL = Dims(layers=2, hidden=64, ffn=160, heads=4, kv_heads=2, head_dim=16, vocab=100)


def layer_sources(count: int) -> st.SearchStrategy[LayerSource]:
    index = st.integers(0, count - 1)
    return st.builds(
        LayerSource,
        base=index,
        kind=st.sampled_from(LayerKind),
        other=index,
        weight=st.floats(0, 1),
        silent=st.booleans(),
    )


@st.composite
def plans(draw: st.DrawFn) -> ExpansionPlan:
    units = st.integers(1, 1 << 20)
    count = draw(st.integers(1, 12))
    before = Dims(count, *(draw(units) for _ in range(6)))
    layers = draw(st.one_of(st.just(()), st.lists(layer_sources(count), min_size=1, max_size=12).map(tuple)))
    after = Dims(len(layers) or count, *(draw(units) for _ in range(6)))
    names = st.dictionaries(st.sampled_from(("hidden", "ffn", "layers")), st.sampled_from(("pad", "tile")))
    return ExpansionPlan("llama", before, after, draw(names), layers, draw(st.integers(0, 2**63 - 1)), "bfloat16")


@given(plans())
@settings(max_examples=60, deadline=None)
def test_a_plan_survives_being_written(plan: ExpansionPlan) -> None:
    assert decode_plan(encode_plan(plan)) == plan
    assert plan_from_tree(plan_tree(plan)) == plan


def test_equal_plans_give_equal_bytes_whatever_the_order_of_operators() -> None:
    first = ExpansionPlan("llama", SMALL, SMALL, {"hidden": "pad", "ffn": "tile"})
    second = ExpansionPlan("llama", SMALL, SMALL, {"ffn": "tile", "hidden": "pad"})
    assert encode_plan(first) == encode_plan(second)


def damaged(**changes: Any) -> dict[str, Any]:
    deeper = ExpansionPlan("llama", SMALL, SMALL.__class__(3, 64, 160, 4, 2, 16, 100), {"layers": "identity"},
                           (LayerSource(0), LayerSource(0, LayerKind.IDENTITY), LayerSource(1)))  # fmt: skip
    return plan_tree(deeper) | changes


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (damaged(before=None), "before is not an object"),
        (damaged(after={"layers": 3}), "hidden"),
        (damaged(surprise=1), "surprise"),
        (damaged(layers=[{"base": 0}]), "1 layers"),
        (damaged(layers=[{"base": 0}, {"base": 7}, {"base": 1}]), "layer 7 of 2"),
        (damaged(layers=[{"base": 0}, {"base": 0, "kind": "blend"}, {"base": 1}]), "second neighbour"),
        (damaged(layers=[{"base": 0}, {"base": 0, "kind": "dreamt"}, {"base": 1}]), "dreamt"),
        (damaged(layers=[{"base": 0}, {"base": 0, "colour": "red"}, {"base": 1}]), "colour"),
        (damaged(layers=[]), "layers are not listed"),
        (damaged(seed=-1), "seed"),
        (damaged(seed="17"), "int"),
        (damaged(dtype="int4"), "int4"),
    ],
)
def test_damage_is_named(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError) as caught:
        plan_from_tree(tree)
    assert caught.value.code == "expansion.plan_damaged"
    assert words.lower() in caught.value.cause.lower()


def test_text_that_is_no_plan_is_refused() -> None:
    for text in (b"{", b"[]", b"null", b'{"family": "llama"}'):
        with pytest.raises(EngineError, match="cannot be read"):
            decode_plan(text)
