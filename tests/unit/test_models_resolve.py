"""From what the user typed to a model: folders that work, folders that are refused, and names that nearly match."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import resources
from engine.errors import EngineError, ExitCode
from engine.models.analyze import analyze, require_known
from engine.models.resolve import ModelKind, download_weights, folder_word, require_weights, resolve_model

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def tensors_of(config: dict[str, Any]) -> dict[str, list[int]]:
    """The names and shapes of a small Llama, as loaders expect them."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}"
        for name in ("q", "k", "v", "o"):
            rows = head * config["num_key_value_heads"] if name in "kv" else hidden
            shapes[f"{stem}.self_attn.{name}_proj.weight"] = [rows, hidden]
        shapes |= {f"{stem}.mlp.{name}_proj.weight": [ffn, hidden] for name in ("gate", "up")}
        shapes[f"{stem}.mlp.down_proj.weight"] = [hidden, ffn]
        shapes |= {f"{stem}.{name}_layernorm.weight": [hidden] for name in ("input", "post_attention")}
    return shapes


def save_weights(path: Path, shapes: dict[str, list[int]]) -> None:
    header: dict[str, Any] = {}
    position = 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(position))


def make_model(folder: Path, changes: dict[str, Any] | None = None, *, weights: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | (changes or {})))
    if weights:
        save_weights(folder / "model.safetensors", tensors_of(CONFIG))
    return folder


def refusal(source: str | Path) -> EngineError:
    with pytest.raises(EngineError) as caught:
        analyze(str(source))
    error = caught.value
    assert error.exit_code is ExitCode.BAD_INPUT
    assert error.next_step, "every refusal says what to do instead"
    return error


def test_local_folder_is_analyzed_from_its_headers(tmp_path: Path) -> None:
    found = analyze(str(make_model(tmp_path / "mine")))
    assert (found.family, found.parameters_source, found.notes) == ("llama", "headers", ())
    assert found.weight_bytes == 4 * found.parameters
    assert found.dtype == "float32"
    require_known(found)


def test_relative_folder_with_one_slash_is_a_folder_and_not_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "Qwen" / "Qwen3-0.6B")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("Qwen/Qwen3-0.6B").kind is ModelKind.FOLDER


def test_headers_win_over_a_config_that_does_not_add_up(tmp_path: Path) -> None:
    exact = analyze(str(make_model(tmp_path / "right"))).parameters
    found = analyze(str(make_model(tmp_path / "wrong", {"num_hidden_layers": 3, "vocab_size": 40})))
    assert found.parameters == exact
    text = " ".join(found.notes)
    assert f"{exact:,}" in text
    assert "2 layers; the config says 3" in text
    assert "32 embedding rows; vocab_size is 40" in text


def test_tied_head_that_is_stored_twice_counts_once_and_is_noted(tmp_path: Path) -> None:
    plain = analyze(str(make_model(tmp_path / "plain"))).parameters
    folder = make_model(tmp_path / "twice")
    save_weights(folder / "model.safetensors", tensors_of(CONFIG) | {"lm_head.weight": [32, 8]})
    found = analyze(str(folder))
    assert found.parameters == plain
    assert any("256" in note and "tied" in note for note in found.notes)


def test_untied_config_without_stored_head_is_noted(tmp_path: Path) -> None:
    found = analyze(str(make_model(tmp_path / "m", {"tie_word_embeddings": False})))
    assert any("no head is stored" in note for note in found.notes)


def test_folder_with_config_only_is_described_but_cannot_run(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", weights=False)
    found = analyze(str(folder))
    assert found.parameters_source == "config"
    assert any("no weights" in note for note in found.notes)
    with pytest.raises(EngineError) as caught:
        require_weights(resolve_model(str(folder)))
    assert caught.value.code == "model.no_weights"


def test_complete_folder_is_ready_to_run(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    ref = resolve_model(str(folder))
    assert require_weights(ref) == folder
    assert download_weights(ref) is ref


def test_missing_folder_and_file_instead_of_folder_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").code == "model.not_found"
    folder = make_model(tmp_path / "m")
    error = refusal(folder / "model.safetensors")
    assert (error.code, str(folder) in error.next_step) == ("model.is_file", True)


def test_empty_folder_and_folder_without_config_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).code == "model.empty"
    (tmp_path / "notes.txt").write_text("x")
    assert refusal(tmp_path).code == "model.no_config"


def test_parent_of_the_model_is_refused_with_the_right_folder(tmp_path: Path) -> None:
    inner = make_model(tmp_path / "models--a--b" / "snapshots" / "0123")
    assert str(inner) in refusal(tmp_path / "models--a--b").next_step


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "pytorch_model-00001-of-00002.bin"]
)
def test_pickle_only_model_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "m", weights=False)
    (folder / name).write_bytes(b"\x80\x02")
    error = refusal(folder)
    assert error.code == "model.pickle"
    assert name in error.what
    assert "run any code" in error.cause
    assert "save_pretrained" in error.next_step


