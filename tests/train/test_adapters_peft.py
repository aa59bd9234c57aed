"""Mixed adapters next to peft: logits of one adapter alone, of sums, and what peft's own function makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from engine.adapters.base import read_base
from engine.adapters.folder import read_adapter
from engine.adapters.identity import TOLERANCE, identity_report
from engine.adapters.mix import MixRequest, mix_adapters
from engine.adapters.recipe import Share
from scaler_tui.cli import main
from tests.support.adapters import random_adapter

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("adapters-peft")]

TARGETS = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "patterns": {"rank_pattern": {"q_proj": 8, "layers.1.self_attn.v_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "own biases": {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
    "all biases": {"bias": "all"},
    "saved": {"modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [4]}},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "use_dora": True},
    "tied tokens": {"trainable_token_indices": [3, 5]},
    "tied embeddings": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
}
PEFTS_OWN_ERROR = {"lora": 0.0, "patterns": 0.0, "rslora": 0.2, "dora": 0.1, "pissa": 0.1, "olora": 0.05}
"""Where `add_weighted_adapter` is right, and about how far it is off elsewhere, at the least."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """tied -> a tiny Qwen 2, which has biases."""
    folder = tmp_path_factory.mktemp("bases")
    for tied in (False, True):
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=tied,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(0, 0.1)
        model.save_pretrained(folder / str(tied))
    return {tied: folder / str(tied) for tied in (False, True)}


def base_of(name: str) -> bool:
    return name.startswith("tied")


@pytest.fixture(scope="module")
def adapters(bases: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of every kind, every trained number moved."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, fields) in enumerate(KINDS.items()):
        model = AutoModelForCausalLM.from_pretrained(bases[base_of(name)], dtype=torch.float32)
        torch.manual_seed(seed)
        settings = {"r": 4, "lora_alpha": 7, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **fields}
        wrapped = get_peft_model(model, LoraConfig(**settings))
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        wrapped.save_pretrained(folder / name)
    return {name: folder / name for name in KINDS}


IDS = torch.cat((torch.tensor([[3, 4, 5, 6, 3, 5]]), torch.arange(7, 13)[None]), dim=1)


def loaded(base: Path, adapter: Path) -> tuple[Tensor, Tensor, PeftModel]:
    """(the base's logits, the adapter's, the model)."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before = model(IDS).logits.clone()
        wrapped = PeftModel.from_pretrained(model, str(adapter)).eval()
        return before, wrapped(IDS).logits, wrapped


def off(found: Tensor, wanted: Tensor, before: Tensor) -> float:
    """Relative to what the adapter changes."""
    return float((found - wanted).norm() / (wanted - before).norm())


@pytest.mark.parametrize("name", KINDS)
def test_alone_at_weight_one_every_kind_has_its_own_logits(
    bases: dict[bool, Path], adapters: dict[str, Path], tmp_path: Path, name: str
) -> None:
    base = bases[base_of(name)]
    before, wanted, model = loaded(base, adapters[name])
    assert off(wanted, torch.zeros_like(wanted), before) > 0.1, "the adapter does something"
    share = Share(read_adapter(adapters[name]))
    report = mix_adapters(MixRequest((share,), tmp_path / "out", base=base))
    assert report.identity_error is not None
    assert report.identity_error <= TOLERANCE
    _, found, _ = loaded(base, tmp_path / "out")
    assert off(found, wanted, before) <= TOLERANCE

    least = PEFTS_OWN_ERROR.get(name)
    if least is None:
        return
    model.add_weighted_adapter(["default"], [1.0], "again", combination_type="linear")
    model.set_adapter("again")
    with torch.no_grad():
        own = off(model(IDS).logits, wanted, before)
    assert own > least if least else own < 1e-5


def test_a_sum_of_kinds_has_the_logits_of_the_summed_weights(
    bases: dict[bool, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    """The sum is taken from models that peft merged itself."""
    weights = {"dora": 0.6, "pissa": -0.5, "rslora": 0.4, "all biases": 0.7, "saved": 1.2, "patterns": 1.0}
    base = bases[False]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    own = {name: values.clone() for name, values in plain.state_dict().items()}
    total = {name: values.double() for name, values in own.items()}
    for name, weight in weights.items():
        merged = loaded(base, adapters[name])[2].merge_and_unload().state_dict()
        for key in total:
            total[key] += weight * (merged[key].double() - own[key].double())
    plain.load_state_dict({key: values.float() for key, values in total.items()})
    with torch.no_grad():
        wanted = plain(IDS).logits
    shares = tuple(Share(read_adapter(adapters[name]), weight) for name, weight in weights.items())
    report = mix_adapters(MixRequest(shares, tmp_path / "out", base=base))
    assert report.relative_error < 1e-5
    before, found, _ = loaded(base, tmp_path / "out")
    assert off(found, wanted, before) < 2e-5
    assert identity_report(Share(read_adapter(tmp_path / "out")), read_base(base)).passed


def test_a_pissa_adapter_mixed_alone_can_share_a_base(
    bases: dict[bool, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    """peft takes the start out of a base again for every PiSSA adapter it loads, also when it is out already."""
    base = bases[False]
    before, wanted, _ = loaded(base, adapters["pissa"])
    _, _, model = loaded(base, adapters["olora"])
    model.load_adapter(str(adapters["pissa"]), "second")
    model.set_adapter("second")
    with torch.no_grad():
        assert off(model(IDS).logits, wanted, before) > 0.1
    mix_adapters(MixRequest((Share(read_adapter(adapters["pissa"])),), tmp_path / "plain", base=base, test=False))
    _, _, shared = loaded(base, adapters["dora"])
    shared.load_adapter(str(tmp_path / "plain"), "second")
    shared.set_adapter("second")
    with torch.no_grad():
        assert off(shared(IDS).logits, wanted, before) <= TOLERANCE


def test_the_command_compares_with_peft_itself(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = random_adapter(tiny_model, tmp_path / "dora", seed=1, use_dora=True)
    assert main(["adapters", "test", str(adapter), "--peft", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is True
    found = told["adapters"][0]
    assert found["kind"] == "DoRA"
    assert found["logits"]["logits"]["max_rel_logit_diff"] < 1e-5
    assert found["relative_error"] < TOLERANCE
