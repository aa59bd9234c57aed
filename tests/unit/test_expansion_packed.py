"""Packed sources: bitsandbytes models grow in depth and nothing else, everything else is refused with the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import EngineError
from engine.expansion.asked import choices_for, pick, source_of
from engine.expansion.checks import Wish
from engine.expansion.packed import refuse_run
from engine.expansion.support import AXES, expansion_support
from engine.models.headers import read_headers
from engine.models.resolve import resolve_model
from engine.surgery.expand import ExpandRequest, expand
from scaler_tui.cli import main
from tests.support.surgery_models import TINY, llama_shapes, random_tensor, write_llama, write_safetensors

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
LAYER_PARAMETERS = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64 + 2 * 32
Run = Callable[..., tuple[int, str, str]]


def packed_tensors(name: str, shape: tuple[int, ...]) -> dict[str, tuple[str, Any]]:
    """A matrix as bitsandbytes stores it in 4 bits: flat, with scales, a table and a state beside it."""
    numbers = int(np.prod(shape))
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": shape, "dtype": "bfloat16"}).encode()
    return {
        name: ("U8", np.zeros((numbers // 2, 1), np.uint8)),
        f"{name}.absmax": ("F32", np.ones(-(-numbers // 64), np.float32)),
        f"{name}.quant_map": ("F32", np.zeros(16, np.float32)),
        f"{name}.quant_state.bitsandbytes__nf4": ("U8", np.frombuffer(state, np.uint8)),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Llama whose blocks are packed in 4 bits."""
    folder = write_llama(tmp_path / "packed", files=1, quantization_config=NF4)
    tensors: dict[str, tuple[str, Any]] = {}
    for index, (name, shape) in enumerate(llama_shapes(TINY, tied=False).items()):
        if "_proj." in name:
            tensors |= packed_tensors(name, shape)
        else:
            tensors[name] = ("BF16", random_tensor(index, shape, "BF16"))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def test_inspect_says_that_depth_alone_can_grow_and_why(run: Run, model: Path) -> None:
    code, out, _ = run("inspect", model, "--json")
    axes = json.loads(out)["expansion"]
    assert code == 0
    assert axes["depth"]["supported"]
    assert axes["depth"]["exact"]
    assert "packed blocks are copied" in axes["depth"]["constraint"]
    for axis in set(AXES) - {"depth"}:
        assert not axes[axis]["supported"], axis
        assert not axes[axis]["exact"], axis
        assert "widths, heads and experts need the 16-bit model" in axes[axis]["reason"], axis


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "something"])
def test_other_packed_formats_are_refused_whole_with_the_way_out(model: Path, method: str) -> None:
    ref = resolve_model(str(model))
    found = expansion_support({**ref.config, "quantization_config": {"quant_method": method}}, "model")
    assert "quantised" in found.refused
    config = json.loads((model / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError) as refused:
        source_of(resolve_model(str(model)))
    assert refused.value.code == "expansion.quantised"
    assert "16-bit" in refused.value.next_step


def test_a_size_is_met_by_depth_alone_with_parameters_counted_unpacked(run: Run, model: Path) -> None:
    code, out, _ = run("expand", model, "--to", "2x", "--dry-run", "--json")
    document = json.loads(out)
    assert code == 0
    assert [plan["id"] for plan in document["plans"]] == ["deeper"]
    plan = document["plans"][0]
    assert plan["operators"] == {"layers": "identity"}
    assert document["parameters_before"] == 3 * LAYER_PARAMETERS + 2 * 96 * 32 + 32
    assert plan["parameters"] - document["parameters_before"] == (plan["layers"] - 3) * LAYER_PARAMETERS
    assert any("stay packed" in note for note in plan["notes"])


def test_the_planned_disk_is_what_is_written(model: Path, tmp_path: Path) -> None:
    choice = pick(choices_for(source_of(resolve_model(str(model))), Wish(layers=5)))
    certificate = expand(ExpandRequest(model, tmp_path / "out", choice.plan, proof=False), lambda _: None)
    assert choice.disk_bytes == sum(tensor.data_bytes for tensor in read_headers(tmp_path / "out").tensors)
    assert choice.parameters == certificate.parameters_after


def test_a_config_alone_gives_nearly_the_same_figures(model: Path) -> None:
    held = pick(choices_for(source_of(resolve_model(str(model))), Wish(layers=5)))
    (model / "model.safetensors").unlink()
    alone = pick(choices_for(source_of(resolve_model(str(model))), Wish(layers=5)))
    assert alone.parameters == held.parameters
    tables = 5 * 7 * (16 * 4 + 100)  # tiny matrices: the tables beside them are not tiny
    assert held.disk_bytes - tables < alone.disk_bytes < held.disk_bytes


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--hidden", 64), "expansion.unsupported", "16-bit model"),
        (("--ffn", 128), "expansion.unsupported", "16-bit model"),
        (("--experts", 4), "expansion.unsupported", "16-bit model"),
        (("--to", "2x", "--experts", 4), "expansion.unsupported", "16-bit model"),
        (("--layers", 6, "--operator", "stack"), "expansion.quantised", "operator identity"),
        (("--layers", 5, "--operator", "fresh"), "expansion.quantised", "operator identity"),
        (("--to", "2x", "--operator", "lesa"), "expansion.quantised", "operator identity"),
        (("--layers", 5, "--dtype", "float32"), "expansion.quantised", "cannot be cast"),
    ],
)
def test_growth_that_would_round_packed_numbers_is_refused(
    run: Run, model: Path, tmp_path: Path, flags: tuple[object, ...], code: str, words: str
) -> None:
    exit_code, out, _ = run("expand", model, tmp_path / "out", *flags, "--json")
    error = json.loads(out)["error"]
    assert exit_code == 2
    assert error["code"] == code
    assert words in error["cause"]
    assert error["next_step"]
    assert not (tmp_path / "out").exists()


def test_a_packed_matrix_of_another_size_than_the_config_says_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {"intermediate_size": 96}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError) as refused:
        source_of(resolve_model(str(model)))
    assert refused.value.code == "expansion.tensor"
    assert "packed in" in refused.value.cause


def test_a_run_does_not_grow_packed_weights_because_it_could_not_train_them(model: Path) -> None:
    with pytest.raises(EngineError) as refused:
        refuse_run(resolve_model(str(model)).config, "model")
    assert refused.value.code == "expansion.quantised"
    refuse_run({}, "model")
