"""GGUF files read back: every family's weights, sizes and keys, and what is left when writing ends early."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from engine.context.gguf_graphs import GRAPHS
from engine.errors import EngineError
from engine.export import gguf_weights
from engine.export.gguf import estimated_bytes, write_gguf
from engine.jobs import lock
from tests.support.gguf_models import HEAD, HEADS, HIDDEN, config_of, write_model
from tests.support.surgery_models import write_safetensors


def keys_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def tensors_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


def refused(folder: Path, out: Path, **options: Any) -> EngineError:
    with pytest.raises(EngineError) as caught:
        write_gguf(folder, out, **options)
    return caught.value


# ── what a file says ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"])
def test_every_family_is_written_with_its_sizes_and_all_its_weights(kind: str, tmp_path: Path) -> None:
    weights = write_model(tmp_path / "model", config_of(kind))
    file = write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    keys, tensors = keys_of(file.path), tensors_of(file.path)
    name = file.graph
    assert keys["general.architecture"] == name == GRAPHS[kind].name
    assert (file.stored, file.findings, file.stops) == ("F32", (), (2,))
    assert keys[f"{name}.embedding_length"] == HIDDEN
    assert keys[f"{name}.attention.head_count_kv"] == 2
    assert keys[f"{name}.rope.dimension_count"] == HEAD
    assert keys[f"{name}.context_length"] == file.context_length == 512
    assert len(tensors) == len(weights)
    assert sum(values.size for values in tensors.values()) == sum(values.size for values in weights.values())
    embedding = weights["model.embed_tokens.weight"]
    assert np.array_equal(tensors["token_embd.weight"], embedding)
    assert np.array_equal(tensors["blk.1.ffn_down.weight"], weights["model.layers.1.mlp.down_proj.weight"])


def test_gemma_2_has_its_ones_its_caps_and_its_window(tmp_path: Path) -> None:
    weights = write_model(tmp_path / "model", config_of("gemma2", query_pre_attn_scalar=25))
    write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    keys, tensors = keys_of(tmp_path / "model.gguf"), tensors_of(tmp_path / "model.gguf")
    assert keys["gemma2.attn_logit_softcapping"] == 50
    assert keys["gemma2.final_logit_softcapping"] == 30
    assert keys["gemma2.attention.sliding_window"] == 32
    assert "gemma2.attention.sliding_window_pattern" not in keys
    norms = {"attn_norm": "input", "post_attention_norm": "post_attention", "ffn_norm": "pre_feedforward",
             "post_ffw_norm": "post_feedforward"}  # fmt: skip
    for theirs, ours in norms.items():
        expected = weights[f"model.layers.0.{ours}_layernorm.weight"] + 1
        assert np.array_equal(tensors[f"blk.0.{theirs}.weight"], expected)
    assert np.array_equal(tensors["output_norm.weight"], weights["model.norm.weight"] + 1)
    queries = weights["model.layers.0.self_attn.q_proj.weight"] * sqrt(HEAD / 25)  # llama.cpp divides by sqrt(HEAD)
    assert tensors["blk.0.attn_q.weight"] == pytest.approx(queries, rel=1e-6)
    assert np.array_equal(tensors["blk.0.attn_k.weight"], weights["model.layers.0.self_attn.k_proj.weight"])


def test_gemma_3_has_two_bases_and_its_scale_in_the_norm_of_the_queries(tmp_path: Path) -> None:
    listed = ["full_attention", "sliding_attention"]
    weights = write_model(tmp_path / "model", config_of("gemma3_text", query_pre_attn_scalar=25, layer_types=listed))
    file = write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    keys, tensors = keys_of(file.path), tensors_of(file.path)
    assert (keys["gemma3.rope.freq_base"], keys["gemma3.rope.freq_base_swa"]) == (1e6, 1e4)
    assert keys["gemma3.attention.sliding_window_pattern"] == [False, True]
    assert [finding.code for finding in file.findings] == ["export.layer_pattern"]
    expected = (weights["model.layers.0.self_attn.q_norm.weight"] + 1) * sqrt(HEAD / 25)
    assert tensors["blk.0.attn_q_norm.weight"] == pytest.approx(expected, rel=1e-6)
    assert np.array_equal(tensors["blk.0.attn_q.weight"], weights["model.layers.0.self_attn.q_proj.weight"])


@pytest.mark.parametrize(("layers", "factor"), [(2, 1.0), (46, sqrt((HIDDEN // HEADS) / HEAD))])
def test_a_gemma_as_deep_as_the_27b_is_scaled_as_llama_cpp_scales_that(layers: int, factor: float) -> None:
    from engine.context.gguf_graphs import query_factor
    from engine.models.shape import read_shape

    config = config_of("gemma2", num_hidden_layers=layers, head_dim=8, query_pre_attn_scalar=8)
    expected = factor if layers == 2 else sqrt((HIDDEN // HEADS) / 8)
    assert query_factor(GRAPHS["gemma2"], read_shape(config, "config.json"), config) == pytest.approx(expected)


def test_phi_3_keeps_its_fused_matrices_and_gets_both_sets_of_factors(tmp_path: Path) -> None:
    long, short = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0], [1.0, 1.0, 1.1, 1.1, 1.2, 1.2, 1.3, 1.4]
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 128,
        "long_factor": long, "short_factor": short,
    }  # fmt: skip
    config = config_of("phi3", rope_parameters=rope, original_max_position_embeddings=128)
    weights = write_model(tmp_path / "model", config)
    file = write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    keys, tensors = keys_of(file.path), tensors_of(file.path)
    assert tensors["rope_factors_long.weight"].tolist() == pytest.approx(long)
    assert tensors["rope_factors_short.weight"].tolist() == pytest.approx(short)
    assert keys["phi3.rope.scaling.original_context_length"] == 128
    m = sqrt(1 + np.log(512 / 128) / np.log(128))
    assert keys["phi3.rope.scaling.attn_factor"] == pytest.approx(m)
    assert np.array_equal(tensors["blk.0.attn_qkv.weight"], weights["model.layers.0.self_attn.qkv_proj.weight"])
    assert np.array_equal(tensors["blk.0.ffn_up.weight"], weights["model.layers.0.mlp.gate_up_proj.weight"])
    assert [finding.code for finding in file.findings] == ["export.longrope"]


def test_a_window_that_llama_cpp_does_not_have_is_the_context_of_the_file(tmp_path: Path) -> None:
    write_model(tmp_path / "model", config_of("mistral", sliding_window=128))
    file = write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert keys_of(file.path)["llama.context_length"] == file.context_length == 128
    assert "128 tokens" in file.findings[0].what


# ── types ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_q8_0_is_the_rounded_quotient_by_a_scale_per_32_neighbours(tmp_path: Path) -> None:
    from gguf.quants import dequantize

    weights = write_model(tmp_path / "model", config_of("llama"), dtype="BF16")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "q8_0")
    found = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}["blk.0.ffn_up.weight"]
    assert found.tensor_type.name == "Q8_0"
    exact = (weights["model.layers.0.mlp.up_proj.weight"].astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    blocks = exact.reshape(-1, 32)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 127
    steps = dequantize(found.data, found.tensor_type).reshape(-1, 32) / scales
    assert np.abs(steps - np.round(steps)).max() < 0.07  # the scale itself is rounded to 16 bits
    assert np.abs(steps - blocks / scales).max() < 0.57


def test_rows_that_fill_no_blocks_stay_in_16_bits_and_are_flagged(tmp_path: Path) -> None:
    write_model(tmp_path / "model", config_of("llama", intermediate_size=100))
    file = write_gguf(tmp_path / "model", tmp_path / "model.gguf", "q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file.path).tensors}
    assert (types["blk.0.ffn_down.weight"], types["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")
    assert [finding.code for finding in file.findings] == ["export.row_width"]


@pytest.mark.parametrize("stored", ["f32", "f16", "bf16", "q8_0"])
def test_groups_of_rows_give_the_bytes_of_the_whole(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "model", config_of("llama"), dtype="BF16")
    write_gguf(tmp_path / "model", tmp_path / "whole.gguf", stored, name="x")
    monkeypatch.setattr(gguf_weights, "CHUNK_BYTES", 5000)
    steps: list[tuple[int, int]] = []
    write_gguf(
        tmp_path / "model", tmp_path / "parts.gguf", stored, name="x", on_progress=lambda *step: steps.append(step)
    )
    assert (tmp_path / "parts.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert len(steps) > 100
    assert steps[-1][0] == steps[-1][1]


def test_without_a_type_the_weights_keep_their_own(tmp_path: Path) -> None:
    weights = write_model(tmp_path / "model", config_of("llama"), dtype="BF16")
    assert write_gguf(tmp_path / "model", tmp_path / "model.gguf").stored == "BF16"
    held = tensors_of(tmp_path / "model.gguf")["blk.0.ffn_up.weight"]
    assert held.tobytes() == weights["model.layers.0.mlp.up_proj.weight"].tobytes()


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("kind", "changes", "code"),
    [
        ("llama", {"hidden_act": "gelu"}, "export.activation"),
        ("qwen3", {"attention_bias": True}, "export.bias"),
        ("gemma2", {"tie_word_embeddings": False}, "export.untied"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "export.soft_cap"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "export.bidirectional"),
        ("gemma3_text", {"layer_types": ["sliding_attention"]}, "export.layer_types"),
        ("gemma3_text", {"layer_types": ["chunked_attention", "full_attention"]}, "export.layer_types"),
        ("phi3", {"num_attention_heads": 2}, "export.head_width"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "export.packed"),
        ("qwen2", {"num_hidden_layers": 600}, "export.layers"),
    ],
)
def test_what_the_graph_would_lose_is_refused_from_the_config_alone(
    kind: str, changes: dict[str, Any], code: str, tmp_path: Path
) -> None:
    from engine.context.gguf_support import what_is_lost

    lost = what_is_lost(config_of(kind, **changes))
    assert (lost[0].code, lost[0].lost) == (code, True)
    assert lost[0].as_error().next_step


def test_the_reason_is_told_without_numpy_and_torch() -> None:
    code = "import sys, engine.context.gguf_support; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "gguf", "tokenizers"} & set(done.stdout.split())


def test_weights_that_are_missing_or_not_known_are_named(tmp_path: Path) -> None:
    weights = write_model(tmp_path / "model", config_of("llama"))
    path = tmp_path / "model" / "model.safetensors"
    gone = "model.layers.1.mlp.up_proj.weight"
    write_safetensors(path, {name: ("F32", values) for name, values in weights.items() if name != gone})
    error = refused(tmp_path / "model", tmp_path / "model.gguf")
    assert (error.code, "blk.1.ffn_up.weight" in error.what) == ("export.tensor_missing", True)
    odd = {"model.layers.0.block_sparse_moe.gate.weight": ("F32", weights["model.norm.weight"])}
    write_safetensors(path, odd | {name: ("F32", values) for name, values in weights.items()})
    assert refused(tmp_path / "model", tmp_path / "model.gguf").code == "export.tensor"
    assert not (tmp_path / "model.gguf").exists()


# ── how a file comes to be ────────────────────────────────────────────────────────────────────────────────────────
# Writes for real; stops after the first weight until a line arrives, so that it is certainly busy when it is killed.
CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from engine.export.gguf import write_gguf
    def stop(done, total):
        print("writing", flush=True)
        sys.stdin.readline()
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), on_progress=stop)
    """
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", config_of("llama"))
    return tmp_path / "model"


