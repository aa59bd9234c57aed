"""The known traps of rotary scaling, each shown on the installed transformers beside what keeps us out of it.

A test that stops failing to show its trap says that transformers has changed, and that our way round it may go.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from engine.context.export import config_after
from engine.context.lints import cache_goes_stale
from engine.context.method import Options
from engine.context.methods.longrope import carrier
from engine.context.plan import ContextPlan
from engine.context.planner import plan_context
from engine.context.refusals import angle_rounding
from engine.context.scaling import inverse_frequencies
from engine.errors import EngineError
from engine.rotary.modules import check_frequencies, rotary_modules, using
from tests.support.rope_configs import GEMMA3, small

pytestmark = pytest.mark.slow
WINDOW, TARGET, PAIRS = 64, 256, 16
LLAMA = small("llama", hidden_size=128, num_hidden_layers=2, max_position_embeddings=WINDOW)
LONG = tuple(1 + 0.25 * pair for pair in range(PAIRS))
ONES = (1.0,) * PAIRS


def config_of(tree: dict[str, Any]) -> Any:
    return CONFIG_MAPPING[tree["model_type"]].from_dict(copy.deepcopy(tree))


def built(tree: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(tree)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)  # attention that listens, so that positions show in the logits
    return model


def plan(method: str, **options: Any) -> ContextPlan:
    return plan_context(LLAMA, TARGET, method, Options(**options))


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 90, (1, count), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids, **more).logits
    return found


def stepwise(model: Any, ids: torch.Tensor, first: int) -> torch.Tensor:
    """Logits of `ids` with a cache: the first tokens at once, then one by one."""
    cache = DynamicCache(config=model.config)
    parts = [logits(model, ids[:, :first], past_key_values=cache)]
    parts += [logits(model, ids[:, at : at + 1], past_key_values=cache) for at in range(first, ids.shape[1])]
    return torch.cat(parts, dim=1)


def rotary(model: Any) -> Any:
    return rotary_modules(model)[0].module


@pytest.fixture(scope="module")
def model() -> Any:
    return built(LLAMA)


def test_a_config_edited_after_construction_changes_nothing_and_is_caught() -> None:
    """Trap 1."""
    model = built(LLAMA)
    before = rotary(model).inv_freq.clone()
    wanted = plan("yarn")
    model.config.rope_parameters = config_after(LLAMA, wanted)["rope_parameters"]
    model.config.max_position_embeddings = TARGET
    logits(model, tokens(80))
    assert torch.equal(rotary(model).inv_freq, before)
    with pytest.raises(EngineError) as caught:
        check_frequencies(model, wanted)
    assert caught.value.code == "context.frequencies"
    assert "built before its config was changed" in caught.value.cause


def test_rope_scaling_without_a_base_fails_to_build_and_ours_has_one_in_every_form() -> None:
    """Trap 2."""
    config = config_of(LLAMA)
    config.rope_scaling = {"rope_type": "linear", "factor": 4.0}
    with pytest.raises(TypeError):
        AutoModelForCausalLM.from_config(config)
    after = config_after(LLAMA, plan("linear"))
    assert after["rope_parameters"]["rope_theta"] == after["rope_theta"] == 1e4
    check_frequencies(built({key: value for key, value in after.items() if key != "rope_parameters"}), plan("linear"))


def test_a_missing_original_length_is_filled_with_the_new_one_and_ours_is_written() -> None:
    """Trap 3."""
    wanted = plan("yarn")
    after = config_after(LLAMA, wanted)
    check_frequencies(built(after), wanted)
    for key in ("rope_parameters", "rope_scaling"):
        del after[key]["original_max_position_embeddings"]
    wrong = built(after)
    assert wrong.config.rope_parameters["original_max_position_embeddings"] == TARGET
    with pytest.raises(EngineError):
        check_frequencies(wrong, wanted)


def test_dynamic_scaling_never_starts_where_the_window_is_written_as_the_target(model: Any) -> None:
    """Trap 4."""
    settings = LLAMA["rope_parameters"] | {"rope_type": "dynamic", "factor": 4.0}
    exported = built(LLAMA | {"rope_parameters": settings, "max_position_embeddings": TARGET})
    ids = tokens(TARGET)
    assert torch.equal(logits(exported, ids), logits(model, ids))
    with using(model, plan("dynamic")):
        assert not torch.equal(logits(exported, ids), logits(model, ids))
    with pytest.raises(EngineError) as caught:
        config_after(LLAMA, plan("dynamic"))
    assert caught.value.code == "context.not_exported"


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dynamic", {"rope_type": "dynamic", "factor": 4.0}),
        (
            "longrope",
            {
                "rope_type": "longrope",
                "factor": 4.0,
                "short_factor": list(ONES),
                "long_factor": list(LONG),
                "original_max_position_embeddings": WINDOW,
            },
        ),
    ],
)
def test_what_follows_the_length_does_so_as_in_a_model_built_with_it(
    model: Any, method: str, settings: dict[str, Any]
) -> None:
    """Up, further up and down again: transformers' own update goes on in a model whose frequencies were set."""
    wanted = plan(method, **({} if method == "dynamic" else {"long_divisors": LONG, "short_divisors": ONES}))
    window = WINDOW if method == "dynamic" else TARGET
    theirs = built(LLAMA | {"rope_parameters": LLAMA["rope_parameters"] | settings, "max_position_embeddings": window})
    with using(model, wanted):
        for length in (40, 2 * WINDOW, TARGET, 3 * WINDOW, 40):
            assert torch.equal(logits(model, tokens(length)), logits(theirs, tokens(length))), length
    if method == "dynamic":
        with using(model, wanted):
            inside = logits(model, tokens(WINDOW))
        assert torch.equal(inside, logits(model, tokens(WINDOW)))