def test_pickle_beside_safetensors_is_ignored(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert analyze(str(folder)).parameters_source == "headers"


def test_model_that_needs_remote_code_is_refused_with_the_reason(tmp_path: Path) -> None:
    for index, changes in enumerate(
        (
            {"auto_map": {"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}},
            {"auto_map": {"AutoModelForCausalLM": "other/repo--modeling_x.XForCausalLM"}, "model_type": "brandnew"},
            {"auto_map": {"AutoConfig": "configuration_x.XConfig"}, "model_type": "brandnew"},
        )
    ):
        error = refusal(make_model(tmp_path / str(index), changes))
        assert error.code == "model.remote_code"
        assert "auto_map" in error.cause


def test_built_in_family_whose_repository_still_carries_its_old_code_is_accepted(tmp_path: Path) -> None:
    """As in the hub's Phi-3 and Falcon: the class named is the one transformers has itself."""
    changes = {"auto_map": {"AutoConfig": "c.LlamaConfig", "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}}
    found = analyze(str(make_model(tmp_path / "m", changes)))
    assert any("not used" in note for note in found.notes)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
        {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True},
        {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["LlamaModel"]},
        {"architectures": None, "model_type": "bert"},
        {"architectures": ["CLIPModel"], "model_type": "clip", "text_config": {"hidden_size": 8}},
    ],
    ids=str,
)
def test_model_that_is_not_a_causal_language_model_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert refusal(make_model(tmp_path / "m", changes)).code == "model.not_causal"


def test_adapter_gguf_diffusers_and_original_formats_are_refused_by_name(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen3-0.6B"}))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    error = refusal(adapter)
    assert (error.code, "Qwen/Qwen3-0.6B" in error.what) == ("model.adapter", True)
    for name, code in (
        ("model-Q4_K_M.gguf", "model.gguf"),
        ("model_index.json", "model.not_language"),
        ("params.json", "model.original_format"),
    ):
        folder = tmp_path / code
        folder.mkdir()
        (folder / name).write_text("{}")
        assert refusal(folder).code == code
    assert refusal(tmp_path / "model.gguf" / "model-Q4_K_M.gguf").code == "model.gguf"


def test_empty_and_broken_files_are_errors(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"")
    assert refusal(folder).code == "safetensors.damaged"
    (folder / "config.json").write_bytes(b"")
    assert refusal(folder).code == "model.config_damaged"
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "big"')
    assert refusal(folder).code == "model.config_damaged"


def test_quantization_section_of_the_wrong_type_is_an_error(tmp_path: Path) -> None:
    assert "quantization_config" in refusal(make_model(tmp_path / "m", {"quantization_config": [4]})).what


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder_is_an_error(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    folder.chmod(0)
    try:
        assert refusal(folder).code in ("model.unreadable", "model.not_found")
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize(
    "source", ["", "   ", "a\0b", "x" * 5000, "~nobody-at-all/model", "a" * 300, "/" + "a" * 300, "a/b/c", "..."]
)
def test_odd_sources_are_errors_without_a_traceback(source: str) -> None:
    assert refusal(source).code.startswith("model.")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("llama-3.2-3", "llama-3.2-3b"),
        ("qwen2.5-7", "qwen2.5-7b"),
        ("lama-3.1-8b", "llama-3.1-8b"),
        ("gema-2-9b", "gemma-2-9b"),
    ],
)
def test_misspelt_name_gets_the_near_one_suggested(typed: str, meant: str) -> None:
    assert meant in refusal(typed).next_step


def test_demo_is_the_embedded_model() -> None:
    if not (resources.demo_model_dir() / "model.safetensors").exists():
        pytest.skip("the demo model is not built here")
    found = analyze("demo")
    assert (found.family, found.known, found.parameters_source) == ("llama", True, "headers")
    assert found.notes == ()
    assert 1e6 < found.parameters < 6e6
    assert resolve_model("demo").kind is ModelKind.DEMO


@pytest.mark.parametrize("name", ["demo", "DEMO", "demo-4k", "deep/demo"])
def test_a_folder_is_named_so_that_it_is_not_taken_for_the_embedded_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_model(Path(name))
    found = resolve_model(folder_word(Path(name)))
    assert (found.kind, found.path) == (ModelKind.FOLDER, Path(name))


def test_copy_of_the_demo_has_the_same_architecture(tmp_path: Path) -> None:
    if not (resources.demo_model_dir() / "model.safetensors").exists():
        pytest.skip("the demo model is not built here")
    copy = shutil.copytree(resources.demo_model_dir(), tmp_path / "copy")
    assert analyze(str(copy)).parameters == analyze("demo").parameters


def test_analyzer_imports_neither_torch_nor_the_hub_library(tmp_path: Path) -> None:
    program = (
        "import sys; from engine.models.analyze import analyze; analyze(sys.argv[1]); analyze('llama-3.2-3b');"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'textual', 'pydantic', 'safetensors'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    folder = make_model(tmp_path / "m")
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
