"""Every scaling method against its closed form, on shapes of published models."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.context.critical import base_dividing, base_lower_bound, critical_pair, ten_rotation_pair
from engine.context.method import Options
from engine.context.methods import METHODS
from engine.context.methods.by_parts import yarn_attention_factor
from engine.context.methods.dynamic import divisors_at
from engine.context.methods.longrope import su_attention_factor
from engine.context.methods.longrope2 import with_derived_head
from engine.context.planner import read_rotaries
from engine.context.scaling import Rotary, Scaling
from tests.support.rope_configs import SHAPES as MODEL_SHAPES

DEMO = Rotary(32, 1e4, 256)
LLAMA3 = Rotary(128, 5e5, 8192)
CLOSED_FORM = ("linear", "ntk", "ntk-critical", "abf", "by-parts", "yarn", "llama3")


def scaled(method: str, rotary: Rotary = DEMO, ratio: float = 4.0, **options: object) -> Scaling:
    return METHODS[method].scale(rotary, ratio, Options(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dim", "theta", "length", "critical", "ten_rotations"),
    [
        (128, 1e4, 4096, 46, 30),
        (128, 1e4, 8192, 50, 34),
        (128, 5e5, 8192, 35, 24),
        (96, 1e4, 2048, 31, 19),
        (128, 1e6, 32768, 40, 29),
        (64, 1e6, 32768, 20, 15),
        (64, 1e4, 2048, 21, 13),
        (256, 1e6, 32768, 80, 58),
        (32, 1e4, 256, 7, 3),
    ],
    ids=["llama-2", "mistral", "llama-3", "phi3-mini", "qwen3", "qwen2.5-0.5b", "tinyllama", "gemma-3", "demo"],
)
def test_the_critical_pair_is_the_first_without_a_full_turn(
    dim: int, theta: float, length: int, critical: int, ten_rotations: int
) -> None:
    rotary = Rotary(dim, theta, length)
    assert (critical_pair(rotary), ten_rotation_pair(rotary)) == (critical, ten_rotations)
    assert rotary.rotations(critical) <= 1 < rotary.rotations(critical - 1)
    assert rotary.rotations(ten_rotations) <= 10 < rotary.rotations(ten_rotations - 1)


def test_linear_divides_every_pair_by_the_factor() -> None:
    assert scaled("linear").divisors == (4.0,) * 16


def test_ntk_leaves_the_first_pair_alone_and_divides_the_last_by_the_factor() -> None:
    divisors = scaled("ntk").divisors
    assert divisors[0] == 1
    assert divisors[-1] == pytest.approx(4, rel=1e-12)
    assert divisors == pytest.approx([4 ** (2 * pair / 30) for pair in range(16)], rel=1e-12)


@pytest.mark.parametrize(("asked", "pair"), [(None, 6), (7, 7), (3, 3)])
def test_ntk_critical_puts_the_factor_on_the_critical_pair(asked: int | None, pair: int) -> None:
    divisors = scaled("ntk-critical", critical_pair=asked).divisors
    assert divisors[pair] == pytest.approx(4, rel=1e-12)
    assert all(divisor > 4 for divisor in divisors[pair + 1 :])


def test_abf_is_a_change_of_the_base_and_of_nothing_else() -> None:
    scaling = scaled("abf", theta=2e5)
    assert scaling.divisors == pytest.approx([20 ** (2 * pair / 32) for pair in range(16)], rel=1e-12)
    assert scaling.attention_factor == 1


@pytest.mark.parametrize("rotary", [DEMO, LLAMA3, Rotary(128, 1e4, 4096)])
def test_abf_chooses_no_base_under_the_bound_nor_under_the_ntk_base(rotary: Rotary) -> None:
    base = METHODS["abf"].settings(rotary, 4.0, Options(), scaled("abf", rotary))["rope_theta"]
    assert base >= base_lower_bound(4 * rotary.length, rotary.dim)
    assert base >= base_dividing(rotary, rotary.pairs - 1, 4.0)


def test_abf_passes_over_a_bound_that_does_not_describe_the_model() -> None:
    pythia = Rotary(16, 1e4, 2048)
    assert base_lower_bound(2048, 16) > 100 * pythia.theta
    assert scaled("abf", pythia).divisors == scaled("ntk", pythia).divisors


@pytest.mark.parametrize(("length", "published"), [(4096, 2.7e4), (32768, 6.4e5), (131072, 7.8e6)])
def test_the_bound_on_the_base_is_near_the_published_one(length: int, published: float) -> None:
    assert published / 2 < base_lower_bound(length, 128) < published * 2


def test_the_bound_says_at_which_base_random_tokens_begin_to_win() -> None:
    def least(base: float) -> float:
        return min(sum(math.cos(m * base ** (-2 * i / 128)) for i in range(64)) for m in range(1025))

    bound = base_lower_bound(1024, 128)
    assert least(bound * 1.02) >= 0 > least(bound * 0.98)


@pytest.mark.parametrize(("factor", "m"), [(4, 1.1386), (8, 1.2079), (16, 1.2773), (32, 1.3466)])
def test_yarn_sharpens_attention_by_the_logarithm_of_the_factor(factor: float, m: float) -> None:
    assert yarn_attention_factor(factor) == pytest.approx(m, abs=5e-5)
    assert scaled("yarn", ratio=factor).attention_factor == yarn_attention_factor(factor)


@pytest.mark.parametrize(
    ("factor", "length", "m"),
    [(4, 4096, 1.080), (4, 8192, 1.074), (16, 4096, 1.155), (16, 8192, 1.144), (32, 4096, 1.190), (32, 8192, 1.177)],
)
def test_longrope_sharpens_attention_by_the_su_formula(factor: float, length: int, m: float) -> None:
    assert su_attention_factor(factor, length) == pytest.approx(m, abs=5e-4)


def test_by_parts_is_yarn_without_the_sharpening() -> None:
    assert scaled("by-parts").divisors == scaled("yarn").divisors
    assert scaled("by-parts").attention_factor == 1


def test_yarn_leaves_fast_pairs_alone_and_interpolates_slow_ones_in_full() -> None:
    divisors = scaled("yarn", LLAMA3, 16.0).divisors
    untouched = [pair for pair in range(64) if LLAMA3.rotations(pair) > 40]
    slow = [pair for pair in range(64) if LLAMA3.rotations(pair) < 0.9]
    assert {divisors[pair] for pair in untouched} == {1.0}
    assert {divisors[pair] for pair in slow} == {16.0}


def test_llama3_splits_pairs_by_their_wavelength() -> None:
    divisors = scaled("llama3", LLAMA3, 8.0).divisors
    for pair, divisor in enumerate(divisors):
        wavelength = LLAMA3.wavelength(pair)
        if wavelength < 8192 / 4:
            assert divisor == 1
        elif wavelength > 8192:
            assert divisor == 8
        else:
            assert 1 <= divisor <= 8


def test_dynamic_is_the_original_model_within_its_window_and_ntk_above() -> None:
    assert divisors_at(DEMO, 4.0, 256) == (1.0,) * 16
    at_512 = divisors_at(DEMO, 4.0, 512)
    assert at_512 == pytest.approx(scaled("ntk", ratio=4 * 2 - 3).divisors, rel=1e-12)
    scaling = scaled("dynamic")
    assert scaling.switches
    assert scaling.divisors == pytest.approx(scaled("ntk", ratio=13.0).divisors, rel=1e-12)


def test_longrope2_derives_the_head_from_the_first_searched_pair() -> None:
    tail = (5.0, 5.5, 6.0)
    divisors = with_derived_head(tail, 4)
    assert divisors[4:] == tail
    assert divisors[:4] == pytest.approx([1, 5**0.25, 5**0.5, 5**0.75], rel=1e-12)
    method = METHODS["longrope2"]
    whole = method.scale(DEMO, 4.0, Options(long_divisors=tuple(4.0 + 0.1 * i for i in range(9)), critical_pair=7))
    assert whole.divisors[7] == 4.0
    assert len(whole.divisors) == 16


def test_longrope2_with_short_ones_keeps_short_text_as_it_was() -> None:
    searched = tuple(1 + 0.3 * pair for pair in range(16))
    method = METHODS["longrope2"]
    static = method.scale(DEMO, 4.0, Options(long_divisors=searched))
    switching = method.scale(DEMO, 4.0, Options(long_divisors=searched, short_divisors=(1.0,) * 16))
    assert (static.switches, switching.switches) == (False, True)
    assert static.attention_factor == su_attention_factor(4.0, 256)
    assert switching.attention_factor == 1


def test_every_method_names_its_source_and_says_its_formula() -> None:
    for method in METHODS.values():
        assert method.source
        assert method.summary
        assert method.scale.__doc__
        assert method.exported or method.not_exported_reason


@pytest.mark.parametrize("shape", MODEL_SHAPES)
def test_factor_lists_have_one_entry_per_rotated_pair(shape: str) -> None:
    rotary = read_rotaries(MODEL_SHAPES[shape])[0]
    assert ten_rotation_pair(rotary) <= critical_pair(rotary) < rotary.pairs == rotary.dim // 2
    searched = Options(long_divisors=tuple(1 + 0.1 * pair for pair in range(rotary.pairs)))
    settings = METHODS["longrope"].settings(rotary, 4.0, searched, METHODS["longrope"].scale(rotary, 4.0, searched))
    assert len(settings["long_factor"]) == len(settings["short_factor"]) == rotary.pairs


SHAPES = st.builds(
    Rotary,
    st.sampled_from([8, 16, 32, 64, 96, 128, 256]),
    st.sampled_from([1e4, 5e5, 1e6, 1e7]),
    st.sampled_from([256, 2048, 4096, 8192, 32768]),
)


@given(method=st.sampled_from(CLOSED_FORM), rotary=SHAPES, ratio=st.floats(1.01, 64))
def test_no_pair_is_divided_less_than_a_faster_one(method: str, rotary: Rotary, ratio: float) -> None:
    scaling = scaled(method, rotary, ratio, theta=rotary.theta * ratio**2)
    assert len(scaling.divisors) == rotary.pairs
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in pairwise(scaling.divisors))


@given(method=st.sampled_from(CLOSED_FORM), rotary=SHAPES, ratio=st.floats(1.01, 64))
def test_divisors_begin_at_one_and_end_at_the_factor_or_beyond(method: str, rotary: Rotary, ratio: float) -> None:
    divisors = scaled(method, rotary, ratio, theta=rotary.theta * ratio**2).divisors
    beyond = method in ("ntk-critical", "abf")
    assert method == "linear" or divisors[0] >= 1
    if method not in ("linear", "yarn", "by-parts") and rotary.rotations(0) > 4:
        assert divisors[0] == 1
    if rotary.rotations(rotary.pairs - 1) < 1 and method not in ("yarn", "by-parts"):
        assert divisors[-1] == pytest.approx(ratio) or (beyond and divisors[-1] >= ratio * (1 - 1e-9))


@given(rotary=SHAPES, ratio=st.floats(1.01, 64))
def test_yarn_stays_between_one_and_the_factor(rotary: Rotary, ratio: float) -> None:
    divisors = scaled("yarn", rotary, ratio).divisors
    assert all(1 - 1e-9 <= divisor <= ratio * (1 + 1e-9) for divisor in divisors)