def test_killed_with_minus_nine_nothing_has_the_name_and_the_next_attempt_ends(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "model.gguf"
    out.parent.mkdir()
    words = [sys.executable, "-c", CHILD, str(model), str(out)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    assert refused(model, out).code == "export.busy"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    file = write_gguf(model, out)
    assert [path.name for path in out.parent.iterdir()] == ["model.gguf"]
    assert len(tensors_of(file.path)) == 21


def test_an_existing_file_is_replaced_with_force_only(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    out.write_bytes(b"mine")
    error = refused(model, out)
    assert (error.code, "--force" in error.next_step) == ("export.exists", True)
    assert out.read_bytes() == b"mine"
    write_gguf(model, out, force=True)
    assert out.read_bytes()[:4] == b"GGUF"
    assert refused(model, tmp_path, force=True).code == "export.exists"
    assert refused(model, tmp_path / "none" / "model.gguf").code == "export.write"


def test_too_little_room_is_said_before_the_first_byte(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=400_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    error = refused(model, tmp_path / "model.gguf")
    assert (error.code, int(error.exit_code)) == ("disk.full", 4)
    assert "missing" in error.what
    assert "free" in error.cause
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.fixture
def small_files(model: Path) -> Iterator[None]:
    """No file may grow beyond 256 KiB: EFBIG, the errno of a limit where a full disk gives ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_says_how_much_is_missing_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    error = refused(model, tmp_path / "model.gguf")
    assert error.code == "disk.full"
    assert "KiB are missing" in error.what
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_lock_that_is_left_over_does_no_harm(model: Path, tmp_path: Path) -> None:
    handle = lock.take(tmp_path / ".model.gguf.partial")
    assert handle is not None
    os.close(handle)
    assert write_gguf(model, tmp_path / "model.gguf").size_bytes > 500_000


def test_the_command_line_writes_and_reports(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from engine.export.__main__ import main

    assert main([str(model), str(tmp_path / "m.gguf"), "--type", "q8_0"]) == 0
    assert json.loads(capsys.readouterr().out)["stored"] == "Q8_0"


@pytest.mark.parametrize("stored", ["f32", "q8_0"])
def test_the_size_is_known_before(stored: str, model: Path, tmp_path: Path) -> None:
    size_bytes = write_gguf(model, tmp_path / "model.gguf", stored).size_bytes
    assert 0 <= estimated_bytes(model, stored) - size_bytes < 64 * 1220


def test_only_the_language_model_of_a_multimodal_one_is_written(tmp_path: Path) -> None:
    text = config_of("gemma3_text")
    weights = write_model(tmp_path / "model", text)
    whole = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (tmp_path / "model" / "config.json").write_text(json.dumps(whole))
    inside = {name.replace("model.", "language_model.model.", 1): values
              for name, values in weights.items()}  # fmt: skip
    inside["vision_tower.embeddings.weight"] = weights["model.norm.weight"]
    path = tmp_path / "model" / "model.safetensors"
    write_safetensors(path, {name: ("F32", values) for name, values in inside.items()})
    file = write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert [finding.code for finding in file.findings] == ["export.text_only"]
    assert len(tensors_of(file.path)) == len(weights)
