"""Depth operators: which layers the larger model is made of, and where the added ones go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.layout import Traits
from engine.expansion.layouts import layout_for
from engine.expansion.operators import LAYERS, OPERATORS, LayerRequest
from engine.expansion.operators.depth_places import keeps_pattern, pattern_note, spread
from engine.expansion.plan import ExpansionPlan
from engine.expansion.recipes import build_recipes
from engine.models.headers import Headers, TensorHeader

PLAIN = Traits(norm="rmsnorm", placement="pre", tied=False)
DEPTH = tuple(sorted(name for name, operator in OPERATORS.items() if LAYERS in operator.axes))
LETTERS = {"old": "", "copy": "c", "identity": "i", "fresh": "f", "blend": "b", "made": "m"}


def grown(name: str, old: int, new: int, placement: str = "", *, period: int = 1) -> tuple[LayerSource, ...]:
    make = OPERATORS[name].layers
    assert make is not None
    return make(LayerRequest(old, new, replace(PLAIN, layer_period=period), 17, placement))


def shown(layers: tuple[LayerSource, ...]) -> str:
    """ "0 0i 1": layer 0, an identity block made of it, layer 1."""
    return " ".join(f"{layer.base}{LETTERS[layer.kind]}" for layer in layers)


def test_llama_pro_puts_one_copy_after_every_group() -> None:
    assert shown(grown("identity", 8, 10)) == "0 1 2 3 3i 4 5 6 7 7i"
    assert shown(grown("identity", 4, 8)) == "0 0i 1 1i 2 2i 3 3i"


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("interleaved", "0 1 1i 2 3 3i"),
        ("start", "0i 1i 0 1 2 3"),
        ("end", "0 1 2 3 2i 3i"),
        ("upper", "0 1 2 2i 3 3i"),
    ],
)
def test_added_layers_go_where_they_are_asked_for(placement: str, expected: str) -> None:
    assert shown(grown("identity", 4, 6, placement)) == expected


def test_an_unknown_placement_is_refused() -> None:
    with pytest.raises(EngineError, match="no placement called 'sideways'"):
        grown("identity", 4, 6, "sideways")


@pytest.mark.parametrize("name", DEPTH)
@pytest.mark.parametrize("placement", ["", "interleaved", "start", "end", "upper"])
def test_every_old_layer_stays_once_and_in_order_at_any_depth(name: str, placement: str) -> None:
    for new in range(8, 17, 2) if name == "solar" else range(8, 25):
        layers = grown(name, 8, new, placement)
        assert len(layers) == new
        assert [layer.base for layer in layers if not layer.new] == list(range(8))


@pytest.mark.parametrize("name", DEPTH)
def test_an_operator_is_exact_when_all_its_new_layers_are_closed(name: str) -> None:
    closed = all(layer.closed for layer in grown(name, 8, 12) if layer.new)
    assert closed == (OPERATORS[name].exact == "always")
    assert closed != bool(OPERATORS[name].loses)


@pytest.mark.parametrize("name", ["identity", "fresh", "blend", "blend-silent", "deus", "lesa"])
@pytest.mark.parametrize(("old", "period"), [(26, 6), (32, 4), (24, 2), (25, 6)])
@pytest.mark.parametrize("added", [1, 4, 6, 7, 12, 30])
def test_a_pattern_of_layers_goes_on_at_any_number(name: str, old: int, period: int, added: int) -> None:
    layers = grown(name, old, old + added, period=period)
    assert len(layers) == old + added
    assert keeps_pattern(layers, period)
    assert pattern_note(layers, replace(PLAIN, layer_period=period)) == ""


@pytest.mark.parametrize("placement", ["interleaved", "start", "end", "upper"])
def test_whole_periods_keep_the_pattern_at_any_place(placement: str) -> None:
    assert keeps_pattern(grown("identity", 26, 38, placement, period=6), 6)


def test_a_broken_pattern_is_said() -> None:
    layers = grown("solar", 26, 36, period=6)
    assert "period 6" in pattern_note(layers, replace(PLAIN, layer_period=6))
    layers = grown("identity", 26, 29, "start", period=6)
    assert keeps_pattern(layers, 6), "three layers are no period and go to the end"


def test_a_net_shorter_than_two_periods_has_no_pattern_to_keep() -> None:
    assert shown(grown("identity", 4, 6, period=4)) == "0 1 1i 2 3 3i"


@pytest.mark.parametrize("name", ["blend", "deus", "lesa"])
@pytest.mark.parametrize("period", [1, 2])
def test_a_layer_between_two_has_the_next_of_its_kind_as_neighbour(name: str, period: int) -> None:
    for layer in grown(name, 12, 20, period=period):
        if layer.kind in (LayerKind.BLEND, LayerKind.MADE):
            assert layer.other == layer.base + period


def test_several_layers_in_one_gap_divide_it_evenly() -> None:
    layers = grown("blend", 2, 5)
    assert [layer.weight for layer in layers if layer.new] == [0.25, 0.5, 0.75]


def test_learned_and_aligned_layers_stay_in_the_upper_half() -> None:
    for name in ("lesa", "deus"):
        assert min(layer.base for layer in grown(name, 32, 48) if layer.new) == 15
        assert shown(grown(name, 8, 12)) == "0 1 2 3 3m 4 4m 5 5m 6 6m 7"


def test_solar_drops_as_many_layers_on_both_sides_of_the_seam() -> None:
    assert shown(grown("solar", 8, 12)) == "0 1 2 3 4 5 2c 3c 4c 5c 6 7"
    layers = grown("solar", 32, 48)
    assert [layer.base for layer in layers] == [*range(24), *range(8, 32)]
    with pytest.raises(EngineError) as odd:
        grown("solar", 8, 11)
    assert "10 or 12" in odd.value.next_step
    with pytest.raises(EngineError, match="8 layers cannot become 18"):
        grown("solar", 8, 18)


def test_stacking_repeats_the_net_and_takes_the_rest_from_its_top() -> None:
    assert shown(grown("stack", 3, 8)) == "0 1 2 0c 1c 2c 1c 2c"


def test_interpolation_repeats_layers_in_place_and_periods_where_it_can() -> None:
    assert [layer.base for layer in grown("interpolate", 4, 6)] == [place * 4 // 6 for place in range(6)]
    assert shown(grown("interpolate", 4, 8, period=2)) == "0 1 0c 1c 2 3 2c 3c"


@pytest.mark.parametrize("name", ["lesa", "lesa-silent", "deus"])
def test_mixtures_have_no_learned_layers_and_are_told_what_they_can_have(name: str) -> None:
    make = OPERATORS[name].layers
    assert make is not None
    with pytest.raises(EngineError) as refused:
        make(LayerRequest(8, 12, replace(PLAIN, experts="renormalised")))
    assert "router" in refused.value.cause
    assert "identity" in refused.value.next_step


def test_too_few_layers_to_learn_from_are_refused() -> None:
    with pytest.raises(EngineError, match="2 layers cannot become 3"):
        grown("lesa", 2, 3)
    with pytest.raises(EngineError, match="1 layers cannot become 2"):
        grown("blend", 1, 2)


@pytest.mark.parametrize("name", DEPTH)
def test_fewer_layers_are_refused(name: str) -> None:
    with pytest.raises(EngineError, match="8 layers cannot become 7"):
        grown(name, 8, 7)


def test_spreading_gives_every_place_its_share() -> None:
    assert spread(3, 4) == (0, 1, 1, 1)
    assert spread(8, 4) == (2, 2, 2, 2)
    assert sum(spread(7, 5)) == 7


def test_a_blend_reads_its_neighbour_under_the_name_its_file_uses() -> None:
    """Files of a bare model (no head) leave the prefix "model." out."""
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "vocab_size": 10,
        "tie_word_embeddings": True,
    }
    layout = layout_for(config, "bare")
    shapes = {"mlp.gate_proj": (16, 8), "mlp.up_proj": (16, 8), "mlp.down_proj": (8, 16)}
    shapes |= {f"self_attn.{letter}_proj": (8, 8) for letter in "qkvo"}
    shapes |= {"input_layernorm": (8,), "post_attention_layernorm": (8,)}
    tensors = [
        TensorHeader(f"layers.{layer}.{name}.weight", "F32", shape, 0, Path("model.safetensors"))
        for layer in range(3)
        for name, shape in shapes.items()
    ]
    ends = {"embed_tokens.weight": (10, 8), "norm.weight": (8,)}
    tensors += [TensorHeader(name, "F32", shape, 0, Path("model.safetensors")) for name, shape in ends.items()]
    plan = ExpansionPlan(
        family="llama",
        before=layout.dims,
        after=replace(layout.dims, layers=4),
        operators={"layers": "blend"},
        layers=grown("blend", 3, 4),
    )
    made = [recipe for recipe in build_recipes(Headers(tuple(tensors), ()), layout, plan) if recipe.new]
    assert len(made) == len(shapes)
    for recipe in made:
        assert [source.name.split(".")[:2] for source in recipe.sources] == [["layers", "1"], ["layers", "2"]]
        assert [source.weight for source in recipe.sources] == [0.5, 0.5]
