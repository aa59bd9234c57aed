"""Inverse frequencies: ours equal transformers' own, exported configs carry them, and modules are set and put back."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.context.export import config_after
from engine.context.method import Options
from engine.context.methods import METHODS
from engine.context.methods.dynamic import divisors_at
from engine.context.plan import ContextPlan, PlannedRotary
from engine.context.planner import applicable, plan_context, read_rotaries, read_window
from engine.context.scaling import inverse_frequencies, unscaled
from engine.errors import EngineError
from engine.rotary import modules
from engine.rotary.modules import check_frequencies, rebuild_on_cpu, rotary_modules, set_plan, using
from tests.support.published_configs import PUBLISHED
from tests.support.rope_configs import GEMMA3, SHAPES, rope, small

pytestmark = pytest.mark.slow
EXPORTED = [method.id for method in METHODS.values() if method.exported]


def searched(config: dict[str, Any], method: str) -> Options:
    pairs = read_rotaries(config)[0].pairs
    if method == "longrope":
        return Options(long_divisors=tuple(1 + 0.25 * i for i in range(pairs)), short_divisors=(1.0,) * pairs)
    return Options(long_divisors=tuple(1 + 0.25 * i for i in range(pairs))) if method == "longrope2" else Options()


def planned(config: dict[str, Any], method: str) -> ContextPlan:
    return plan_context(config, 4 * read_window(config), method, searched(config, method))


def as_written(config: dict[str, Any]) -> ContextPlan:
    """The frequencies that a config stands for, as a plan that changes nothing."""
    rotaries = tuple(PlannedRotary(one, one.present or unscaled(one), changed=False) for one in read_rotaries(config))
    return ContextPlan("ntk", read_window(config), read_window(config), rotaries)


def built(config: dict[str, Any]) -> Any:
    loaded = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(loaded).eval()


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


@pytest.fixture(scope="module", params=list(SHAPES))
def shaped(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Any]:
    config = SHAPES[request.param]
    return config, built(config)


def test_modules_built_without_weights_turn_as_those_of_the_whole_model(shaped: tuple[dict[str, Any], Any]) -> None:
    config, model = shaped
    with torch.device("meta"):
        bare = built(config)
    rebuild_on_cpu(bare)
    assert {one.name for one in rotary_modules(bare)} == {one.name for one in rotary_modules(model)}
    assert check_frequencies(bare, as_written(config)) == check_frequencies(model, as_written(config))
    assert next(bare.parameters()).device.type == "meta"


def test_every_plan_is_carried_out_and_exported_alike(shaped: tuple[dict[str, Any], Any]) -> None:
    config, model = shaped
    assert check_frequencies(model, as_written(config)) < 1e-6
    for method in METHODS:
        plan = planned(config, method)
        with using(model, plan):
            set_here = {one.name: one.module for one in rotary_modules(model)}
            tensors = {name: module._buffers for name, module in set_here.items()}
            held = copy.deepcopy(tensors)
        if method == "dynamic":
            continue
        loaded = CONFIG_MAPPING[config["model_type"]].from_dict(config_after(config, plan))
        for one in rotary_modules(model):
            fresh = type(one.module)(loaded)
            for name, tensor in fresh._buffers.items():
                assert torch.equal(tensor, held[one.name][name]), f"{method}: what is measured is what is exported"


@pytest.mark.parametrize("method", EXPORTED)
@pytest.mark.parametrize("shape", SHAPES)
def test_both_forms_of_an_exported_config_load_with_the_plans_frequencies(shape: str, method: str) -> None:
    config = SHAPES[shape]
    plan = planned(config, method)
    both = config_after(config, plan)
    new = {key: value for key, value in both.items() if key not in ("rope_scaling", "rope_theta")}
    old = {key: value for key, value in both.items() if key != "rope_parameters"}
    for form in (both, new, old):
        check_frequencies(rotary_of(form), plan)


TYPES = (
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 16.0, "truncate": False, "beta_fast": 16.0, "beta_slow": 2.0},
    {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.25},
    {"rope_type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "longrope", "factor": 4.0},
)
ONE_EMBEDDING = ("demo", "llama-3", "qwen3", "stablelm", "gpt-neox")
SETTINGS = [(shape, settings) for shape in ONE_EMBEDDING for settings in TYPES] + [("phi-3", TYPES[-1])]
"""Phi-3's class knows longrope alone."""


