"""Do two folders compute the same function: models, adapters on their base, merged and packed ones; refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineError
from engine.jobs.function_report import FunctionReport

pytestmark = pytest.mark.slow


def compared(first: Path, second: Path, **options: Any) -> FunctionReport:
    from engine.proof.same_function import FunctionRequest, same_function

    return same_function(FunctionRequest(first, second, tokens=48, **options))


@pytest.fixture
def changed(tiny_model: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """The tiny model with other weights."""

    def make(change: Callable[[dict[str, Any]], None]) -> Path:
        from safetensors.torch import load_file, save_file

        folder = tmp_path / "changed"
        shutil.copytree(tiny_model, folder)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def test_a_copy_is_the_same_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "copy")
    found = compared(tiny_model, tmp_path / "copy")
    assert (found.verdict, found.identical, found.agrees) == ("same", True, True)
    assert found.generation_identical
    assert found.generation_tokens > 0
    assert found.reloaded
    assert [layer.layer for layer in found.layers] == [0, 1]
    assert all(layer.largest == 0 for layer in found.layers)
    assert found.perplexity_first == found.perplexity_second


def test_tokens_beyond_the_window_are_told_and_no_tolerance_at_all_is_obeyed(tiny_model: Path) -> None:
    from engine.proof.same_function import FunctionRequest, same_function

    found = same_function(FunctionRequest(tiny_model, tiny_model, tokens=999_999, tolerance=0.0))
    assert (found.verdict, found.tolerance) == ("same", 0.0)
    assert f"Compared on {found.tokens:,} tokens, not on 999,999" in found.notes[0]


def test_a_folder_that_loads_otherwise_the_second_time_computes_no_one_function(
    tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from engine.proof.same_function import FunctionRequest, same_function

    folder = tmp_path / "unsteady"
    shutil.copytree(tiny_model, folder)

    def report(phase: str, _done: int, _total: int, _words: str = "") -> None:
        if phase == "reload":
            file = folder / "model.safetensors"
            weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
            weights["model.layers.1.mlp.down_proj.weight"] *= 1.5
            file.unlink()
            save_file(weights, file, metadata={"format": "pt"})

    found = same_function(FunctionRequest(tiny_model, folder, tokens=48), report)
    assert found.identical
    assert (found.reloaded, found.verdict, found.agrees) == (False, "different", False)
    assert "loaded once more" in found.words


@pytest.mark.parametrize("word", ["-1", "nan", "inf", "little"])
def test_a_tolerance_is_a_number_from_zero_on(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    from scaler_tui.cli import main

    assert main(["verify", "demo", "demo", f"--tolerance={word}"]) == 2
    assert "tolerance" in capsys.readouterr().err


def test_weights_that_move_together_are_the_same_function(tiny_model: Path, changed: Callable[..., Path]) -> None:
    """Feed-forward units in another order: other files, the same sums in another order."""
    import torch

    def permute(weights: dict[str, Any]) -> None:
        order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
        for name in ("gate_proj", "up_proj"):
            key = f"model.layers.0.mlp.{name}.weight"
            weights[key] = weights[key][order].contiguous()
        weights["model.layers.0.mlp.down_proj.weight"] = weights["model.layers.0.mlp.down_proj.weight"][
            :, order
        ].contiguous()

    found = compared(tiny_model, changed(permute))
    assert found.verdict == "same"
    assert 0 < found.logits.max_rel_logit_diff < 1e-4


def test_a_change_is_found_and_the_layer_where_it_begins(tiny_model: Path, changed: Callable[..., Path]) -> None:
    def scale(weights: dict[str, Any]) -> None:
        weights["model.layers.1.mlp.down_proj.weight"] *= 1.5

    found = compared(tiny_model, changed(scale))
    assert (found.verdict, found.agrees) == ("different", False)
    assert found.layers[0].largest == 0
    assert found.layers[1].largest > 1e-3
    assert "from layer 1 on" in found.words
    assert found.own_rounding is not None
    assert found.logits.max_rel_logit_diff > 2 * found.own_rounding.max_rel_logit_diff


def test_layer_by_layer_gives_the_same_figures(tiny_model: Path, changed: Callable[..., Path]) -> None:
    def scale(weights: dict[str, Any]) -> None:
        weights["model.layers.1.mlp.down_proj.weight"] *= 1.5

    folder = changed(scale)
    whole, streamed = compared(tiny_model, folder), compared(tiny_model, folder, memory_bytes=1000)
    assert (whole.method, streamed.method) == ("whole", "layer by layer")
    assert streamed.logits.max_rel_logit_diff == pytest.approx(whole.logits.max_rel_logit_diff, rel=1e-3)
    assert streamed.layers[1].largest == pytest.approx(whole.layers[1].largest, rel=1e-3)
    assert streamed.generation_identical is None
    assert "Generation was not tried" in streamed.notes[0]


def test_an_adapter_on_its_base_is_the_merged_model_up_to_rounding(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)

    adapted = get_peft_model(base(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "exact")
    merged.to(torch.bfloat16).save_pretrained(tmp_path / "rounded")
    for name in ("exact", "rounded"):
        shutil.copy(tiny_model / "tokenizer.json", tmp_path / name)

    exact, rounded = (compared(tmp_path / "adapter", tmp_path / name) for name in ("exact", "rounded"))
    assert (exact.first_kind, exact.verdict) == ("adapter on base", "same")
    assert (rounded.verdict, rounded.agrees) == ("rounding", True)
    assert rounded.own_rounding is not None
    strict = compared(tmp_path / "adapter", tmp_path / "rounded", tolerance=1e-6)
    assert (strict.verdict, strict.tolerance) == ("different", 1e-6), "a tolerance that is given excuses no rounding"
    assert compared(tiny_model, tmp_path / "exact").verdict == "different", "the adapter does something"


def test_packing_into_4_bits_is_told_by_its_figures(tiny_model: Path) -> None:
    pytest.importorskip("bitsandbytes")
    found = compared(tiny_model, tiny_model, quantization="nf4")
    assert found.second_kind == "model in 4 bits (nf4)"
    assert found.verdict == "different"
    assert found.logits.mean_kl > 0
    assert found.logits.top1_agreement < 1


def test_other_vocabularies_are_refused(tiny_model: Path) -> None:
    from engine.resources import demo_model_dir

    with pytest.raises(EngineError, match="different vocabularies") as refused:
        compared(tiny_model, demo_model_dir())
    assert refused.value.code == "verify.vocabulary"
    assert "384" in refused.value.cause
    assert "1,216" in refused.value.cause


def test_an_adapter_whose_base_is_gone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere/at/all"}')
    with pytest.raises(EngineError, match="base of the adapter") as refused:
        compared(tmp_path, tmp_path)
    assert "/nowhere/at/all" in refused.value.cause
    assert "--base" in refused.value.next_step


def test_the_command_says_it_by_its_exit_code(
    tiny_model: Path, changed: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from scaler_tui.cli import main

    def scale(weights: dict[str, Any]) -> None:
        weights["model.layers.1.mlp.down_proj.weight"] *= 1.5

    out = tmp_path / "report.json"
    code = main(["verify", str(tiny_model), str(changed(scale)), "--tokens", "32", "--json", "--out", str(out)])
    told = json.loads(capsys.readouterr().out)
    assert code == 1
    assert told["agrees"] is False
    assert told["report"] == json.loads(out.read_text())
    assert main(["verify", str(tiny_model), str(tiny_model), "--tokens", "32", "--tolerance", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["tolerance"] == 0.0