def test_one_long_row_puts_short_rows_on_the_long_factors(model: Any) -> None:
    """Trap 5; also a packed batch whose ids do not restart."""
    wanted = plan("longrope", long_divisors=LONG, short_divisors=ONES, attention_factor=1.0)
    short, long = tokens(40), torch.arange(100, 100 + 40)[None]
    positions = torch.arange(40)[None]
    with using(model, wanted):
        alone = logits(model, short, position_ids=positions)
        both = logits(model, short.expand(2, -1), position_ids=torch.cat([positions, long]))
    assert torch.equal(alone, logits(model, short))
    assert not torch.allclose(alone[0], both[0], atol=1e-3)
    assert any("for the whole batch" in note for note in wanted.notes)


def test_the_attention_factor_is_on_short_sequences_too(model: Any) -> None:
    """Trap 6."""
    wanted = plan("longrope", long_divisors=LONG, short_divisors=ONES)
    with using(model, wanted):
        cos, _ = rotary(model)(torch.zeros(1), torch.zeros(1, 1, dtype=torch.long))
        switched = logits(model, tokens(40))
    assert float(cos[0, 0, 0]) == pytest.approx(wanted.scaled.scaling.attention_factor, rel=1e-6)
    assert wanted.scaled.scaling.attention_factor > 1
    assert not torch.allclose(switched, logits(model, tokens(40)), atol=1e-4)
    assert any("multiplied by" in note for note in wanted.notes)


def test_short_ones_with_an_attention_factor_of_one_are_the_original_model(model: Any) -> None:
    """The way out of trap 6, bit for bit up to the old window, exported as well."""
    wanted = plan("longrope2", long_divisors=LONG, short_divisors=ONES)
    exported = built(config_after(LLAMA, wanted))
    for length in (1, 40, WINDOW):
        assert torch.equal(logits(exported, tokens(length)), logits(model, tokens(length)))
    ids = tokens(WINDOW + 1)
    assert not torch.allclose(logits(exported, ids), logits(model, ids), atol=1e-4)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("longrope", {"long_divisors": LONG, "short_divisors": ONES}),
        ("dynamic", {}),
    ],
)
def test_a_cache_is_right_within_a_regime_and_wrong_across_it(model: Any, method: str, options: dict[str, Any]) -> None:
    """Trap 7: plain Llama keeps keys that were turned by other frequencies."""
    wanted = plan(method, **options)
    with using(model, wanted):
        below = stepwise(model, tokens(WINDOW), 40), logits(model, tokens(WINDOW))
    with using(model, wanted):
        across = stepwise(model, tokens(WINDOW + 16), WINDOW), logits(model, tokens(WINDOW + 16))
    assert torch.allclose(*below, atol=1e-4)
    assert (across[0] - across[1])[:, -8:].abs().max() > 1e-2
    assert cache_goes_stale(wanted, "llama")
    assert any("cache" in note for note in wanted.notes)