@pytest.mark.parametrize(("shape", "settings"), SETTINGS, ids=[f"{one}-{two['rope_type']}" for one, two in SETTINGS])
def test_frequencies_equal_those_of_transformers(shape: str, settings: dict[str, Any]) -> None:
    config = copy.deepcopy(SHAPES[shape])
    window = config["max_position_embeddings"]
    if settings["rope_type"] in ("yarn", "llama3", "longrope"):
        settings = settings | {"original_max_position_embeddings": window}
    if settings["rope_type"] == "longrope":
        pairs = read_rotaries(config)[0].pairs
        settings |= {"short_factor": [1.0] * pairs, "long_factor": [1.0 + i for i in range(pairs)]}
    config["rope_parameters"] |= settings
    if settings["rope_type"] != "dynamic":
        config["max_position_embeddings"] = round(window * settings["factor"])
    (rotary,) = read_rotaries(config)
    loaded = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    assert rotary.present is not None
    initial = ROPE_INIT_FUNCTIONS[settings["rope_type"]]
    for length in (window, 4 * window):
        theirs, m = initial(loaded, None, seq_len=length)
        divisors = rotary.present.divisors
        if rotary.present.switches and length <= rotary.length:
            divisors = rotary.present.short_divisors
        if settings["rope_type"] == "dynamic":
            divisors = divisors_at(rotary, settings["factor"], length)
        ours = torch.tensor(inverse_frequencies(rotary, divisors), dtype=torch.float64)
        assert torch.allclose(theirs.double(), ours, rtol=0, atol=1e-7)
        assert torch.allclose(theirs.double(), ours, rtol=1e-6, atol=0)
        assert m == pytest.approx(rotary.present.attention_factor, rel=1e-9)


def rotary_of(config: dict[str, Any]) -> torch.nn.Module:
    """The rotary module alone, of the config's language model, as its class builds it."""
    loaded = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config)).get_text_config(decoder=True)
    modeling = importlib.import_module(type(loaded).__module__.replace("configuration_", "modeling_"))
    (own,) = [
        kind
        for name, kind in vars(modeling).items()
        if name.endswith("RotaryEmbedding") and kind.__module__ == modeling.__name__
    ]
    holder = torch.nn.Module()
    holder.rotary = own(loaded)
    return holder


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_load_with_their_frequencies_before_and_after(name: str) -> None:
    config = PUBLISHED[name]
    assert check_frequencies(rotary_of(config), as_written(config)) < 1e-6
    target = 2 * read_window(config)
    for method, why in applicable(config, target):
        if not why and method.exported and not method.needs_search:
            plan = plan_context(config, target, method.id)
            assert check_frequencies(rotary_of(config_after(config, plan)), plan) < 2e-6


def test_all_of_transformers_rotary_types_are_known_or_refused() -> None:
    """A new type in the library must be looked at before models with it are touched."""
    assert set(ROPE_INIT_FUNCTIONS) == {"linear", "dynamic", "yarn", "longrope", "llama3", "proportional"}
    for kind in ("proportional", "axial"):
        with pytest.raises(EngineError) as caught:
            read_rotaries(small("llama") | {"rope_parameters": rope(1e4) | {"rope_type": kind}})
        assert caught.value.code == "context.rope_type"


SMALL_PHI3 = small("phi3", original_max_position_embeddings=256)


@pytest.mark.parametrize("config", [SHAPES["demo"], GEMMA3, SMALL_PHI3], ids=["demo", "gemma-3", "phi-3"])
def test_a_model_is_put_back_bit_for_bit(config: dict[str, Any]) -> None:
    model = built(config)
    ids = torch.randint(3, 90, (1, 300), generator=torch.Generator().manual_seed(1))
    before = logits(model, ids)
    names = sorted(name for one in rotary_modules(model) for name in (*vars(one.module), *one.module._buffers))
    for method in METHODS:
        with using(model, planned(config, method)):
            scaled = logits(model, ids)
        assert not torch.equal(scaled, before), method
        assert torch.equal(logits(model, ids), before), method
    assert sorted(n for one in rotary_modules(model) for n in (*vars(one.module), *one.module._buffers)) == names
    with pytest.raises(RuntimeError), using(model, planned(config, "yarn")):
        raise RuntimeError("an error inside the block")
    assert torch.equal(logits(model, ids), before)
    with using(model, None):
        assert torch.equal(logits(model, ids), before)


