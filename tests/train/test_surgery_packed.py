"""bitsandbytes models grown in depth without unpacking: real 4-bit and 8-bit models, loaded by transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from engine.errors import EngineError
from engine.expansion.certificate import read_certificate
from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.layouts.registry import layout_for
from engine.expansion.plan import ExpansionPlan
from engine.models.folder import check_folder
from engine.proof.prove import ProofRequest, prove
from engine.surgery.expand import ExpandRequest, expand
from engine.surgery.packed import without_offset
from engine.surgery.undo import undo
from tests.support.cli import cli

LAYERS = (
    LayerSource(0),
    LayerSource(0, LayerKind.IDENTITY),
    LayerSource(1),
    LayerSource(1, LayerKind.IDENTITY),
)
SETTINGS = {
    "4-bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "4-bit twice": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.float32},
    "8-bit": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("plain")
    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=200, head_dim=32,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(params=list(SETTINGS))
def packed(request: pytest.FixtureRequest, plain: Path, tmp_path: Path) -> Path:
    settings = BitsAndBytesConfig(**SETTINGS[request.param])
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings, device_map="cpu")
    model.save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


def plan_of(folder: Path, **changes: object) -> ExpansionPlan:
    layout = layout_for(check_folder(folder), "packed")
    plan = ExpansionPlan(
        layout.family, layout.dims, replace(layout.dims, layers=4), {"layers": "identity"}, layers=LAYERS
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")(tokens).logits
    return found


def test_packed_depth_keeps_every_logit_and_is_undone_byte_for_byte(packed: Path, tmp_path: Path) -> None:
    out, parent = tmp_path / "out", tmp_path / "parent"
    certificate = expand(ExpandRequest(packed, out, plan_of(packed), proof=False), lambda _: None)
    tokens = torch.randint(0, 200, (2, 24), generator=torch.Generator().manual_seed(1))
    assert torch.equal(logits(packed, tokens), logits(out, tokens))
    layer_parameters = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256 + 2 * 128
    assert certificate.parameters_after - certificate.parameters_before == 2 * layer_parameters
    assert undo(out, parent, lambda _: None).exact
    assert (parent / "model.safetensors").read_bytes() == (packed / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("packed", ["4-bit twice", "8-bit"], indirect=True)
def test_expand_grows_a_packed_model_proves_it_and_is_undone(packed: Path, tmp_path: Path) -> None:
    out, parent = tmp_path / "out", tmp_path / "parent"
    found = cli("expand", str(packed), str(out), "--layers", "5", "--json")
    assert found.code == 0, found.text
    told = found.json
    layer_parameters = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256 + 2 * 128
    assert told["operators"] == {"layers": "identity"}
    assert told["parameters_after"] - told["parameters_before"] == 3 * layer_parameters
    assert told["exact"]
    proof = told["proof"]
    assert proof["max_rel_logit_diff"] <= 1e-4
    assert proof["top1_agreement"] == 1.0
    assert proof["generation_identical"]
    assert proof["reloaded"]
    assert not proof["liveness"]["checked"]
    assert "adapters" in proof["liveness"]["reason"]
    kept = read_certificate(out)
    assert kept is not None
    assert kept.proof is not None
    assert kept.proof.passed
    assert kept.proof.bfloat16 is None
    undone = cli("expand", str(out), str(parent), "--undo", "--json")
    assert undone.code == 0, undone.text
    assert undone.json["parameters"] == told["parameters_before"]
    assert (parent / "model.safetensors").read_bytes() == (packed / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("packed", ["4-bit", "8-bit"], indirect=True)
def test_adapters_on_closed_packed_blocks_learn(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    expand(ExpandRequest(packed, out, plan_of(packed), proof=False), lambda _: None)
    base = AutoModelForCausalLM.from_pretrained(out, device_map="cpu", dtype=torch.float32)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0))
    tokens = torch.randint(0, 200, (1, 24), generator=torch.Generator().manual_seed(1))
    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for _ in range(2):
        model.zero_grad()
        torch.autograd.backward(model(input_ids=tokens, labels=tokens).loss)
        with torch.no_grad():
            for weight in learning.values():
                weight.sub_(weight.grad * 10.0)
    new = [weight for name, weight in learning.items() if "lora_B" in name and (".1." in name or ".3." in name)]
    assert len(new) == 2 * 7
    assert all(bool((weight != 0).any()) for weight in new)


@pytest.mark.slow
@pytest.mark.parametrize("packed", ["4-bit"], indirect=True)
def test_a_packed_model_whose_layer_writes_is_refused_by_its_proof(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    expand(ExpandRequest(packed, out, plan_of(packed), proof=False), lambda _: None)
    weights = load_file(out / "model.safetensors")
    name = "model.layers.1.self_attn.o_proj.weight.absmax"
    weights[name] = torch.full_like(weights[name], 0.5)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    proof = prove(ProofRequest(packed, out))
    assert not proof.passed
    assert "logits differ" in proof.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float32"},
        {"layers": (*LAYERS[:3], LayerSource(1, LayerKind.COPY))},
        {"operators": {"layers": "identity", "ffn": "pad"}},
    ],
    ids=["cast", "copies", "width"],
)
@pytest.mark.parametrize("packed", ["4-bit"], indirect=True)
def test_other_growth_of_packed_weights_is_refused(packed: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(EngineError) as refused:
        expand(ExpandRequest(packed, tmp_path / "out", plan_of(packed, **changes), proof=False), lambda _: None)
    assert refused.value.code == "surgery.quantised"
    assert not (tmp_path / "out").exists()


def test_a_quantisation_state_loses_its_offset_and_keeps_its_length() -> None:
    state = b'{"quant_type": "nf4", "nested_blocksize": 256, "nested_offset": 0.05186915397644043}'
    changed = without_offset(state)
    assert len(changed) == len(state)
    assert msgspec.json.decode(changed) == msgspec.json.decode(state) | {"nested_offset": 0.0}
    assert without_offset(b'{"quant_type": "nf4"}') == b'{"quant_type": "nf4"}'