def test_a_cache_is_right_above_the_window_where_frequencies_stay(model: Any) -> None:
    """Trap 7: equal when both sides are long, and for every static scheme."""
    switching = plan("longrope", long_divisors=LONG, short_divisors=ONES)
    for wanted in (switching, plan("longrope2", long_divisors=LONG), plan("yarn"), plan("ntk-critical")):
        with using(model, wanted):
            ids = tokens(WINDOW + 24)
            first = WINDOW + 8 if wanted is switching else WINDOW - 8
            assert torch.allclose(stepwise(model, ids, first), logits(model, ids), atol=1e-4)
        assert cache_goes_stale(wanted, "llama") == (wanted is switching)


def test_truncation_is_read_at_the_top_level_only_and_written_there() -> None:
    """Trap 8."""
    wanted = plan_context(GEMMA3, 1024, "yarn", Options(truncate=False))
    after = config_after(GEMMA3, wanted)
    check_frequencies(built(after), wanted)
    del after["rope_parameters"]["truncate"]
    assert after["rope_parameters"]["full_attention"]["truncate"] is False
    with pytest.raises(EngineError):
        check_frequencies(built(after), wanted)


def test_longrope_carries_yarn_bit_close(model: Any) -> None:
    """Trap 9, a door rather than a trap."""
    wanted = plan("yarn")
    settings = carrier(wanted.scaled.rotary, wanted.factor, wanted.scaled.scaling)
    carried = built(
        LLAMA
        | {
            "rope_parameters": settings | {"original_max_position_embeddings": WINDOW},
            "max_position_embeddings": TARGET,
            "original_max_position_embeddings": WINDOW,
        }
    )
    for length in (40, TARGET):
        with using(model, wanted):
            assert torch.allclose(logits(carried, tokens(length)), logits(model, tokens(length)), atol=2e-4)
    check_frequencies(carried, wanted)
    assert rotary(carried).attention_scaling == wanted.scaled.scaling.attention_factor


@pytest.mark.parametrize("length", [131_072, 1 << 20])
def test_angles_in_float32_are_rounded_as_far_as_we_say(length: int) -> None:
    """Trap 10: 0.008 rad at 131k were the halves of a step of 1/64; at 1M 0.06."""
    frequency = float(torch.tensor(inverse_frequencies(plan("ntk").scaled.rotary, ONES)[1], dtype=torch.float32))
    positions = torch.arange(length - 4096, length)
    angles = positions.float() * torch.tensor(frequency, dtype=torch.float32)
    exact = positions.double() * frequency
    worst = float((angles.double() - exact).abs().max())
    assert angle_rounding(length) / 4 < worst <= angle_rounding(length)


def test_frequencies_that_lost_digits_are_refused() -> None:
    """Trap 10: cos and sin in bfloat16, which a cast of the whole model makes."""
    model = built(config_after(LLAMA, plan("yarn"))).to(torch.bfloat16)
    with pytest.raises(EngineError) as caught:
        check_frequencies(model, plan("yarn"))
    assert "float32" in caught.value.what


def influence(model: Any, positions: torch.Tensor, **more: Any) -> float:
    """How far the last token's logits move when the first half of the text is another one."""
    one, other = tokens(32, seed=1), tokens(32, seed=1)
    other[:, :16] = tokens(16, seed=2)
    moved = logits(model, one, position_ids=positions, **more) - logits(model, other, position_ids=positions, **more)
    return float(moved[:, -1].abs().max())


def test_skipped_positions_cut_a_text_in_two_unless_a_mask_is_given(model: Any) -> None:
    """Trap 11: PoSE without a mask and without a cache, as in training, is two documents that do not see each other."""
    skipped = torch.cat([torch.arange(16), torch.arange(200, 216)])[None]
    ones = torch.ones(1, 32, dtype=torch.long)
    for training in (False, True):
        model.train(training)
        assert influence(model, skipped, use_cache=False) == 0.0
        assert influence(model, skipped, use_cache=False, attention_mask=ones) > 1e-2
    model.eval()


def test_restarted_positions_without_a_mask_keep_documents_apart(model: Any) -> None:
    """Trap 12, a door rather than a trap: what packing relies on."""
    restarted = torch.cat([torch.arange(16), torch.arange(16)])[None]
    assert influence(model, restarted, use_cache=False) == 0.0
    second = logits(model, tokens(32, seed=1)[:, 16:])
    packed = logits(model, tokens(32, seed=1), position_ids=restarted, use_cache=False)[:, 16:]
    assert torch.allclose(packed, second, atol=1e-4)