def test_an_extended_folder_loads_in_plain_transformers(tmp_path: Path) -> None:
    config = SHAPES["demo"]
    model = built(config)
    model.save_pretrained(tmp_path)
    source = json.loads((tmp_path / "config.json").read_text())
    plan = planned(source, "yarn")
    (tmp_path / "config.json").write_text(json.dumps(config_after(source, plan)))
    assert AutoConfig.from_pretrained(tmp_path).max_position_embeddings == 1024
    extended = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(3, 90, (1, 700), generator=torch.Generator().manual_seed(2))
    assert check_frequencies(extended, plan) < 1e-6
    with using(model, plan):
        assert torch.equal(logits(model, ids), logits(extended, ids))
    again = tmp_path / "again"
    extended.save_pretrained(again)
    assert check_frequencies(AutoModelForCausalLM.from_pretrained(again), plan) < 1e-6


@pytest.mark.parametrize(
    "config",
    [
        small("gemma2", head_dim=32, sliding_window=256),
        GEMMA3 | {"sliding_window": 256},
        small("mistral", head_dim=32, sliding_window=256),
        small("mistral", head_dim=32, sliding_window=256, layer_types=["sliding_attention"] * 6),
        small("qwen2", sliding_window=256, use_sliding_window=True, max_window_layers=3),
    ],
    ids=["gemma-2", "gemma-3", "mistral", "listed layers", "qwen2"],
)
def test_a_sliding_window_as_wide_as_the_old_window_computes_after_extending(config: dict[str, Any]) -> None:
    plan = planned(config, "yarn")
    model = built(config_after(config, plan))
    assert check_frequencies(model, plan) < 1e-6
    ids = torch.randint(3, 90, (1, 300), generator=torch.Generator().manual_seed(3))
    assert torch.isfinite(logits(model, ids)).all()


def test_a_scaled_model_is_taken_further_in_place() -> None:
    settings = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = SHAPES["demo"] | {"rope_parameters": rope(1e4) | settings | {"original_max_position_embeddings": 32}}
    model = built(config)
    assert check_frequencies(model, as_written(config)) < 1e-6
    for method in ("llama3", "abf"):
        plan = planned(config, method)
        with using(model, plan):
            assert check_frequencies(model, plan) < 2e-6
        exported = built(config_after(config, plan))
        assert check_frequencies(exported, plan) < 2e-6


def test_rotary_modules_keep_their_state_where_it_is_looked_for() -> None:
    """Fails when transformers keeps something in a rotary module that `engine.rotary.modules` does not carry over."""
    plain = {*vars(torch.nn.Module()), "_is_hf_initialized", "layer_types"}
    config = SHAPES["demo"]
    model = built(config)
    ids = torch.randint(3, 90, (1, 300))
    for method in ("yarn", "dynamic", "longrope"):
        setting = set_plan(model, planned(config, method))
        logits(model, ids)
        (module,) = [one.module for one in rotary_modules(model)]
        assert set(vars(module)) - plain <= {*modules.STATE, *modules.BY_LAYER}
        assert set(module._buffers) == {"inv_freq", "original_inv_freq"}
        modules.restore(setting)
    (nested,) = [one.module for one in rotary_modules(built(GEMMA3))]
    prefixed = {f"{kind}_{name}" for kind in ("full_attention", "sliding_attention") for name in modules.BY_LAYER}
    assert set(vars(nested)) - plain <= {*modules.STATE, *prefixed}
    assert set(nested._buffers) <= prefixed


def test_a_model_without_rotary_modules_is_refused() -> None:
    with pytest.raises(EngineError) as caught:
        rotary_modules(torch.nn.Linear(2, 2))
    assert caught.value.code == "context.frequencies"


def test_a_plan_for_another_model_is_refused_and_nothing_changes() -> None:
    model = built(SHAPES["demo"])
    ids = torch.randint(3, 90, (1, 40))
    before = logits(model, ids)
    for other in (GEMMA3, small("llama", head_dim=64)):
        with pytest.raises(EngineError) as caught:
            set_plan(model, planned(other, "yarn"))
        assert caught.value.code == "context.frequencies"
    assert torch.equal(logits(model, ids), before)
